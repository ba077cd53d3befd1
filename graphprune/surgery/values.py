"""The smallest changes: who reads what, and which nodes are in the graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.dataflow import SHAPE_OPS
from graphprune.errors import EditError
from graphprune.surgery.stored import brought_to, read_as_stored, storage

# Edits leave notes for later edits in `meta`, under keys that begin so; the sweep at the end takes them away.
NOTES = "graphprune."
# Where a node that edits have taken apart keeps the places at which its operands are read now.
_MOVED = f"{NOTES}moved"
# Where a value that edits have replaced keeps the one in its place.
_REPLACED = f"{NOTES}replaced_by"


def current(value: ir.Value) -> ir.Value:
    """The value that now stands where `value` stood when the architecture was read."""
    while _REPLACED in value.meta:
        value = value.meta[_REPLACED]
    return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of `old` read `new`, graph outputs included; these keep name, type and shape.

    Where the two are quantized with other scales, or one of them is not quantized, each reader gets
    what it can read; a value that was quantized once is not quantized again.
    """
    if old is new:
        return
    old.meta[_REPLACED] = new
    brought: list[ir.Value] = []
    for use in tuple(old.uses()):
        if not _read_stored(use.node, use.idx, old, new):
            brought = brought or [_as_stored(old, new)]
            use.node.replace_input_with(use.idx, new if use.node.op_type in SHAPE_OPS else brought[0])
    graph = old.graph
    if graph is None or not old.is_graph_output():
        return
    new = brought[0] if brought else _as_stored(old, new)
    producer = new.producer()
    own = producer is not None and producer.graph is graph and not new.is_graph_output()
    result = new if own else _identity_at_end(graph, new)
    name = old.name
    old.name = f"{name}_dropped"
    result.name, result.type, result.shape = name, old.type, old.shape
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = result


def _read_stored(node: ir.Node, index: int, old: ir.Value, new: ir.Value) -> bool:
    """Let a reader of `old` read `new` as it is stored, with its scale; False where it does not read it so.

    A QuantizeLinear that would quantize again what was dequantized is passed by, and a
    DequantizeLinear that would read a real number.
    """
    maker, stored = new.producer(), storage(new)
    if node.op_type == "QuantizeLinear" and index == 0:
        dequantized = stored is None and maker is not None and maker.op_type == "DequantizeLinear"
        source = maker.inputs[0] if dequantized and maker is not None else new
        if source is None or storage(source) is None:
            return False
        replace_value(node.outputs[0], source)
        return True
    if stored is None and node.op_type == "DequantizeLinear" and index == 0 and storage(old) is not None:
        replace_value(node.outputs[0], new)
        return True
    return stored is not None and read_as_stored(node, index, new, stored)


def _as_stored(old: ir.Value, new: ir.Value) -> ir.Value:
    """`new` as `old` was stored; the nodes that make it so stand where `old` was made."""
    value, nodes = brought_to(new, storage(old))
    maker = old.producer()
    if nodes and maker is not None:
        graph_of(maker).insert_after(maker, nodes)
        sort(graph_of(maker))
    return value


def _identity_at_end(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.node("Identity", [value])
    graph.append(node)
    return node.outputs[0]


def detached(node: ir.Node) -> bool:
    """Whether an earlier edit has taken a node out of its graph."""
    return node.graph is None


def note_moved(node: ir.Node, parts: Iterable[ir.Node]) -> None:
    """Remember that `parts` stand where `node` stood, and read what it read."""
    places = {value: (part, index) for part in parts for index, value in enumerate(part.inputs)}
    node.meta[_MOVED] = {value: places[value] for value in node.inputs if value in places}


def place_of(value: ir.Value, node: ir.Node, index: int) -> tuple[ir.Node, int] | None:
    """Where `value`, operand `index` of `node`, is read now; None where it is not read any more."""
    while detached(node):
        place = node.meta.get(_MOVED, {}).get(value)
        if place is None:
            return None
        node, index = place
    return (node, index) if index < len(node.inputs) and node.inputs[index] is not None else None


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in. Raises `EditError` where there is none."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise EditError(f"node '{node.name}' ({node.op_type}) is in no graph that can be changed")
    return graph


def sort(graph: ir.Graph) -> None:
    """Put nodes after what they read. Raises `EditError` where that goes in a circle."""
    try:
        graph.sort()
    except ValueError as error:
        raise EditError(f"graph '{graph.name}': a node would read what is computed from it") from error


def remove_unread(node: ir.Node) -> None:
    """Take a node out whose outputs nobody reads any more."""
    if not any(output.uses() or output.is_graph_output() for output in node.outputs):
        graph_of(node).remove(node, safe=True)


def constant(array: npt.NDArray[np.generic], nodes: list[ir.Node]) -> ir.Value:
    """A Constant node, appended to `nodes`."""
    node = ir.node("Constant", [], {"value": ir.tensor(array)})
    node.outputs[0].dtype = ir.DataType.from_numpy(array.dtype)
    nodes.append(node)
    return node.outputs[0]
