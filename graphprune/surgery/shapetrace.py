"""Where a size comes from: from an axis of one value back to an axis of an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from graphprune.constants import REACH, constant_shape
from graphprune.dataflow import QUANTIZED_FORMS

Axis = tuple[ir.Value, int]
# Ops whose output has the shape of their operands, broadcast.
ELEMENTWISE = {
    "Identity", "Cast", "Dropout", "Relu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Erf", "Tanh",
    "Sigmoid",
    "Softmax", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "QuantizeLinear",
    "DequantizeLinear", "Neg", "Sqrt", "Exp", "Clip", "Add", "Mul", "Sub", "Div", "Pow", "Where",
    "RotaryEmbedding", "BatchNormalization", "DynamicQuantizeLinear", *QUANTIZED_FORMS,
}  # fmt: skip
MATRIX_PRODUCTS = {
    "MatMul", "FusedMatMul", "MatMulInteger", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QLinearMatMul",
}  # fmt: skip


def trace_axis(value: ir.Value, axis: int, inside: Collection[ir.Node]) -> Axis | int | None:
    """The earliest (value, axis) outside of `inside` that has the size of `value`'s `axis`.

    A size that is always the same comes back as a number; None where the way cannot be followed.
    """
    for _ in range(64):
        node = value.producer()
        if node is None or node not in inside:
            return (value, axis) if _may_have(value, axis) else None
        if node.op_type in ELEMENTWISE:
            return _broadcast(node, axis, inside)
        step = _step(node, value, axis)
        if step is None or isinstance(step, int):
            return step
        value, axis = step
    return None


def _broadcast(node: ir.Node, axis: int, inside: Collection[ir.Node]) -> Axis | int | None:
    """The one source of an axis that the operands of an elementwise op agree on, constants aside.

    An operand that was reduced (the deviation in a norm) leads nowhere and does not count.
    """
    data = dict.fromkeys(v for v in node.inputs if v is not None and not _is_constant(v))
    found = {source for value in data if (source := trace_axis(value, axis, inside)) is not None}
    return found.pop() if len(found) == 1 else None


def _step(node: ir.Node, value: ir.Value, axis: int) -> Axis | int | None:
    kind = node.op_type
    first = node.inputs[0] if node.inputs else None
    if first is None:
        return None
    if kind == "Transpose":
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return (first, perm[axis]) if perm is not None else None
    if kind == "Reshape":
        return _reshaped(node, axis)
    if kind in MATRIX_PRODUCTS:
        return _multiplied(node, value, axis)
    if kind in {"Split", "Slice", "Concat"}:
        return (first, axis) if _untouched(node, axis) else None
    return None


def _may_have(value: ir.Value, axis: int) -> bool:
    """Whether a value is not known to lack an axis: a scale is a single number."""
    return value.shape is None or -len(value.shape) <= axis < len(value.shape)


def _is_constant(value: ir.Value, reach: int = REACH) -> bool:
    """Whether a value is stored, or made of stored ones alone."""
    if ir.convenience.get_const_tensor(value) is not None or value.is_initializer():
        return True
    node = value.producer()
    read = [one for one in node.inputs if one is not None] if node is not None and reach else []
    return bool(read) and all(_is_constant(one, reach - 1) for one in read)


def _reshaped(node: ir.Node, axis: int) -> Axis | int | None:
    """An axis of a reshaped value: a constant, a copied axis, or a size that was read elsewhere."""
    source, target = node.inputs[0], node.inputs[1]
    assert source is not None and target is not None
    constant = ir.convenience.get_const_tensor(target)
    pieces = target.producer()
    if constant is not None:
        sizes: list[Axis | int | None] = [int(s) for s in constant.numpy()]
    elif pieces is not None and pieces.op_type == "Concat":
        sizes = [_read_size(piece) for piece in pieces.inputs]
    else:
        return None
    if not -len(sizes) <= axis < len(sizes):
        return None
    axis %= len(sizes)
    if sizes[axis] == 0:
        return source, axis
    return _inferred(source, sizes, axis) if sizes[axis] == -1 else sizes[axis]


def _inferred(source: ir.Value, sizes: list[Axis | int | None], axis: int) -> Axis | None:
    """The axis that a −1 stands for, where all that follows it only splits the source's last axis."""
    width = 1
    for size in sizes[axis + 1 :]:
        if not isinstance(size, int) or size < 1:
            return None
        width *= size
    last = trace_axis(source, -1, _Everything())
    return (source, axis) if last == width else None


class _Everything(Collection[ir.Node]):
    """All nodes there are: tracing goes on until a size is known."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _read_size(piece: ir.Value | None) -> Axis | int | None:
    """What a one-element shape vector holds: a constant, or Shape(value)[axis]."""
    if piece is None:
        return None
    constant = ir.convenience.get_const_tensor(piece)
    if constant is not None:
        return int(constant.numpy().reshape(-1)[0])
    node = piece.producer()
    while (
        node is not None and node.op_type in {"Unsqueeze", "Reshape", "Cast", "Identity"} and node.inputs[0]
    ):
        node = node.inputs[0].producer()
    if node is None:
        return None
    if node.op_type == "Shape" and "start" in node.attributes and node.inputs[0] is not None:
        return node.inputs[0], node.attributes["start"].as_int()
    shape = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
    index = ir.convenience.get_const_tensor(node.inputs[1]) if shape is not None and node.inputs[1] else None
    if shape is None or index is None or shape.op_type != "Shape" or shape.inputs[0] is None:
        return None
    return shape.inputs[0], int(index.numpy().reshape(-1)[0])


def _multiplied(node: ir.Node, value: ir.Value, axis: int) -> Axis | int | None:
    """All axes but the last come from the left operand, where the right one is a matrix of weights."""
    left, right = node.inputs[0], node.inputs[3 if node.op_type == "QLinearMatMul" else 1]
    if left is None or right is None or not _is_constant(right):
        return None
    rank = value.shape.rank() if value.shape is not None else None
    last = axis == -1 or (rank is not None and axis % rank == rank - 1)
    if last and node.op_type == "MatMulNBits":
        return node.attributes["N"].as_int()
    if last:
        shape = constant_shape(right)
        return shape[-1] if shape else None
    if rank is None and axis >= 2:
        return None
    return left, axis


def _untouched(node: ir.Node, axis: int) -> bool:
    """Whether a Split, Slice or Concat along constant axes leaves this one as it is."""
    if node.op_type == "Slice":
        axes = (
            ir.convenience.get_const_tensor(node.inputs[3])
            if len(node.inputs) > 3 and node.inputs[3]
            else None
        )
        return axes is not None and all(int(a) >= 0 and int(a) != axis for a in axes.numpy().reshape(-1))
    along = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return along != axis and (along >= 0) == (axis >= 0)
