"""What a graph says about its inputs: how large an id may be, how large an image must be.

Read off the structure: an integer that ends up as the index of a Gather is smaller than the
table; an image that becomes patches fits the table of their positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.dataflow import CONVOLUTIONS, weight_indices

# Ops whose first input goes to the output with its values unchanged.
_KEEPS_VALUES = frozenset(
    ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Tile")
)
# Ops that look a row up, with the inputs that are the index and the table.
_LOOKUPS = {
    "Gather": ((1, 0),),
    "GatherBlockQuantized": ((1, 0),),
    "EmbedLayerNormalization": ((0, 2), (1, 4), (8, 3)),
}
_SEARCHES = {
    "GreedySearch": ("ids", "max", "min", "one", "mask", "mask", "mask"),
    "Sampling": ("ids", "max", "min", "one", "mask", "mask", "mask", "zero", "one"),
    "BeamSearch": ("ids", "max", "min", "one", "one", "one", "one", "mask", "mask", "mask", "ids"),
}
# Where the way of an image into the graph ends.
_STOPS = frozenset(("MatMul", "Gemm", "Softmax", "Shape", "MatMulInteger", "MatMulNBits", "Attention"))


@dataclass(frozen=True)
class Hint:
    """What the uses of one graph input tell about it; it does not hold on to the graph.

    `limit` is the number of rows in the smallest table that the input indexes, None without
    one. `search` is what the input means to a GreedySearch, BeamSearch or Sampling node
    (contrib ops). The rest is for images and audio: `channels` that the first convolution
    takes (None where there is none), `stride` by which the convolutions shrink the last axis
    together, `positions` in the table that is added to what they put out. `head` is the size of
    the heads of the fused attention whose cache the input is.
    """

    limit: int | None = None
    search: str | None = None
    channels: int | None = None
    stride: int = 1
    positions: int | None = None
    head: int | None = None


def required_inputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """The inputs that a caller must give, by name: initializers that are listed as inputs are not."""
    return {value.name or "": value for value in graph.inputs if value.name not in graph.initializers}


def read_hint(value: ir.Value) -> Hint:
    """Follow the uses of a graph input."""
    way = list(dict.fromkeys(_way_in(value)))
    convolutions = [node for node in way if node.op_type in CONVOLUTIONS]
    weights = [
        (node, shape) for node in convolutions if (shape := _shape(node.inputs[weight_indices(node)[0]]))
    ]
    limit = min(_limits(value, set()), default=None)
    if not weights:
        return Hint(limit, _search(value), head=_head(value))
    (first, shape), (_, last) = weights[0], weights[-1]
    return Hint(
        limit,
        _search(value),
        channels=shape[1] * _int(first, "group", 1),
        stride=math.prod(_ints(node, "strides", 1)[-1] for node, _ in weights),
        positions=_positions(way, width=last[0]),
    )


def tables(value: ir.Value) -> Iterator[ir.Value]:
    """The tables in which `value` itself, or a reshaped copy of it, says the rows."""
    for node, index in value.uses():
        yield from (
            found
            for position, table in _LOOKUPS.get(node.op_type, ())
            if index == position and (found := node.inputs[table]) is not None
        )
        if node.op_type in _KEEPS_VALUES and index == 0:
            yield from tables(node.outputs[0])


def _positions(way: list[ir.Node], width: int) -> int | None:
    """The rows of the first table [.., rows, width] that is added on the way."""
    for node in way:
        for operand in node.inputs if node.op_type in ("Add", "QLinearAdd") else ():
            table = _shape(operand)
            if table and 2 <= len(table) <= 3 and table[-1] == width and table[-2] > 1:
                return table[-2]
    return None


def _head(value: ir.Value) -> int | None:
    """The size of the heads of the GroupQueryAttention that takes `value` as past keys or values."""
    for node, index in value.uses():
        result = node.outputs[0].shape
        width = result[-1] if result is not None and len(result) == 3 else None
        if node.op_type == "GroupQueryAttention" and index in (3, 4) and isinstance(width, int):
            return width // _int(node, "num_heads", 1)
    return None


def _search(value: ir.Value) -> str | None:
    for node, index in value.uses():
        meanings = _SEARCHES.get(node.op_type, ())
        if index < len(meanings):
            return meanings[index]
    return None


def _limits(value: ir.Value, seen: set[ir.Value]) -> Iterator[int]:
    """The sizes of all tables that `value`, or a reshaped copy of it, is an index of."""
    if value in seen:
        return
    seen.add(value)
    for node, index in value.uses():
        for position, table in _LOOKUPS.get(node.op_type, ()):
            rows = _rows(node.inputs[table], _int(node, "axis", 0)) if index == position else None
            if rows:
                yield rows
        if node.op_type in _SEARCHES and index == 0:
            yield from _search_limits(node, seen)
        elif node.op_type in _KEEPS_VALUES or node.op_type == "Gather":
            yield from _limits(node.outputs[0], seen) if index == 0 else ()
        elif node.op_type in ("Concat", "Where"):
            yield from _limits(node.outputs[0], seen)
        elif node.op_type == "Add" and (offset := _number(node.inputs[1 - index])) is not None:
            yield from (rows - offset for rows in _limits(node.outputs[0], seen))


def _number(value: ir.Value | None) -> int | None:
    """The one number that a constant holds."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def _search_limits(node: ir.Node, seen: set[ir.Value]) -> Iterator[int]:
    vocabulary = _int(node, "vocab_size", -1)
    if vocabulary > 0:
        yield vocabulary
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _limits(attribute.as_graph().inputs[0], seen)


def _way_in(value: ir.Value, limit: int = 200) -> Iterator[ir.Node]:
    """The nodes behind `value`, breadth first, as far as its convolutions and their sums go."""
    queue, seen = [value], {value}
    for current in queue:
        for node, _ in current.uses():
            if node.op_type in _STOPS:
                continue
            yield node
            fresh = [output for output in node.outputs if output not in seen]
            seen.update(fresh)
            queue += fresh if len(queue) < limit else []


def _rows(value: ir.Value | None, axis: int = 0) -> int | None:
    shape = _shape(value)
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a weight, seen through the ops that leave it as it is."""
    while value is not None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tuple(int(dim) for dim in tensor.shape.numpy())
        node = value.producer()
        if node is not None and node.op_type == "Gather" and _int(node, "axis", 0) == 0:
            table, index = (_shape(operand) for operand in node.inputs)
            return None if table is None or index is None else (*index, *table[1:])
        if node is None or node.op_type not in ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear"):
            return None
        value = node.inputs[0]
    return None


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _ints(node: ir.Node, name: str, default: int) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return (default,) if attribute is None else tuple(attribute.as_ints())
