"""Runs that put their streams out, and the rows of these that count: no padding, channels last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from graphprune.architecture import Block, Branch, Stack
    from graphprune.play import Call, Source
    from graphprune.session import Session
    from graphprune.settings import Settings
    from graphprune.taps import Tap, Taps

    Array = NDArray[Any]
    Rows = NDArray[np.float64]

# Inputs that are 0 where there is padding, by the names that exporters give them.
MASKS = ("attention_mask", "input_mask")
_TOKENS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True, eq=False)
class TappedFile:
    """A loaded file that puts its streams out: where, and which of its inputs is the mask of each stack."""

    session: Session
    taps: Taps
    masks: Mapping[Stack, str]


def open_tapped(
    path: str | Path, settings: Settings | None = None, *, sums: bool = False
) -> tuple[TappedFile, ...]:
    """Load the files of a bundle with their streams as further outputs, with `sums` those of the joins too.

    In the order in which they run. Raises `LoadError`, `RunError`.
    """
    from graphprune.bundle import load
    from graphprune.changed import open_changed
    from graphprune.fileset import require_set
    from graphprune.session import in_turn
    from graphprune.survey import inspect
    from graphprune.taps import tap_streams

    bundle = load(path)
    require_set(bundle)
    taps = {one.name: tap_streams(one.architecture, sums=sums) for one in inspect(bundle)}
    masks = {file.name: _masks(taps[file.name], file.model) for file in bundle.files}
    sessions = in_turn(open_changed(file, file.model, settings) for file in bundle.files)
    return tuple(TappedFile(one, taps[one.name], masks[one.name]) for one in sessions)


def play_tapped(files: Sequence[TappedFile], source: Source) -> Iterator[StreamRun]:
    """Run the files once on `source`; all their streams are in memory at once. Raises `RunError`."""
    from graphprune.play import play

    named = {file.session.name: file for file in files}
    calls = play([file.session for file in files], source)
    return (StreamRun(named[call.session.name], call, source) for call in calls)


def _masks(taps: Taps, model: ir.Model) -> dict[Stack, str]:
    stacks = dict.fromkeys(tap.stack for tap in (*taps.blocks, *taps.layers))
    return {stack: _mask_of(stack, model) for stack in stacks}


def _mask_of(stack: Stack, model: ir.Model) -> str:
    """The input that tells which tokens of a stack are padding; "" where it reads none."""
    inputs = {value.name: value for value in model.graph.inputs}
    name = next((name for name in MASKS if name in inputs), "")
    inside = {node for block in stack.blocks for node in block.nodes}
    return name if name and not _readers(inputs[name]).isdisjoint(inside) else ""


def _readers(start: ir.Value) -> set[ir.Node]:
    """All nodes of the same graph that depend on a value."""
    work = [start]
    seen: set[ir.Node] = set()
    for value in work:
        for node in {use.node for use in value.uses()} - seen:
            seen.add(node)
            work.extend(node.outputs)
    return seen


@dataclass(frozen=True, eq=False)
class StreamRun:
    """A call of a file that puts its streams out, made on `source`."""

    file: TappedFile
    call: Call
    source: Source

    def rows(self, tap: Tap, *names: str, last: bool = False) -> tuple[tuple[Rows, ...], str]:
        """The outputs `names` beside a tap, each [positions, channels]; else nothing and the reason.

        Of all positions that are no padding, or of the last one of each row of tokens (`last`).
        """
        if tap.reason:
            return (), tap.reason
        streams = [_laid(self.call.outputs[name], tap.block) for name in names]
        reason = next(filter(None, (_incomparable(streams[0], other) for other in streams[1:])), "")
        if reason:
            return (), reason
        mask = self._mask(tap.stack)
        if last:
            mask = _last(self._whole(streams[0]) if mask is None else mask)
        rows = tuple(_rows(stream, mask) for stream in streams)
        return (rows, "") if len(rows[0]) else ((), "all of its positions are padding")

    def broken(self, name: str) -> tuple[int, ...]:
        """Where an output is not finite on its first axis, which most often are the rows of the batch."""
        import numpy as np

        stream = self.call.outputs[name]
        finite = np.isfinite(stream.reshape(len(stream), -1)).all(axis=1)
        return tuple(int(place) for place in np.flatnonzero(~finite))

    def _mask(self, stack: Stack) -> Array | None:
        """1 for every token of the stack's stream, 0 for padding: [rows, tokens], the past's tokens first."""
        if stack.reads_another:
            return self._decoder_mask()
        mask = self.call.feeds.get(self.file.masks[stack])
        return mask if mask is not None and mask.ndim == 2 else None

    def _decoder_mask(self) -> Array | None:
        """The decoder's own mask; that of the encoder where both read the same texts."""
        import numpy as np

        given, feeds = self.source.arrays, self.call.feeds
        if "decoder_attention_mask" in given:
            return given["decoder_attention_mask"]
        ids = feeds.get("decoder_input_ids", feeds.get("input_ids"))
        same = ids is not None and "input_ids" in given and np.array_equal(ids, given["input_ids"])
        return given.get("attention_mask") if same else None

    def _whole(self, stream: Array) -> Array:
        """A mask without padding: of the given tokens, or of the stream's own rows and positions."""
        import numpy as np

        given = (self.call.feeds.get(name) for name in _TOKENS)
        ids = next((array for array in given if array is not None and array.ndim == 2), None)
        return np.ones(stream.shape[:2] if ids is None else ids.shape, np.int64)


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


def _last(mask: Array) -> Array:
    """Of a mask [rows, tokens] only the last token of each row that has any."""
    import numpy as np

    places = np.where(mask.astype(bool), np.arange(mask.shape[1]), -1).max(axis=1, initial=-1)
    found: NDArray[np.bool_] = (
        np.arange(mask.shape[1]) == np.where(places < 0, mask.shape[1], places)[:, None]
    )
    return found


def _rows(stream: Array, mask: Array | None) -> Rows:
    """A stream [positions …, channels] as float64 [positions, channels], less what `mask` leaves out."""
    import numpy as np

    kept = None if mask is None else fitting(mask.astype(bool), stream.shape[:-1])
    chosen = stream if kept is None else stream[kept]
    return chosen.reshape(-1, stream.shape[-1]).astype(np.float64)


def fitting(mask: NDArray[np.bool_], grid: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """A mask [rows, tokens] in the order of the stream's positions; None where it is not about them."""
    if len(grid) == 2 and grid[0] == mask.shape[0]:
        mask = mask[:, -grid[1] :]
    for laid in (mask, mask.T, mask.reshape(-1)):
        if laid.shape == grid:
            return laid
    return None
