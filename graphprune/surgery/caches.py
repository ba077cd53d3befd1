"""KV caches of blocks that go: their graph inputs and outputs, and the numbers of the others."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphprune.architecture import Block, Cache, Stack
from graphprune.dataflow import SHAPE_OPS, attribute_graphs
from graphprune.surgery.values import sort


def remove_caches(block: Block, stack: Stack, model: ir.Model) -> None:
    """Take a block's KV inputs and outputs out of the signature, and number the stack's others without gaps.

    What else reads such an input (the length of the mask is often taken from the first cache)
    reads the same input of another layer from then on; where there is none, the input stays.
    In a branch of an `If`, whose outputs go by position, the other branch loses the same ones.
    """
    owner = None if stack.graph is model.graph else _owner(model.graph, stack.graph)
    branching = owner if owner is not None and owner.op_type == "If" else None
    if branching is not None:
        _remember_names(branching)
    for cache in block.caches:
        for position, value in enumerate(cache.outputs):
            _lend_shape(value, position, cache, block, stack)
            _remove_output(value, stack.graph, branching)
        for position, value in enumerate(cache.inputs):
            _remove_input(value, position, cache, stack)
    _renumber(stack, branching)


def _lend_shape(value: ir.Value, position: int, cache: Cache, block: Block, stack: Stack) -> None:
    """Who reads the length of what is cached reads it off another layer's cache."""
    others = (
        other.outputs[position]
        for one in stack.blocks
        for other in one.caches
        if one is not block and other.kind == cache.kind and position < len(other.outputs)
    )
    stand_in = next((found for found in others if found.is_graph_output()), None)
    owned = set(block.nodes)
    readers = [use for use in value.uses() if use.node.op_type in SHAPE_OPS and use.node not in owned]
    if stand_in is None or not readers:
        return
    for use in readers:
        use.node.replace_input_with(use.idx, stand_in)
    sort(stack.graph)  # the other layer's cache is computed later


def _alive(cache: Cache) -> bool:
    return any(v.is_graph_input() for v in cache.inputs) or any(v.is_graph_output() for v in cache.outputs)


# Where an If output keeps the name, and a branch's output the position, that it had at first.
_NAMES = "graphprune.output_names"
_POSITION = "graphprune.output_position"


def _remember_names(owner: ir.Node) -> None:
    if _NAMES not in owner.meta:
        owner.meta[_NAMES] = [output.name for output in owner.outputs]
        for branch in _branches(owner):
            for position, output in enumerate(branch.outputs):
                output.meta[_POSITION] = position


def _branches(owner: ir.Node) -> list[ir.Graph]:
    return [graph for attribute in owner.attributes.values() for graph in attribute_graphs(attribute)]


def _remove_output(value: ir.Value, graph: ir.Graph, branching: ir.Node | None) -> None:
    if not value.is_graph_output():
        return
    position = next(i for i, output in enumerate(graph.outputs) if output is value)
    value.name = f"{value.name}_dropped"
    if branching is None:
        graph.outputs.pop(position)
        return
    for branch in _branches(branching):
        branch.outputs.pop(position)
    _drop_node_output(branching, position)


def _owner(within: ir.Graph, graph: ir.Graph) -> ir.Node | None:
    """The node that holds `graph` as an attribute."""
    for node in ir.traversal.RecursiveGraphIterator(within):
        for attribute in node.attributes.values():
            if any(inner is graph for inner in attribute_graphs(attribute)):
                return node
    return None


def _drop_node_output(node: ir.Node, position: int) -> None:
    """Take one output off an If: the later ones move up, in the signature too."""
    gone = node.outputs[position]
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index in reversed([i for i, output in enumerate(graph.outputs) if output is gone]):
        graph.outputs.pop(index)
    for before, after in zip(node.outputs[position:], node.outputs[position + 1 :], strict=False):
        before.name, before.type, before.shape = after.name, after.type, after.shape
        for use in tuple(after.uses()):
            use.node.replace_input_with(use.idx, before)
        for index, output in enumerate(graph.outputs):
            if output is after:
                graph.outputs[index] = before
    node.resize_outputs(len(node.outputs) - 1)


def _remove_input(value: ir.Value, position: int, cache: Cache, stack: Stack) -> None:
    graph = value.graph
    if not isinstance(graph, ir.Graph) or not value.is_graph_input():
        return
    stand_in = next(_counterparts(value, position, cache, stack), None)
    if stand_in is None and any(not _dead(use.node) for use in value.uses()):
        return
    for use in tuple(value.uses()):
        use.node.replace_input_with(use.idx, stand_in)
    graph.inputs.remove(value)


def _counterparts(value: ir.Value, position: int, cache: Cache, stack: Stack) -> Iterator[ir.Value]:
    """The same input of the same kind of cache in other layers."""
    for block in stack.blocks:
        for other in block.caches:
            if other.kind == cache.kind and position < len(other.inputs):
                found = other.inputs[position]
                if found is not value and found.is_graph_input():
                    yield found


def _dead(node: ir.Node) -> bool:
    """Whether nothing that a node computes is read in the end."""
    work, seen = [node], {node}
    while work:
        current = work.pop()
        for output in current.outputs:
            if output.is_graph_output():
                return False
            fresh = [use.node for use in output.uses() if use.node not in seen]
            seen.update(fresh)
            work.extend(fresh)
    return True


def _renumber(stack: Stack, branching: ir.Node | None) -> None:
    """Give the caches that are left the first of the names that there were, in order."""
    for kind in ("self", "cross"):
        caches = [
            [cache for block in layer.blocks for cache in block.caches if cache.kind == kind]
            for layer in stack.layers
        ]
        names = [found for found in caches if found]
        left = [
            found
            for layer, found in zip(stack.layers, caches, strict=True)
            if found and any(_alive(cache) for block in layer.blocks for cache in block.caches)
        ]
        for old, new in zip(left, names, strict=False):
            for cache, named in zip(old, new, strict=False):
                _rename(cache, named)
                if branching is not None:
                    _rename_outputs(branching, stack.graph, cache, named)


def _rename(cache: Cache, named: Cache) -> None:
    for values, names in ((cache.inputs, named.input_names), (cache.outputs, named.output_names)):
        for value, name in zip(values, names, strict=False):
            if value.name != name and (value.is_graph_input() or value.is_graph_output()):
                value.name = name


def _rename_outputs(owner: ir.Node, graph: ir.Graph, cache: Cache, named: Cache) -> None:
    """Give the outputs of an If, which are what the user sees, the names that the cache is to have."""
    for value, source in zip(cache.outputs, named.outputs, strict=False):
        if value.is_graph_output():
            position = next(i for i, output in enumerate(graph.outputs) if output is value)
            owner.outputs[position].name = owner.meta[_NAMES][source.meta[_POSITION]]
