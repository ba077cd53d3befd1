"""Constants without their data: the shape of a weight, and the tensor that it is made from.

Exporters hide weights behind `Constant` and `ConstantOfShape` nodes, transposes, casts and
dequantization; what they hold is found here without reading a byte of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from graphprune.dataflow import ELEMENTWISE

RENAMES = {"Identity", "Cast", "CastLike", "DequantizeLinear", "Dropout"}
# How many nodes that compute a constant are followed.
REACH = 6
SMALL = 16


def constant_shape(value: ir.Value | None, reach: int = REACH) -> tuple[int, ...] | None:
    """The shape of a constant, where it is known without computing anything."""
    if value is None or not reach:
        return None
    known = _stated_shape(value)
    node = value.producer()
    if known is not None or node is None:
        return known
    if node.op_type in RENAMES:
        return constant_shape(node.inputs[0], reach - 1)
    if node.op_type == "Transpose":
        return _transposed(node, constant_shape(node.inputs[0], reach - 1))
    if node.op_type == "ConstantOfShape":
        sizes = small_integers(node.inputs[0])
        return None if sizes is None else tuple(sizes)
    if node.op_type in ELEMENTWISE:
        return _widest([constant_shape(v, reach - 1) for v in node.inputs])
    return None


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a `Constant` node, unread."""
    node = value.producer()
    if value.const_value is not None or node is None or node.op_type != "Constant":
        return value.const_value
    attribute = node.attributes.get("value")
    if attribute is None:
        return ir.convenience.get_const_tensor(value)  # value_float, value_ints, …
    tensor: ir.TensorProtocol = attribute.value
    return tensor


def _stated_shape(value: ir.Value) -> tuple[int, ...] | None:
    tensor = tensor_of(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    if value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape if isinstance(dim, int))
    return dims if len(dims) == len(value.shape) else None


def _widest(shapes: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = [shape for shape in shapes if shape is not None]
    return max(known, key=math.prod) if len(known) == len(shapes) else None


def _transposed(node: ir.Node, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    order = node.attributes.get("perm")
    if order is None:
        return shape[::-1]
    axes = order.as_ints()
    return tuple(shape[axis] for axis in axes) if sorted(axes) == list(range(len(shape))) else None


def origins(value: ir.Value, reach: int = REACH) -> Iterator[tuple[ir.Value, bool]]:
    """The constants that a constant is computed from, and whether they are dequantized on the way."""
    node = value.producer()
    if node is None or not node.inputs or not reach or node.op_type == "ConstantOfShape":
        yield value, False
        return
    for index, before in enumerate(node.inputs):
        first_only = node.op_type not in ELEMENTWISE and node.op_type != "Concat"
        if before is not None and not (index and first_only):
            for origin, dequantized in origins(before, reach - 1):
                yield origin, dequantized or node.op_type == "DequantizeLinear"


def constant_type(value: ir.Value) -> ir.DataType | None:
    """The element type of a constant; that of `Constant` and `ConstantOfShape` nodes is often not stated."""
    if value.dtype is not None:
        return value.dtype
    tensor, node = tensor_of(value), value.producer()
    if tensor is None and node is not None and node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        tensor = attribute.value if attribute is not None else None
        return ir.DataType.FLOAT if tensor is None else tensor.dtype
    return None if tensor is None else tensor.dtype


def small_integers(value: ir.Value | None) -> list[int] | None:
    """The numbers in a constant of a few elements (a shape, axes, sizes), or None."""
    tensor = tensor_of(value) if value is not None else None
    return None if tensor is None or tensor.size > SMALL else [int(n) for n in tensor.numpy().reshape(-1)]


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, or None."""
    tensor = tensor_of(value) if value is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def is_vector(value: ir.Value | None) -> bool:
    """Whether a constant has exactly one axis longer than one (unknown shapes count as vectors)."""
    shape = constant_shape(value)
    return shape is None or sum(dim != 1 for dim in shape) == 1


def is_scalar(value: ir.Value | None) -> bool:
    """Whether a constant is known to have one element."""
    shape = constant_shape(value)
    return shape is not None and math.prod(shape) == 1
