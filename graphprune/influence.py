"""How much every block and every layer changes the stream: the less, the sooner it can be spared.

Block influence (Men et al. 2024, ShortGPT: https://arxiv.org/abs/2403.03853) is 1 − the mean over all
positions of the cosine between the stream before and after. ShortGPT measures layers; measured by block
it is the first criterion of "What Matters in Transformers?" (He et al. 2024,
https://arxiv.org/abs/2406.15786). It says how much a block turns the stream, and not how much the model's
result depends on it: a guide for what to try first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.play import Source

if TYPE_CHECKING:
    from pathlib import Path

    from graphprune.importance.change import Change
    from graphprune.settings import Settings


@dataclass(frozen=True)
class Influence:
    """1 − cos of the stream before and after one block or layer: 0 for no change, at most 2.

    The mean over `positions`, those that are not padding. `value` is None where it was not measured, and
    `reason` says why. `file` is the one that ran.
    """

    file: str
    id: str
    value: float | None
    positions: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Influences:
    """What `block_influence` found, in the order of the stream; for every file in which a block ran."""

    blocks: tuple[Influence, ...]
    layers: tuple[Influence, ...]

    @property
    def by_block(self) -> dict[str, float]:
        """The values of the blocks that were measured, by their ids; of copies the first file's."""
        return _values(self.blocks)

    @property
    def by_layer(self) -> dict[str, float]:
        """The same of layers, by names such as `encoder.0`."""
        return _values(self.layers)


def _values(found: tuple[Influence, ...]) -> dict[str, float]:
    values: dict[str, float] = {}
    for one in found:
        if one.value is not None:
            values.setdefault(one.id, one.value)
    return values


def block_influence(
    path: str | Path, source: Source | Iterable[Source] | None = None, *, settings: Settings | None = None
) -> Influences:
    """Run the files of a bundle on the inputs of `source`, or of several, and measure what their blocks do.

    A post-norm block is measured with its norm. A decoder that takes a cache is measured on the prompt,
    one that needs a cache on the token after it. The streams of all blocks are in memory at once, of one
    source after another. Raises `LoadError`, `RunError`.
    """
    from graphprune.importance.change import open_meter

    sources = [source or Source()] if isinstance(source, Source | None) else source
    meter = open_meter(path, ("influence",), settings)
    for one in sources:
        meter.add(one)
    return Influences(tuple(map(_influence, meter.blocks)), tuple(map(_influence, meter.layers)))


def _influence(change: Change) -> Influence:
    mean = change.means["influence"]
    return Influence(change.file, change.id, mean.value, mean.count if mean.finite else 0, mean.reason)
