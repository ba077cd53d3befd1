"""What blocks do to single examples: the stream before each, and how little it turns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphprune.compare import cosines
from graphprune.errors import RunError
from graphprune.importance.streams import open_tapped, play_tapped
from graphprune.scoring import open_scorer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from graphprune.importance.streams import Rows, StreamRun
    from graphprune.play import Source
    from graphprune.settings import Settings
    from graphprune.taps import Tap

    Wide = NDArray[np.float64]

Unit = Literal["example", "token"]
# Tokens that are looked at of one example, spread over it.
_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """What one block did to n examples.

    `pooled` [n, d] is the mean of the stream before it over the positions that are no padding, `near` [n] the
    mean of the cosines of that stream and the one before the block before, `alike` [n] that of the cosines of
    the streams before and after it. `near` is NaN where there is no block before it.
    """

    pooled: Wide
    near: Wide
    alike: Wide


def watch(
    path: str | Path,
    sources: Iterable[Source],
    blocks: Collection[str],
    unit: Unit = "example",
    settings: Settings | None = None,
) -> dict[str, Seen]:
    """Run a bundle on single examples and note what its `blocks` do to each, or to some tokens of each.

    Raises `LoadError`, and `RunError` where a source has several rows, or a stream is not finite.
    """
    files = open_tapped(path, settings)
    found: dict[str, list[tuple[Wide, Wide, Wide]]] = {}
    for source in sources:
        if source.batch != 1:
            raise RunError(f"{path}: rules are fitted to single examples, and {source.batch} rows were given")
        for run in play_tapped(files, source):
            for id, seen in _seen(run, blocks, unit):
                found.setdefault(id, []).append(seen)
    return {id: _joined(path, id, parts) for id, parts in found.items()}


def _joined(path: str | Path, id: str, parts: list[tuple[Wide, Wide, Wide]]) -> Seen:
    pooled, near, alike = (np.concatenate(values) for values in zip(*parts, strict=True))
    if not (np.isfinite(pooled).all() and np.isfinite(alike).all()):
        raise RunError(f"{path}: the stream at {id} is not finite: the model overflows on this data")
    return Seen(pooled, near, alike)


def _seen(
    run: StreamRun, blocks: Collection[str], unit: Unit
) -> Iterator[tuple[str, tuple[Wide, Wide, Wide]]]:
    before = _before(run.file.taps.blocks)
    for tap in run.file.taps.blocks:
        rows, _ = run.rows(tap, tap.before, tap.after) if tap.id in blocks else ((), "")
        if not rows:
            continue
        earlier, _ = run.rows(tap, before[tap.id], tap.before) if tap.id in before else ((), "")
        alike = cosines(*rows)
        near = cosines(*earlier) if earlier else np.full(len(alike), np.nan)
        yield tap.id, _units(rows[0], near, alike, unit)


def feel(
    path: str | Path,
    sources: Sequence[Source],
    blocks: Collection[str],
    unit: Unit = "example",
    settings: Settings | None = None,
) -> dict[str, Wide]:
    """How alike what a file puts out is with and without each of `blocks`: the cosine, for each example.

    The mean over the positions of an example, or some of them, as `watch` has them; of the first output of
    floating-point numbers. Raises `LoadError`, and `RunError` where there are several files.
    """
    scorer = open_scorer(path, sources, settings, memory=0)
    found: dict[str, list[Wide]] = {id: [] for id in blocks if id in scorer.blocks}
    dense = [_first(outputs) for outputs in scorer.outputs()]
    for id, values in found.items():
        for whole, outputs in zip(dense, scorer.outputs([id]), strict=True):
            alike = cosines(*(one.reshape(-1, one.shape[-1]) for one in (whole, _first(outputs))))
            values.append(alike.mean()[None] if unit == "example" else alike[_places(len(alike))])
    return {id: np.concatenate(values) for id, values in found.items()}


def _first(outputs: Mapping[str, NDArray[Any]]) -> Wide:
    return next(value for value in outputs.values() if value.dtype.kind == "f").astype(np.float64)


def _before(taps: Iterable[Tap]) -> Mapping[str, str]:
    """For each block the output with the stream before the block before it."""
    pairs = ((one, tap) for one, tap in pairwise(taps) if one.stack is tap.stack and not one.reason)
    return {tap.id: one.before for one, tap in pairs}


def _units(stream: Rows, near: Wide, alike: Wide, unit: Unit) -> tuple[Wide, Wide, Wide]:
    """The mean over all positions as one row, or a row for some of them."""
    if unit == "example":
        return stream.mean(0)[None], near.mean()[None], alike.mean()[None]
    chosen = _places(len(stream))
    return stream[chosen], near[chosen], alike[chosen]


def _places(count: int) -> NDArray[np.int64]:
    """The positions that are looked at, of `count`."""
    places: NDArray[np.int64] = np.unique(np.linspace(0, count - 1, _TOKENS).round().astype(np.int64))
    return places
