"""Quantized values: the scale and zero point that they are stored with, and one read in place of another.

Quantization: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html; the QLinear operators are
ONNX Runtime's (ContribOperators.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphprune.constants import is_scalar

# Ops that put quantized values out: (op type → input index of the scale; the zero point follows).
_SCALES = {
    "QuantizeLinear": 1, "QLinearAdd": 6, "QLinearMul": 6, "QLinearMatMul": 6, "QLinearConv": 6, "QGemm": 7,
    "QLinearSoftmax": 3, "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearReduceMean": 3,
    "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3, "QLinearConcat": 0, "QLinearWhere": 7,
}  # fmt: skip
# Ops that read a value with its scale and zero point beside it, at these indices.
_OPERANDS = {
    "DequantizeLinear": (0,), "QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QLinearMatMul": (0, 3),
    "QLinearSoftmax": (0,), "QLinearSigmoid": (0,), "QLinearLeakyRelu": (0,), "QLinearReduceMean": (0,),
}  # fmt: skip
# Ops that only move what is stored.
_MOVES = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Split",
    "Expand", "MaxPool",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stored:
    """How a quantized value is stored."""

    scale: ir.Value
    zero: ir.Value | None

    def same(self, other: Stored | None) -> bool:
        """Whether a value stored so can be read as one that is stored like `other`."""
        return other is not None and self.scale is other.scale and self.zero is other.zero


def storage(value: ir.Value) -> Stored | None:
    """How a value is stored, with one scale for all of it; None for a real number."""
    if value.is_initializer():
        return None
    moved, node = value, value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        moved, node = node.inputs[0], node.inputs[0].producer()
    if node is not None:
        return _read(node, _SCALES[node.op_type]) if node.op_type in _SCALES else None
    uses = (use for use in value.uses() if use.idx in _OPERANDS.get(use.node.op_type, ()))
    use = next(uses, None) if moved is not value else None  # rows of a quantized table
    return None if use is None else _read(use.node, use.idx + 1)


def _read(node: ir.Node, place: int) -> Stored | None:
    scale = node.inputs[place] if place < len(node.inputs) else None
    zero = node.inputs[place + 1] if place + 1 < len(node.inputs) else None
    return Stored(scale, zero) if scale is not None and is_scalar(scale) else None


def read_as_stored(node: ir.Node, index: int, value: ir.Value, stored: Stored) -> bool:
    """Let a node read `value` with its own scale and zero point at operand `index`, if it can."""
    if index not in _OPERANDS.get(node.op_type, ()) or len(node.inputs) < index + 3 or stored.zero is None:
        return False
    zero = node.inputs[index + 2]
    if zero is None or zero.dtype is None or zero.dtype != stored.zero.dtype:
        return False
    for place, one in enumerate((value, stored.scale, stored.zero), start=index):
        node.replace_input_with(place, one)
    return True


def brought_to(value: ir.Value, stored: Stored | None) -> tuple[ir.Value, list[ir.Node]]:
    """`value` stored like that, or as a real number, and the nodes that make it so."""
    own = storage(value)
    nodes: list[ir.Node] = []
    if own is not None and not own.same(stored):
        nodes.append(ir.node("DequantizeLinear", [value, own.scale, own.zero]))
        value = nodes[-1].outputs[0]
        own = None
    if stored is not None and own is None:
        nodes.append(ir.node("QuantizeLinear", [value, stored.scale, stored.zero]))
        value = nodes[-1].outputs[0]
    return value, nodes
