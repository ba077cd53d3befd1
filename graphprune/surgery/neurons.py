"""The neurons of an FFN: all that it stores for each of them, so that some can stay and the others go.

A neuron is one entry of what the last linear of an FFN reads: a column of the linears before it, one entry
of each bias between them, and a row of the last linear. Between the linears every entry has to be computed
by itself. Width pruning: Xia et al. 2022, https://arxiv.org/abs/2204.00408; Kurtic et al. 2023 (ZipLM),
https://arxiv.org/abs/2302.04089.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.constants import tensor_of
from graphprune.costs import product
from graphprune.ffns import POINTWISE
from graphprune.macs import Macs
from graphprune.surgery.fitted import (
    Floats,
    Projection,
    UnreadableError,
    output_projections,
    projection,
    said,
)
from graphprune.surgery.operands import Operand, read_operand
from graphprune.surgery.values import constant, graph_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.architecture import Architecture, Block

# What shapes are put together by.
_OF_SIZES = {"Gather", "Slice", "Squeeze", "Unsqueeze", "Cast", "Identity", "Concat"}
_LINEARS = {"MatMul", "Gemm", "FusedMatMul"}


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a block: `count` of them.

    `down` reads one feature of each. `places` are stored operands, each with the axis along which it has one
    entry for each neuron; `reshapes` are nodes that are told their number; `values` are those computed in
    between. `products` are the multiply-accumulates of one neuron and token.
    """

    count: int
    down: Projection
    places: tuple[tuple[Operand, int], ...]
    reshapes: tuple[ir.Node, ...]
    values: tuple[ir.Value, ...]
    products: int


def ffn_neurons(block: Block) -> Neurons | str:
    """The neurons of an FFN block; why it is not known what belongs to each of them. No weights are read."""
    found = output_projections(block)
    if isinstance(found, str):
        return found
    if block.kind != "ffn" or len(found.parts) != 1:
        return f"it is of kind {block.kind}: only FFN blocks have neurons"
    down = found.parts[0]
    if down.axis != -1:
        return f"{said(down.node)} has its features in another axis than the last"
    walk = _Walk(block, down)
    try:
        walk.follow()
    except UnreadableError as unreadable:
        return str(unreadable)
    products = found.width + sum(up.inputs for up in walk.ups)
    return Neurons(
        down.inputs, down, tuple(walk.places), tuple(walk.reshapes), tuple(walk.values), products
    )  # fmt: skip


@dataclass(eq=False)
class _Walk:
    """The way back from what the last linear reads to the linears before it."""

    block: Block
    down: Projection
    ups: list[Projection] = field(default_factory=list)
    places: list[tuple[Operand, int]] = field(default_factory=list)
    reshapes: list[ir.Node] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)

    def follow(self) -> None:
        own, met, work = set(self.block.nodes), {self.down.node}, [self.down.input]
        while work:
            value = work.pop()
            node = value.producer()
            if node is None or node not in own:
                raise UnreadableError(f"'{value.name}', which its neurons are made of, comes from elsewhere")
            self.values += [one for one in (value,) if one not in self.values]
            if node not in met:
                met.add(node)
                work += self._before(node)
        for value in self.values:
            others = (node for node in value.consumers() if node not in met)
            other = next((node for node in others if not self._asks_other_sizes(value, node)), None)
            if other is not None or value.is_graph_output():
                reader = "the model's output" if other is None else said(other)
                raise UnreadableError(f"'{value.name}', of its neurons, is also read by {reader}")

    def _before(self, node: ir.Node) -> Iterator[ir.Value]:
        """What a node reads that is computed of the neurons; what it has stored of them joins `places`."""
        if node.op_type in _LINEARS:
            self._take_linear(node)
        elif node.op_type == "Reshape" and self._take_reshape(node):
            yield _given(node, 0)
        elif node.op_type in POINTWISE - {"Reshape"}:
            for index, value in enumerate(node.inputs):
                if value is not None and not self._take_stored(node, index):
                    yield value
        else:
            raise UnreadableError(f"{said(node)} stands between its linears: its neurons are not apart there")

    def _take_linear(self, node: ir.Node) -> None:
        up = projection(node)
        if up.width != self.down.inputs:
            raise UnreadableError(f"{said(node)} puts out {up.width} features for {self.down.inputs} neurons")
        self.ups.append(up)
        self.places.append((up.stored, up.output_axis))
        if len(node.inputs) > 2 and node.inputs[2] is not None and not self._take_stored(node, 2):
            raise UnreadableError(f"the bias of {said(node)} is not stored")

    def _take_stored(self, node: ir.Node, index: int) -> bool:
        """Whether an operand is stored: one number for all neurons, or one for each."""
        value = _given(node, index)
        tensor = tensor_of(value)
        if tensor is not None and tensor.size == 1:
            return True
        found = read_operand(node, index)
        if isinstance(found, str):
            return False
        size = math.prod(found.shape)
        if size == 1:
            return True
        if not found.shape or found.shape[-1] != size or size != self.down.inputs:
            raise UnreadableError(f"what {said(node)} reads is of the shape {list(found.shape)}")
        self.places.append((found, len(found.shape) - 1))
        return True

    def _take_reshape(self, node: ir.Node) -> bool:
        """Whether a Reshape leaves the neurons the last axis: it says so, or the last linear needs it."""
        last = _last_entry(node)
        into_down = last is None and all(reader is self.down.node for reader in node.outputs[0].consumers())
        if last == self.down.inputs or into_down:
            self.reshapes.append(node)
        return into_down or last in (self.down.inputs, -1)

    def _asks_other_sizes(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether a node reads the shape of a value and nobody learns the number of neurons by it."""
        if node.op_type != "Shape" or node.attributes:
            return False
        rank = _rank(value)
        return all(
            (rank is not None and _takes_before(reader, rank - 1)) or self._ends_in_reshapes(reader)
            for reader in node.outputs[0].consumers()
        )

    def _ends_in_reshapes(self, node: ir.Node) -> bool:
        """Whether all that is made of a size are the shapes that Reshapes are told anew."""
        work = [node]
        while work:
            one = work.pop()
            if one in self.reshapes:
                continue
            readers = [reader for value in one.outputs for reader in value.consumers()]
            if one.op_type not in _OF_SIZES or not readers:
                return False
            work += readers
        return True


def keep_neurons(
    block: Block,
    found: Neurons,
    architecture: Architecture,
    kept: NDArray[np.int64],
    down: Floats | None = None,
) -> None:
    """Let the neurons that are not `kept` go; `down` [kept, d] is the last linear's weight then, if given.

    Others that read the same stored weights keep them.
    """
    home = architecture.model.graph
    weight = found.down.weight[kept] if down is None else down
    for number, (place, axis) in enumerate(found.places):
        place.write(np.take(place.read(), kept, axis), home, f"{block.id}/neurons.{number}")
    found.down.stored.write(
        found.down.turned(weight / np.float32(found.down.alpha)), home, f"{block.id}/down"
    )  # fmt: skip
    for node in found.reshapes:
        _tell_count(node, len(kept))
    for value in found.values:
        if value.shape is not None and value.shape.rank() and value.shape[-1] == found.count:
            value.shape = ir.Shape([*value.shape[:-1], len(kept)])


def neuron_macs(block: Block, found: Neurons, count: int) -> Macs:
    """The multiply-accumulates of so many of a block's neurons, for every token."""
    return product(count * found.products, block.tokens)


def _last_entry(node: ir.Node) -> int | None:
    """The last size that a Reshape asks for, where it is stored."""
    shape = _given(node, 1)
    tensor, maker = tensor_of(shape), shape.producer()
    if tensor is None and maker is not None and maker.op_type == "Concat":
        tensor = tensor_of(_given(maker, len(maker.inputs) - 1))
    return int(tensor.numpy().reshape(-1)[-1]) if tensor is not None and tensor.size else None


def _rank(value: ir.Value) -> int | None:
    """How many axes a value has, as far as nodes close before it tell."""
    while value.shape is None:
        node = value.producer()
        if node is None or (node.op_type != "Reshape" and node.op_type not in POINTWISE):
            return None
        if node.op_type == "Reshape":
            tensor, maker = tensor_of(_given(node, 1)), _given(node, 1).producer()
            if tensor is not None:
                return int(tensor.size)
            return len(maker.inputs) if maker is not None and maker.op_type == "Concat" else None
        dynamic = [one for one in node.inputs if one is not None and tensor_of(one) is None]
        if not dynamic:
            return None
        value = dynamic[0]
    return value.shape.rank()


def _takes_before(node: ir.Node, limit: int) -> bool:
    """Whether a Gather takes entries before one alone."""
    tensor = tensor_of(_given(node, 1)) if node.op_type == "Gather" else None
    return tensor is not None and all(0 <= int(one) < limit for one in tensor.numpy().reshape(-1))


def _tell_count(node: ir.Node, count: int) -> None:
    """Let a Reshape ask for another last size; whoever else reads its shape is not touched."""
    shape = _given(node, 1)
    tensor, maker, nodes = tensor_of(shape), shape.producer(), list[ir.Node]()
    if tensor is not None:
        sizes = tensor.numpy().reshape(-1).astype(np.int64)
        new = constant(np.array([*sizes[:-1], count], np.int64), nodes)
    else:
        assert maker is not None
        last = constant(np.array([count], np.int64), nodes)
        nodes.append(ir.node("Concat", [*maker.inputs[:-1], last], {"axis": 0}))
        new = nodes[-1].outputs[0]
    graph_of(node).insert_before(node, nodes)
    node.replace_input_with(1, new)


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
