"""The smallest changes: who reads what, and which nodes are in the graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.errors import EditError

# Where a node that edits have taken apart keeps the places at which its operands are read now.
_MOVED = "graphprune.moved"
# Where a value that edits have replaced keeps the one in its place.
_REPLACED = "graphprune.replaced_by"


def current(value: ir.Value) -> ir.Value:
    """The value that now stands where `value` stood when the architecture was read."""
    while _REPLACED in value.meta:
        value = value.meta[_REPLACED]
    return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of `old` read `new`, graph outputs included; these keep name, type and shape."""
    if old is new:
        return
    old.meta[_REPLACED] = new
    for use in tuple(old.uses()):
        use.node.replace_input_with(use.idx, new)
    graph = old.graph
    if graph is None or not old.is_graph_output():
        return
    producer = new.producer()
    own = producer is not None and producer.graph is graph and not new.is_graph_output()
    result = new if own else _identity_at_end(graph, new)
    name = old.name
    old.name = f"{name}_dropped"
    result.name, result.type, result.shape = name, old.type, old.shape
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = result


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
