"""What can stand in the place of a block: one linear map of what it reads, or a constant.

A linear in the place of an attention: Erdogan et al., 2025 (NBL), https://arxiv.org/abs/2505.21077.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.architecture import Architecture, Block, Norm
from graphprune.constants import constant_shape
from graphprune.costs import product
from graphprune.dataflow import TRANSPARENT
from graphprune.errors import EditError
from graphprune.macs import Macs
from graphprune.surgery.drop import drop_block
from graphprune.surgery.fitted import Floats, output_projections, said
from graphprune.surgery.folding import mark_constant
from graphprune.surgery.operands import stored_in
from graphprune.surgery.stored import storage
from graphprune.surgery.values import current, graph_of, sort

_NORM_KINDS = {"layer", "rms"}


@dataclass(frozen=True, eq=False)
class Place:
    """Where something can stand in for a block: `reads` is what a linear there reads, [..., width].

    That is the output of the block's own pre-norm, where it has one, else (or if so asked) the stream.
    """

    reads: ir.Value
    width: int
    dtype: ir.DataType


def place_for(block: Block, *, of_stream: bool = False) -> Place | str:
    """Where a linear (with `of_stream` one that reads the stream) or a constant can stand in for a block.

    Returns why nothing can where that is so.
    """
    if not block.droppable:
        return block.reason
    if block.kind in {"conv", "other"}:
        return f"it is a block of kind {block.kind}: what stands in for one maps each token by itself"
    if storage(block.stream_in) is not None or block.join.op_type == "QLinearAdd":
        return f"its join, {said(block.join)}, adds quantized values"
    found = output_projections(block)
    if not isinstance(found, str) and found.parts[0].axis != -1:
        return "its features are not the last axis of the stream"
    pre = [norm for norm in block.norms if norm.role == "pre"]
    widths = {size for norm in block.norms if _is_of_stream(norm, block) and (size := _width(norm))}
    widths |= set() if isinstance(found, str) else {found.width}
    if len(widths) != 1:
        return "it is not known to be along the last axis that its stream has its features"
    if len(pre) == 1 and not _is_of_stream(pre[0], block):
        return f"its norm, at {said(pre[0].nodes[-1])}, reads the stream in another layout"
    reads = pre[0].output if len(pre) == 1 and not of_stream else block.stream_in
    dtype = next((v.dtype for v in (block.stream_in, block.join.outputs[0]) if v.dtype is not None), None)
    return Place(reads, widths.pop(), dtype or _type_written(block))


def macs_of(block: Block, factors: Sequence[Floats]) -> Macs:
    """The multiply-accumulates of the factors of a linear in a block's place, one run for every token."""
    return product(sum(factor.size for factor in factors), block.tokens) if factors else Macs()


def replace_block(
    block: Block,
    architecture: Architecture,
    place: Place,
    factors: Sequence[Floats],
    constant: Floats | None,
    *,
    keep_caches: bool = False,
) -> None:
    """Let `reads @ factors[0] @ … + constant` be added to the stream instead of what a block computes.

    Without factors the constant alone is added. Norms after the join stay, norms before it where they are
    read. Raises `EditError` where the block's join does not add the stream any more.
    """
    home, stream = architecture.model.graph, current(block.stream_in)
    node, index = _joint(block, stream)
    nodes: list[ir.Node] = []
    added = _as_type(current(place.reads), place.dtype, nodes) if factors else None
    for number, factor in enumerate(factors):
        assert added is not None
        name = f"{block.id}/linear" + (f".{number}" if len(factors) > 1 else "")
        nodes.append(ir.node("MatMul", [added, stored_in(home, name, factor, place.dtype)]))
        added = nodes[-1].outputs[0]
    if constant is not None and constant.any():
        held = stored_in(home, f"{block.id}/constant", constant, place.dtype)
        nodes.append(ir.node("Add", [added if added is not None else stream, held]))
        if added is None:
            mark_constant(nodes[-1])
        added = nodes[-1].outputs[0]
    if factors and added is not None:
        nodes.append(ir.node("Add", [stream, added]))
    for number, one in enumerate(nodes):
        one.name = f"{block.id}/instead/{number}_{one.op_type}"
        one.outputs[0].dtype = place.dtype
    if nodes:
        nodes[-1].outputs[0].shape = stream.shape
        graph_of(node).insert_before(node, nodes)
        node.replace_input_with(index, nodes[-1].outputs[0])
    drop_block(block, architecture, keep_caches=keep_caches)
    sort(graph_of(node) if node.graph is not None else architecture.stack_of(block).graph)


def _joint(block: Block, stream: ir.Value) -> tuple[ir.Node, int]:
    """The operand at which the stream comes into a block's join."""
    for node in (block.join, *block.sums):
        for index, value in enumerate(node.inputs):
            if value is not None and node.graph is not None and _first_name(value) is _first_name(stream):
                return node, index
    raise EditError(f"{block.id}: its join, {said(block.join)}, does not add the stream as it is any more")


def _first_name(value: ir.Value) -> ir.Value:
    """A value before it was passed on under other names or types."""
    while (
        (maker := value.producer()) is not None
        and maker.op_type in TRANSPARENT
        and maker.inputs[0] is not None
    ):
        value = maker.inputs[0]
    return value


def _is_of_stream(norm: Norm, block: Block) -> bool:
    """Whether a norm reads the stream at a block's join, or writes to it, just as it is laid out there."""
    if norm.role not in {"pre", "post", "branch_post"} or norm.kind not in _NORM_KINDS:
        return False
    if norm.role == "branch_post":
        terms = {_first_name(term) for branch in block.branches for term in branch.terms}
        return _first_name(norm.output) in terms
    if norm.fused_join or norm.input is None:
        return True
    ends = {_first_name(block.stream_in), *map(_first_name, block.join.outputs)}
    return _first_name(norm.input) in ends


def _width(norm: Norm) -> int:
    """How many features a norm over the last axis has; 0 where that is not known."""
    shape = constant_shape(norm.scale)
    return shape[-1] if shape and math.prod(shape) == shape[-1] else 0


def _type_written(block: Block) -> ir.DataType:
    """The type of what a block's linears write, where the stream itself does not say its type."""
    found = output_projections(block)
    if not isinstance(found, str):
        return found.parts[0].stored.read_type
    scales = (norm.scale.dtype for norm in block.norms if norm.scale is not None)
    return next((kind for kind in scales if kind is not None), ir.DataType.FLOAT)


def _as_type(value: ir.Value, dtype: ir.DataType, nodes: list[ir.Node]) -> ir.Value:
    if value.dtype in {None, dtype}:
        return value
    nodes.append(ir.node("Cast", [value], {"to": dtype}))
    return nodes[-1].outputs[0]
