"""Layers in another order, or run more than once with the same weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from graphprune.architecture import Architecture, Layer, Stack
from graphprune.dataflow import ALIASES, SHAPE_OPS, SKIP_NORMS, TRANSPARENT, captured_values, has_subgraph
from graphprune.errors import EditError
from graphprune.surgery.parallel import PARALLEL
from graphprune.surgery.runs import Runs
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.stored import storage
from graphprune.surgery.sums import split_join
from graphprune.surgery.values import current, detached, graph_of, replace_value

QUANTIZERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
NAMES = {"Identity", "QuantizeLinear", "DequantizeLinear"}
# What may give the stream another shape inside of a layer (OPT flattens it).
LAYOUTS = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, eq=False)
class _Segment:
    """The nodes of one layer, what of them reads the stream, and what it puts out."""

    nodes: tuple[ir.Node, ...]
    entries: tuple[tuple[ir.Node, int], ...]
    output: ir.Value


def arrange_layers(stack: Stack, architecture: Architecture, order: Sequence[int]) -> None:
    """Run the layers of a stack in `order`, positions in the stack; a position may come again.

    Each further run is a copy of the layer's nodes that reads the same initializers, and has
    KV caches of its own; all caches are numbered in the order in which the layers run. Layers
    that do not come in `order` are passed by. Raises `EditError` where that cannot be.
    """
    if PARALLEL in stack.graph.meta:
        raise EditError(
            f"layers of '{stack.name}' run side by side already: arrange them in a run of its own, before"
        )
    for block in stack.blocks:
        release_shapes(block.nodes, block)
    runs = Runs.of(stack, architecture)
    segments, start, end = _segments(stack, runs)
    _require_layouts(stack, segments, order)
    readers = _outside_readers(end, segments)
    stream = start
    seen: set[int] = set()
    for position in order:
        again = position in seen
        segment = _copy(segments[position], stack.graph, runs, position) if again else segments[position]
        if not again:
            runs.add(position)
        seen.add(position)
        for node, index in segment.entries:
            node.replace_input_with(index, stream)
        stream = segment.output if segment.nodes else stream
    for node, index in readers:
        node.replace_input_with(index, stream)
    if stream is not end:
        _move_output(end, stream)
    try:
        stack.graph.sort()
    except ValueError as error:
        raise EditError(
            f"the layers of '{stack.name}' cannot run in this order: one computes what an earlier one reads"
        ) from error
    runs.number()


def _require_layouts(stack: Stack, segments: Sequence[_Segment], order: Sequence[int]) -> None:
    """Exporters may leave the last result with its axes turned; that layer has to stay the last then."""
    last = len(segments) - 1
    turned = {_is_turned(segment.output) for segment in (segments[0], segments[last])}
    if len(turned) > 1 and (last in order[:-1] or last != order[-1]):
        name = f"layer {last} of '{stack.name}'"
        raise EditError(f"{name} puts out other axes first: it can only run last, and once")


def _is_turned(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Transpose"


def _segments(stack: Stack, runs: Runs) -> tuple[list[_Segment], ir.Value, ir.Value]:
    """The layers as runs of nodes between values of the stream; fused joins are taken apart for it."""
    boundaries = [_start(stack), *(layer_end(layer) for layer in stack.layers)]
    values = [current(value) for value in boundaries]
    start = values[0]
    inner = (current(block.stream_in) for block in stack.blocks)
    for value in (*values[1:], *(value for value in inner if not _changes_layout(value))):
        _read_shape_of(start, value)
    segments = [_segment(a, b, *runs.ends(i)) for i, (a, b) in enumerate(pairwise(values))]
    return segments, start, values[-1]


def _start(stack: Stack) -> ir.Value:
    """What the first layer reads; where its norm is fused with the sum of the embeddings, they part."""
    start = current(next(stack.blocks).stream_in)
    node = start.producer()
    if node is not None and node.op_type in SKIP_NORMS and start is not node.outputs[0]:
        split_join(node)
    elif node is not None and node.op_type == "EmbedLayerNormalization" and start is not node.outputs[0]:
        raise EditError(
            f"the first norm of '{stack.name}' is fused into node '{node.name}' with the embeddings"
        )
    return _as_real(_first_name(current(start)))


def _first_name(value: ir.Value) -> ir.Value:
    """A value before it was passed on under other names: by Identity, or quantized and maybe brought back."""
    while (maker := value.producer()) is not None and maker.op_type in NAMES:
        before = maker.inputs[0]
        if before is None or (maker.op_type == "DequantizeLinear" and storage(before) is None):
            break
        value = before
    return value


def _changes_layout(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in LAYOUTS


def _read_shape_of(start: ir.Value, value: ir.Value) -> None:
    """The stream has one shape all along; whoever asks for it asks its start, which is always there."""
    for use in tuple(value.uses()):
        if use.node.op_type in SHAPE_OPS:
            use.node.replace_input_with(use.idx, start)
    maker = value.producer()
    if maker is not None and maker.op_type in TRANSPARENT and maker.inputs[0] not in {None, start}:
        _read_shape_of(start, maker.inputs[0])


def layer_end(layer: Layer) -> ir.Value:
    """What a layer passes on. Joins that are fused with the next block's norm are taken apart."""
    for block in layer.blocks:
        result = block.stream_out
        if block.join.op_type in SKIP_NORMS and not detached(block.join):
            add, normed = split_join(block.join)
            result = normed if block.placement == "post" else add.outputs[0]
    return _settled(current(result))


def _settled(value: ir.Value) -> ir.Value:
    """The same stream as the next layer gets it: changes of layout at a layer's end are its own."""
    while True:
        readers = [use.node for use in value.uses() if use.node.op_type not in SHAPE_OPS]
        if len(readers) != 1 or readers[0].op_type not in ALIASES - QUANTIZERS or value.is_graph_output():
            return _as_real(value)
        value = readers[0].outputs[0]


def _as_real(value: ir.Value) -> ir.Value:
    """The stream between two layers as a real number, which each reader quantizes with a scale of its own."""
    stored, maker = storage(value), value.producer()
    if stored is None or maker is None:
        return value
    uses = [(use.node, use.idx) for use in value.uses()]
    back = ir.node("DequantizeLinear", [value, stored.scale, stored.zero])
    graph_of(maker).insert_after(maker, back)
    real = back.outputs[0]
    for node, index in uses:
        if node.op_type == "DequantizeLinear":
            replace_value(node.outputs[0], real)
        elif node.op_type not in SHAPE_OPS:
            again = ir.node("QuantizeLinear", [real, stored.scale, stored.zero])
            graph_of(maker).insert_before(node, again)
            node.replace_input_with(index, again.outputs[0])
    return real


def _segment(
    begin: ir.Value, end: ir.Value, pasts: Collection[ir.Value], presents: Collection[ir.Value]
) -> _Segment:
    """All nodes on the way from one value of the stream, and from the layer's pasts, to the next one."""
    nodes: dict[ir.Node, None] = {}
    leads: dict[ir.Value, bool] = {begin: True, **dict.fromkeys(pasts, True)}
    for value in (end, *presents) if begin is not end else ():
        if value not in leads:
            _descends(value, leads, nodes)
    for node in nodes:
        if has_subgraph(node) and begin in captured_values(node):
            raise EditError(
                f"a subgraph of node '{node.name}' ({node.op_type}) reads the stream: it cannot move"
            )
    entries = [(use.node, use.idx) for use in begin.uses() if use.node in nodes]
    return _Segment(tuple(nodes), tuple(entries), end)


def _descends(value: ir.Value, leads: dict[ir.Value, bool], nodes: dict[ir.Node, None]) -> None:
    """Collect the nodes between the value that `leads` starts with and `value`, depth first."""
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        item, done = stack.pop()
        node = item.producer()
        if done and node is not None:
            inputs = () if node.op_type in SHAPE_OPS else _read(node)
            leads[item] = any(leads.get(v, False) for v in inputs)
            if leads[item]:
                nodes[node] = None
        elif item not in leads:
            leads[item] = False
            if node is not None:
                stack.append((item, True))
                stack.extend((v, False) for v in _read(node) if v not in leads)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    if has_subgraph(node):
        yield from captured_values(node)


def _outside_readers(end: ir.Value, segments: Sequence[_Segment]) -> list[tuple[ir.Node, int]]:
    inside = {node for segment in segments for node in segment.nodes}
    return [(use.node, use.idx) for use in end.uses() if use.node not in inside]


def _move_output(old: ir.Value, new: ir.Value) -> None:
    """Where the stream itself is an output of the graph, the output is its new end."""
    if old.is_graph_output():
        uses = [(use.node, use.idx) for use in old.uses()]
        replace_value(old, new)
        for node, index in uses:
            node.replace_input_with(index, old)


def _copy(segment: _Segment, graph: ir.Graph, runs: Runs, position: int) -> _Segment:
    """The same nodes again, over the same initializers, and with caches of their own."""
    if not segment.nodes:
        return segment
    values: dict[ir.Value, ir.Value] = runs.new_pasts(position)
    nodes: dict[ir.Node, ir.Node] = {}
    for node in segment.nodes:
        if has_subgraph(node):
            raise EditError(f"node '{node.name}' ({node.op_type}) holds a subgraph and cannot run twice")
        new = ir.Node(
            node.domain, node.op_type, [values.get(v, v) if v is not None else None for v in node.inputs],
            list(node.attributes.values()), num_outputs=len(node.outputs), version=node.version,
        )  # fmt: skip
        for old, made in zip(node.outputs, new.outputs, strict=True):
            made.type, made.shape = old.type, old.shape
            values[old] = made
        nodes[node] = new
    graph.extend(nodes.values())
    runs.add_again(position, values)
    entries = tuple((nodes[node], index) for node, index in segment.entries)
    return _Segment(tuple(nodes.values()), entries, values[segment.output])
