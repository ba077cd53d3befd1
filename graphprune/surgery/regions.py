"""What of a block can stand in a subgraph of its own: its nodes, and what others read of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.architecture import Block
from graphprune.dataflow import SHAPE_OPS, TRANSPARENT, has_subgraph
from graphprune.surgery.stored import storage
from graphprune.surgery.values import current

_LARGE = 1024  # bytes; constants from here on are weights, which stay outside
_OF_SIZES = {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Squeeze", "Sub", "Unsqueeze"}


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes of a block in running order, from its first to the norm after its join.

    `outputs` are the values that others read of them, `stream` the one among these that the
    next block takes for the stream; it is made of `end`. `rounded` are those that are the stream as it
    is after it was quantized: where the block does not run, they are the stream before it.
    """

    block: Block
    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value, ...]
    end: ir.Value
    stream: ir.Value
    rounded: tuple[ir.Value, ...] = ()


def find_region(block: Block, order: Mapping[ir.Node, int]) -> Region | str:
    """The region of a block; why it has none, where that is so.

    `order` has the places of the nodes that it may be made of. What is read outside of the block
    besides its result (keys and values that are put out, sizes) stays outside, and all that it takes; so does
    what is made of sizes from outside alone: ONNX Runtime computes it once for all blocks there.
    """
    join, end = block.join, current(block.stream_out)
    if join not in order:
        return f"its join, node '{join.name}' ({join.op_type}), belongs to another block"
    after = _between(join, end, order)
    if after is None:
        return f"the stream behind it does not come out of its join, node '{join.name}' ({join.op_type})"
    before = current(block.stream_in)
    passes_on = all(node is join or node.op_type in TRANSPARENT for node in after)
    if storage(end) is not None or (passes_on and storage(before) is not None):
        return f"the stream at node '{join.name}' ({join.op_type}) is stored by a scale of its own"
    rounding: list[ir.Node] = []
    maker = before.producer()
    if passes_on and maker is not None and maker.op_type == "DequantizeLinear":
        rounding = [*_roundings(end)]
        if any(use.node not in rounding for value in _stored(rounding) for use in value.uses()):
            return f"what follows node '{join.name}' reads the stream as stored, by a scale of its own"
    results = {node for node in (*block.sums, *after, *rounding) if node in order}
    nodes = {node for node in (*block.nodes, *results) if node in order and not _is_weight(node)}
    nodes -= _read_outside(nodes, results)
    nodes -= _of_sizes(nodes - results)
    holding = next((node for node in results & nodes if has_subgraph(node)), None)
    if holding is not None:
        return f"node '{holding.name}' ({holding.op_type}), which stays without it, holds a subgraph"
    return _region(block, sorted(nodes, key=order.__getitem__), end, rounding)


def _region(block: Block, nodes: list[ir.Node], end: ir.Value, rounding: Collection[ir.Node]) -> Region | str:
    inside = set(nodes)
    outputs = tuple(v for node in nodes for v in node.outputs if _is_read_outside(v, inside))
    rounded = tuple(v for v in outputs if v.producer() in rounding)
    if not any(linear.node in inside for branch in block.branches for linear in branch.linears):
        return f"all linears of it are read outside of it, as at node '{block.join.name}'"
    stream = next(iter([*(v for v in outputs if v is end), *rounded]), None)
    if stream is None:
        return "nobody reads its result"
    return Region(block, tuple(nodes), outputs, end, stream, rounded)


def _between(start: ir.Node, end: ir.Value, order: Mapping[ir.Node, int]) -> list[ir.Node] | None:
    """The nodes on the ways from `start` to the value `end`, both included; None where there is no way."""
    found = {start: True}
    work = [(end.producer(), False)]
    while work:
        node, done = work.pop()
        if node is None or (node in found and not done):
            continue
        inputs = [v.producer() for v in node.inputs if v is not None]
        if done:
            found[node] = any(found.get(one, False) for one in inputs if one is not None)
        elif order.get(node, -1) > order[start]:
            found[node] = False
            work += [(node, True), *((one, False) for one in inputs)]
    last = end.producer()
    return [node for node, leads in found.items() if leads] if last is not None and found.get(last) else None


def _roundings(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that quantize a value, each followed by those that bring it back."""
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear" and use.idx == 0:
            yield use.node
            yield from (o.node for o in use.node.outputs[0].uses() if o.node.op_type == "DequantizeLinear")


def _stored(rounding: Iterable[ir.Node]) -> Iterator[ir.Value]:
    return (node.outputs[0] for node in rounding if node.op_type == "QuantizeLinear")


def _is_weight(node: ir.Node) -> bool:
    tensor = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
    return tensor is not None and tensor.nbytes >= _LARGE


def _read_outside(nodes: Collection[ir.Node], results: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes of which others read what is no result of the block, and all that these take."""
    work = [n for n in nodes if n not in results and any(_is_read_outside(v, nodes) for v in n.outputs)]
    found = set(work)
    while work:
        for value in work.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker in nodes and maker not in found:
                found.add(maker)
                work.append(maker)
    return found


def _of_sizes(nodes: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes that compute of sizes from outside alone, and the constants that they take."""
    known: dict[ir.Node, bool] = {}

    def makes(node: ir.Node) -> bool:
        if node not in known:
            read = [value for value in node.inputs if value is not None and not _is_small(value)]
            makers = [value.producer() for value in read]
            sizes = bool(makers) and all(maker is not None and makes(maker) for maker in makers)
            known[node] = (
                node not in nodes if node.op_type in SHAPE_OPS else node.op_type in _OF_SIZES and sizes
            )
        return known[node]

    found = {node for node in nodes if makes(node)}
    read = {maker for node in found for v in node.inputs if v is not None and (maker := v.producer())}
    return found | {node for node in read if node in nodes and node.op_type == "Constant"}


def _is_small(value: ir.Value) -> bool:
    """Whether a value is a constant that is no weight."""
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.nbytes < _LARGE


def _is_read_outside(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())
