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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.play import Source, play

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from graphprune.architecture import Block, Branch, Stack
    from graphprune.play import Call
    from graphprune.settings import Settings
    from graphprune.taps import Tap

    Array = NDArray[Any]

# Inputs that are 0 where there is padding, by the names that exporters give them.
_MASKS = ("attention_mask", "input_mask")


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
    path: str | Path, source: Source | None = None, *, settings: Settings | None = None
) -> Influences:
    """Run the files of a bundle once on the inputs of `source`, and measure what their blocks do.

    A post-norm block is measured with its norm. A decoder that takes a cache is measured on the prompt,
    one that needs a cache on the token after it. The streams of all blocks are in memory at once. Raises
    `LoadError`, `RunError`.
    """
    from graphprune.bundle import load
    from graphprune.changed import open_changed
    from graphprune.fileset import require_set
    from graphprune.session import in_turn
    from graphprune.survey import inspect
    from graphprune.taps import tap_streams

    bundle, source = load(path), source or Source()
    require_set(bundle)
    taps = {survey.name: tap_streams(survey.architecture) for survey in inspect(bundle)}
    models = {file.name: file.model for file in bundle.files}
    calls = play(in_turn(open_changed(file, file.model, settings) for file in bundle.files), source)
    runs = [_Run(call, source, models[call.session.name]) for call in calls]
    return Influences(
        tuple(run.measured(tap) for run in runs for tap in taps[run.file].blocks),
        tuple(run.measured(tap) for run in runs for tap in taps[run.file].layers),
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """A call of a file that puts its streams out."""

    call: Call
    source: Source
    model: ir.Model

    @property
    def file(self) -> str:
        return self.call.session.name

    def measured(self, tap: Tap) -> Influence:
        """What one block or layer did."""
        if tap.reason:
            return Influence(self.file, tap.id, None, reason=tap.reason)
        mask = self._mask(tap.stack)
        streams = [_laid(self.call.outputs[name], tap.block) for name in (tap.before, tap.after)]
        reason = _incomparable(*streams)
        if reason:
            return Influence(self.file, tap.id, None, reason=reason)
        return _influence(self.file, tap.id, *(_rows(stream, mask) for stream in streams))

    def _mask(self, stack: Stack) -> Array | None:
        """1 for every token of the stack's stream, 0 for padding: [rows, tokens], the past's tokens first."""
        if any(block.kind == "cross_attention" for block in stack.blocks):
            return self._decoder_mask()
        name = next((name for name in _MASKS if name in self.call.feeds), "")
        mask = self.call.feeds.get(name)
        return mask if mask is not None and mask.ndim == 2 and self._reads(stack, name) else None

    def _decoder_mask(self) -> Array | None:
        """The decoder's own mask; that of the encoder where both read the same texts."""
        import numpy as np

        given, feeds = self.source.arrays, self.call.feeds
        if "decoder_attention_mask" in given:
            return given["decoder_attention_mask"]
        ids = feeds.get("decoder_input_ids", feeds.get("input_ids"))
        same = ids is not None and "input_ids" in given and np.array_equal(ids, given["input_ids"])
        return given.get("attention_mask") if same else None

    def _reads(self, stack: Stack, name: str) -> bool:
        """Whether anything in a stack depends on an input."""
        start = next((value for value in self.model.graph.inputs if value.name == name), None)
        work = [start] if start is not None else []
        seen: set[ir.Node] = set()
        inside = {node for block in stack.blocks for node in block.nodes}
        for value in work:
            for node in {use.node for use in value.uses()} - seen:
                seen.add(node)
                work.extend(node.outputs)
        return not seen.isdisjoint(inside)


def _incomparable(before: Array, after: Array) -> str:
    """Why two streams [positions …, channels] have no common positions; rows of tokens may be one axis."""
    if not before.size and not after.size:
        return "it does not run on these inputs"
    flat = min(before.ndim, after.ndim) == 2
    if before.shape == after.shape or (
        flat and before.size == after.size and before.shape[-1] == after.shape[-1]
    ):
        return ""
    return f"it changes the shape of the stream, from {list(before.shape)} to {list(after.shape)}"


def _influence(file: str, id: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Influence:
    from graphprune.compare import cosines

    if not len(before):
        return Influence(file, id, None, reason="all of its positions are padding")
    value = 1 - float(cosines(before, after).mean())
    if value != value:
        return Influence(file, id, None, reason="the stream is not finite")
    return Influence(file, id, max(value, 0.0), len(before))


def _laid(stream: Array, block: Block) -> Array:
    """The stream beside a block with its channels as the last axis: as many as its last linears put out."""
    import numpy as np

    lasts = [branch.linears[-1] for branch in block.branches if branch.linears]
    widths = {size for linear in lasts for value in linear.weights for size in _sizes(value)}
    fitting = [axis for axis in range(1, stream.ndim) if stream.shape[axis] in widths]
    axis = fitting[0] if len(fitting) == 1 else _channels(block.branches[0], stream.ndim)
    return np.moveaxis(stream, axis, -1) if stream.ndim else stream


def _channels(branch: Branch, rank: int) -> int:
    """The axis of what a branch adds that holds its channels, where sizes alone do not tell.

    It is the second after a convolution and the last after a product; transposes that follow move it.
    """
    from graphprune.dataflow import CONVOLUTIONS

    axis = rank - 1
    for node in branch.nodes[[*branch.nodes].index(branch.linears[-1].node) :] if branch.linears else ():
        perm = node.attributes.get("perm") if node.op_type == "Transpose" else None
        order = list(perm.as_ints()) if perm is not None else []
        if node.op_type in CONVOLUTIONS:
            axis = min(1, rank - 1)
        elif len(order) == rank:
            axis = order.index(axis)
    return axis


def _sizes(weight: ir.Value) -> Iterable[int]:
    from graphprune.constants import constant_shape

    return constant_shape(weight) or ()


def _rows(stream: Array, mask: Array | None) -> NDArray[np.float64]:
    """A stream [positions …, channels] as float64 [positions, channels], less what `mask` leaves out."""
    import numpy as np

    kept = None if mask is None else _fitting(mask.astype(bool), stream.shape[:-1])
    chosen = stream if kept is None else stream[kept]
    return chosen.reshape(-1, stream.shape[-1]).astype(np.float64)


def _fitting(mask: NDArray[np.bool_], grid: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """A mask [rows, tokens] in the order of the stream's positions; None where it is not about them."""
    if len(grid) == 2 and grid[0] == mask.shape[0]:
        mask = mask[:, -grid[1] :]
    for laid in (mask, mask.T, mask.reshape(-1)):
        if laid.shape == grid:
            return laid
    return None
