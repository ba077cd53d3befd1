"""The blocks of a stack, each ready to be walked through with a stream that is not the dense model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.dataflow import TRANSPARENT
from graphprune.healing.choice import SHARES, Action
from graphprune.healing.moments import Affine
from graphprune.healing.norming import PlainNorm
from graphprune.healing.segments import Segment, cut, reads_of
from graphprune.surgery.fitted import PostNorm, Projections, output_projections, post_norm
from graphprune.surgery.neurons import Neurons, ffn_neurons
from graphprune.surgery.norms import epsilon_of

if TYPE_CHECKING:
    from graphprune.architecture import Architecture, Block, Norm
    from graphprune.bundle import ModelFile
    from graphprune.session import Feeds
    from graphprune.settings import Settings

Array = NDArray[Any]

_HEALED_KINDS = ("attention", "cross_attention", "ffn", "parallel")
# An ε is a number that is added to a variance: larger ones are something else.
_LARGEST_EPSILON = 1e-2


@dataclass(frozen=True, eq=False)
class Piece:
    """A block as sums of linears: what it reads, writes, and how the stream is normalized behind it.

    It is run from `start`, the stream behind the block before it, which may be laid out in another way.

    `output` is the map of its output projections from what all its branches feed them, side by side; None
    where the block cannot be read so (`fixed` says why), and stays what it is. `norm` is its post-norm's γ
    and β. `reason` says why the block can be neither dropped nor replaced. `neurons` are those that an FFN
    can lose some of.
    """

    block: Block
    start: ir.Value
    file: ModelFile
    model: ir.Model
    settings: Settings | None
    projections: Projections | None
    output: Affine | None
    norm: PlainNorm | None
    fixed: str = ""
    reason: str = ""
    pre_norm: Norm | None = None
    neurons: int = 0

    @property
    def id(self) -> str:
        """The block's id."""
        return self.block.id

    @property
    def actions(self) -> tuple[Action, ...]:
        """What it can become besides kept."""
        if self.reason:
            return ()
        narrower = tuple(one for one, share in SHARES.items() if int(share * self.neurons))
        return ("drop", "mean", "linear", "patch", *narrower)

    def dense(self) -> Segment:
        """A session from the stream before it to the sum at its join and the stream behind it."""
        return self._cut(self.block.join.outputs[0], self.block.stream_out)

    def inner(self, feeds: Feeds, stream: Array) -> Array:
        """What the branches put into the output projections: [..., inputs]."""
        assert self.projections is not None
        values = self._inner.run(feeds, stream)
        laid = [_laid(value, part.axis) for value, part in zip(values, self.projections.parts, strict=True)]
        return laid[0] if len(laid) == 1 else np.concatenate(laid, axis=-1)

    def reads(self, action: Action, feeds: Feeds, stream: Array) -> Array | None:
        """What is multiplied by a weight where this becomes of the block [..., inputs]; None for nothing.

        A linear reads the stream as the block's own pre-norm leaves it, where it has one.
        """
        if action == "keep" or action in SHARES:
            return self.inner(feeds, stream)
        if action == "linear" and self.pre_norm is not None:
            return self._normed.run(feeds, stream)[0]
        return stream if action in ("linear", "patch") else None

    def sums(self, feeds: Feeds, stream: Array) -> Array:
        """What is at its join as it is [..., width]."""
        return np.asarray(self._summed.run(feeds, stream)[0], np.float32)

    def leaves(self, feeds: Feeds, stream: Array) -> Array:
        """The stream behind the block as it is: for blocks that nothing is known of."""
        return self._whole.run(feeds, stream)[0]

    @cached_property
    def _inner(self) -> Segment:
        assert self.projections is not None
        return self._cut(*(part.input for part in self.projections.parts))

    @cached_property
    def _summed(self) -> Segment:
        return self._cut(self.block.join.outputs[0])

    @cached_property
    def _normed(self) -> Segment:
        assert self.pre_norm is not None
        return self._cut(self.pre_norm.output)

    @cached_property
    def _whole(self) -> Segment:
        return self._cut(self.block.stream_out)

    def _cut(self, *values: ir.Value) -> Segment:
        names = [value.name or "" for value in values]
        return cut(self.file, self.model, self.start.name or "", names, self.settings)


def _laid(value: Array, axis: int) -> Array:
    """A value with its features as the last axis."""
    return value if axis in (-1, value.ndim - 1) else np.moveaxis(value, axis, -1)


def pieces_of(
    file: ModelFile, architecture: Architecture, blocks: tuple[Block, ...], settings: Settings | None
) -> Iterator[Piece]:
    """The blocks of a stack as pieces, in running order; nothing is loaded yet."""
    joins = {node: block.id for block in architecture.blocks for node in (block.join, *block.sums)}
    start = blocks[0].stream_in
    for block in blocks:
        found = output_projections(block)
        norm, neurons = post_norm(block), ffn_neurons(block)
        own = {node: other for node, other in joins.items() if other != block.id}
        reason, fixed = _why_not(block, norm, own), found if isinstance(found, str) else ""
        projections = None if isinstance(found, str) else found
        yield Piece(
            block, start, file, architecture.model, settings, projections,
            None if projections is None else _map_of(projections),
            None if isinstance(norm, str) else _plain(norm),
            fixed, reason, _pre_norm(block), neurons.count if isinstance(neurons, Neurons) else 0,
        )  # fmt: skip
        start = block.stream_out


def _why_not(block: Block, norm: PostNorm | str, joins: Mapping[ir.Node, str]) -> str:
    """Why a block can be neither dropped nor replaced here; "" where it can."""
    if not block.droppable:
        return block.reason
    if block.kind not in _HEALED_KINDS:
        return f"it is of kind {block.kind}: only attention and FFN blocks of a stream of tokens are healed"
    others = sorted(set(reads_of([block.stream_out], block.stream_in, joins)))
    if others:
        return f"it reads the stream behind {others[0]} too"
    if isinstance(norm, str) and not _same(block.stream_out, block.join.outputs[0]):
        return norm
    return ""


def _same(value: ir.Value, other: ir.Value) -> bool:
    """Whether a value is another one by other names or types alone."""
    while value is not other:
        node = value.producer()
        if node is None or node.op_type not in TRANSPARENT or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True


def _map_of(projections: Projections) -> Affine:
    weight = np.concatenate([part.weight for part in projections.parts]).astype(np.float64)
    return Affine(weight, projections.bias.astype(np.float64))


def _pre_norm(block: Block) -> Norm | None:
    """The one norm that all its branches read, of a pre-norm block."""
    found = [norm for norm in block.norms if norm.role == "pre"]
    return found[0] if len(found) == 1 else None


def _plain(found: PostNorm) -> PlainNorm:
    return PlainNorm(
        found.scale.astype(np.float64),
        None if found.beta is None else found.shift.astype(np.float64),
        _epsilon(found.norm),
        found.norm.kind == "rms",
    )


def _epsilon(norm: Norm) -> float:
    """The ε of a norm, one op or many."""
    if len(norm.nodes) == 1 or any("epsilon" in node.attributes for node in norm.nodes):
        return epsilon_of(next((node for node in norm.nodes if "epsilon" in node.attributes), norm.nodes[-1]))
    inputs = (value for node in norm.nodes for value in node.inputs if value is not None)
    tensors = (ir.convenience.get_const_tensor(value) for value in inputs)
    numbers = (float(t.numpy().reshape(-1)[0]) for t in tensors if t is not None and t.size == 1)
    return next((number for number in numbers if 0 < number <= _LARGEST_EPSILON), 0.0)
