"""Taking operands out of sums: plain, variadic, quantized, or fused with a norm or a convolution."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from graphprune.architecture import Block, Branch, Norm
from graphprune.dataflow import SKIP_NORMS, SUMMING_CONVS, TRANSPARENT, weight_indices
from graphprune.errors import EditError
from graphprune.surgery.norms import epsilon_of, norm_nodes
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.stored import storage
from graphprune.surgery.values import (
    NOTES,
    current,
    detached,
    graph_of,
    note_moved,
    remove_unread,
    replace_value,
)

# Marks sums that surgery itself has put in place of others.
_SUM = f"{NOTES}sum"
# Where a fused sum-and-norm that was taken apart keeps its sum.
_SPLIT = f"{NOTES}split"


def drop_branch(branch: Branch, block: Block) -> None:
    """Take a branch out of its join; the stream (and the other branch of a parallel block) passes on."""
    if not branch.terms:
        _drop_fused_summand(block.join)
    for term in branch.terms:
        drop_term(term, block.sums)
    release_shapes(branch.nodes, block)


def drop_term(term: ir.Value, sums: Collection[ir.Node], *, is_branch: bool = True) -> None:
    """Take `term` out of the sum that the add-like nodes `sums` make.

    The bias that a fused sum adds belongs to the branch: it goes with it, and stays with it where
    `term` is the stream.
    """
    for node, index in [*_adders(current(term), sums)]:
        if node.op_type in SKIP_NORMS:
            node = split_join(node, index if is_branch else 1 - index)[0]
        if node.op_type == "Sum" and len(node.inputs) > 2:
            _drop_summand(node, index)
            continue
        other = _other_operand(node, index)
        replace_value(node.outputs[0], other)
        remove_unread(node)


def _adders(value: ir.Value, sums: Collection[ir.Node]) -> Iterator[tuple[ir.Node, int]]:
    """The sums that read a value, or another name or type of it: with the index of that operand."""
    while (
        (maker := value.producer()) is not None
        and maker.op_type in TRANSPARENT
        and maker.inputs[0] is not None
    ):
        value = maker.inputs[0]
    work = [value]
    for one in work:
        for use in one.uses():
            if detached(use.node):
                continue
            if use.node in sums or use.node.meta.get(_SUM):
                yield use.node, use.idx
            elif use.node.op_type in TRANSPARENT and use.idx == 0:
                work.append(use.node.outputs[0])


def _drop_summand(node: ir.Node, index: int) -> None:
    inputs = [v for i, v in enumerate(node.inputs) if i != index]
    new = ir.node("Sum", inputs, name=node.name)
    new.meta[_SUM] = True
    graph_of(node).insert_after(node, new)
    replace_value(node.outputs[0], new.outputs[0])
    remove_unread(node)


def _other_operand(node: ir.Node, index: int) -> ir.Value:
    """What is left of a sum of two; of quantized ones as it is stored."""
    if node.op_type == "QLinearAdd":
        return other_quantized(node, index)
    others = [v for i, v in enumerate(node.inputs[:2]) if i != index]
    if node.op_type == "BiasAdd":
        others = [node.inputs[2 if index == 0 else 0]]
    if len(others) != 1 or others[0] is None:
        raise EditError(f"node '{node.name}' ({node.op_type}) has no single other operand to keep")
    return others[0]


def other_quantized(node: ir.Node, index: int) -> ir.Value:
    """The other operand of a QLinearAdd than the one at `index`: as a real number where it is not data."""
    value, scale, zero = node.inputs[3 - index : 6 - index]
    assert value is not None
    if storage(value) is not None:
        return value
    back = ir.node("DequantizeLinear", [value, scale, zero])
    graph_of(node).insert_before(node, back)
    return back.outputs[0]


def _drop_fused_summand(node: ir.Node) -> None:
    """A convolution (or Gemm) that adds the stream to its result becomes the stream, activated."""
    if detached(node):
        return
    index = 2 if node.op_type == "Gemm" else SUMMING_CONVS[node.op_type]
    stream = node.inputs[index]
    assert stream is not None
    activation = node.attributes.get("activation")
    if activation is not None and activation.as_string():
        name = activation.as_string()
        if name not in {"Relu", "Sigmoid", "Tanh"}:
            raise EditError(
                f"node '{node.name}' ({node.op_type}): its fused activation {name} cannot be kept alone"
            )
        new = ir.node(name, [stream])
        graph_of(node).insert_after(node, new)
        stream = new.outputs[0]
    replace_value(node.outputs[0], stream)
    remove_unread(node)


def split_join(node: ir.Node, branch: int | None = None) -> tuple[ir.Node, ir.Value]:
    """Replace a SkipLayerNormalization by an Add and a norm; returns the Add and what the norm puts out.

    A bias is added to operand `branch` alone: if not given, to the one that comes out of a linear.
    """
    graph = graph_of(node)
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    bias_index = 3 if simplified else 4
    bias = node.inputs[bias_index] if len(node.inputs) > bias_index else None
    nodes: list[ir.Node] = []
    operands = list(node.inputs[:2])
    if bias is not None:
        branch = _branch_operand(node) if branch is None else branch
        nodes.append(ir.node("Add", [operands[branch], bias], name=f"{node.name}_bias"))
        operands[branch] = nodes[-1].outputs[0]
    add = ir.node("Add", operands, name=f"{node.name}_sum")
    add.meta[_SUM] = True
    add.outputs[0].type, add.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    beta = None if simplified else (node.inputs[3] if len(node.inputs) > 3 else None)
    norm = norm_nodes(add.outputs[0], node.inputs[2], beta, epsilon_of(node), graph, rms=simplified)
    graph.insert_after(node, [*nodes, add, *norm])
    note_moved(node, [*nodes, *norm])
    node.meta[_SPLIT] = add
    replace_value(node.outputs[0], norm[-1].outputs[0])
    if len(node.outputs) > 3:
        replace_value(node.outputs[3], add.outputs[0])
    remove_unread(node)
    return add, norm[-1].outputs[0]


def sum_of(node: ir.Node) -> ir.Value:
    """The sum that an add-like node makes; a fused sum-and-norm is taken apart for it, if it is not yet."""
    if node.op_type not in SKIP_NORMS:
        return node.outputs[0]
    add: ir.Node = node.meta[_SPLIT] if detached(node) else split_join(node)[0]
    return add.outputs[0]


def _branch_operand(node: ir.Node) -> int:
    """The operand of a fused sum to which its bias belongs: it was fused from behind a linear."""
    linear = [bool(v is not None and (p := v.producer()) and weight_indices(p)) for v in node.inputs[:2]]
    return 0 if linear == [True, False] else 1


def bypass_norm(norm: Norm) -> None:
    """Let a norm pass on what it would normalize."""
    node = norm.nodes[-1]
    if norm.fused_join:
        total = sum_of(node)  # before the norm is asked for: taking a fused one apart replaces it
        replace_value(current(norm.output), current(total))
    elif norm.input is not None:
        replace_value(current(norm.output), current(norm.input))
    else:
        raise EditError(f"the norm at node '{node.name}' ({node.op_type}) has no input of its own to pass on")
