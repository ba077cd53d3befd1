"""How the KV caches of blocks that go leave the signature."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from graphprune.architecture import Architecture, Block, Layer
from graphprune.dataflow import SHAPE_OPS
from graphprune.surgery.signature import (
    Part,
    Parts,
    Signature,
    branches,
    number_caches,
    parts_by_layer,
)
from graphprune.surgery.values import sort

# Marks cached values of blocks that are gone.
_GONE = "graphprune.cache_gone"


def remove_caches(block: Block, architecture: Architecture) -> None:
    """Take a block's KV inputs and outputs out of the signature, and number the others without gaps.

    What else reads such an input (the length of the mask is often taken from the first cache)
    reads the same input of another layer from then on; where there is none, the cache stays.
    In a branch of an `If`, whose outputs go by position, the other branch loses the same ones.
    """
    if not block.caches:
        return
    stack = architecture.stack_of(block)
    signature = Signature.of(stack.graph, architecture.model)
    stacks = [one for one in architecture.stacks if one.graph is stack.graph]
    others = [
        signature.parts(one.caches) for s in stacks for one in s.blocks if one is not block and one.caches
    ]
    for cache in block.caches:
        parts = signature.parts([cache])
        if any(_is_needed(value, part, block, others) for part, value in parts.items()):
            continue
        for part, value in parts.items():
            if part[1] == "out":
                _lend_shape(value, part, block, others)
                value.meta[_GONE] = True
                _remove_output(value, signature)
        for part, value in parts.items():
            if part[1] == "in":
                _remove_input(value, part, others)
    layers = parts_by_layer(stacks, signature)
    _remove_ownerless(block, layers, signature, others)
    slots = [parts for parts in layers.values() if parts]
    number_caches(signature, slots, slots)


def _remove_ownerless(
    block: Block, layers: Mapping[Layer, Parts], signature: Signature, others: Collection[Parts]
) -> None:
    """With the last cache that a block of a layer owns go those that an earlier run kept of the layer."""
    layer = next(layer for layer in layers if any(block is one for one in layer.blocks))
    owned = signature.parts(cache for one in layer.blocks for cache in one.caches)
    if any(value.is_graph_input() or value.is_graph_output() for value in owned.values()):
        return
    for part, value in layers[layer].items():
        if part not in owned and part[1] == "out":
            _remove_output(value, signature)
        elif part not in owned:
            _remove_input(value, part, others)


def _stand_ins(part: Part, others: Collection[Parts]) -> Iterator[ir.Value]:
    """The same part of other caches that are still there."""
    for other in others:
        value = other.get(part)
        if value is not None and (value.is_graph_input() or value.is_graph_output()):
            yield value


def _is_needed(value: ir.Value, part: Part, block: Block, others: Collection[Parts]) -> bool:
    """Whether somebody else reads an input that nobody can stand in for."""
    if part[1] == "out" or any(_stand_ins(part, others)):
        return False
    own = set(block.nodes)
    return any(use.node not in own and not _dead(use.node) for use in value.uses())


def _lend_shape(value: ir.Value, part: Part, block: Block, others: Collection[Parts]) -> None:
    """Who reads the length of what is cached reads it off the next layer's cache that is still computed.

    Still put out it need not be: where the other branch of an `If` has lost that layer first, this
    branch still runs it, and later layers may depend on it.
    """
    found = (other[part] for other in others if part in other)
    stand_in = next((one for one in found if not one.meta.get(_GONE)), None)
    owned = set(block.nodes)
    readers = [use for use in value.uses() if use.node.op_type in SHAPE_OPS and use.node not in owned]
    if stand_in is None or not readers:
        return
    for use in readers:
        use.node.replace_input_with(use.idx, stand_in)
    graph = readers[0].node.graph
    if isinstance(graph, ir.Graph):
        sort(graph)  # the other layer's cache is computed later


def _remove_output(value: ir.Value, signature: Signature) -> None:
    if not value.is_graph_output():
        return
    graph, owner = signature.graph, signature.owner
    position = next(i for i, output in enumerate(graph.outputs) if output is value)
    value.name = f"{value.name}_dropped"
    if owner is None:
        graph.outputs.pop(position)
        return
    for branch in branches(owner):
        branch.outputs.pop(position)
    _drop_node_output(owner, position)


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


def _remove_input(value: ir.Value, part: Part, others: Collection[Parts]) -> None:
    graph = value.graph
    if not isinstance(graph, ir.Graph) or not value.is_graph_input():
        return
    stand_in = next(_stand_ins(part, others), None)
    for use in tuple(value.uses()):
        use.node.replace_input_with(use.idx, stand_in)
    graph.inputs.remove(value)


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
