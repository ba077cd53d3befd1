"""What belongs to a block alone: the nodes that die with it, and its caches."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.architecture import Cache
from graphprune.dataflow import MICROSOFT, Class, Flow, Op, has_subgraph
from graphprune.joins import FUSED_ATTENTION, LAYOUT, PRODUCTS, is_mixing, leads_out

# The inputs of fused attention ops that are masks or biases of the scores.
MASK_INPUTS = {
    (MICROSOFT, "Attention"): (3, 5),
    (MICROSOFT, "MultiHeadAttention"): (4, 5),
    (MICROSOFT, "DecoderMaskedMultiHeadAttention"): (3, 4),
    ("", "Attention"): (3,),
}


def exclusive_nodes(
    core: Iterable[ir.Node], free: Iterable[ir.Value] = (), keep: Iterable[ir.Node] = ()
) -> dict[ir.Node, None]:
    """`core` and every node that is read by it alone, subgraphs included, in no special order.

    `free` are graph outputs that do not keep a node alive (a block's own caches), `keep` nodes
    that stay whatever reads them (those of the stream).
    """
    owned = dict.fromkeys(core)
    unkept = set(free)
    kept = set(keep)
    work = list(owned)
    while work:
        node = work.pop()
        for inner in _inside(node):
            if inner not in owned:
                owned[inner] = None
                work.append(inner)
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if (
                producer is not None
                and producer not in owned
                and producer not in kept
                and _dies(producer, owned, unkept)
            ):
                owned[producer] = None
                work.append(producer)
    return owned


def _inside(node: ir.Node) -> Iterable[ir.Node]:
    if not has_subgraph(node):
        return ()
    return [
        inner
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph())
    ]


def _dies(node: ir.Node, owned: dict[ir.Node, None], unkept: set[ir.Value]) -> bool:
    for output in node.outputs:
        if output.is_graph_output() and output not in unkept:
            return False
        if any(use.node not in owned for use in output.uses()):
            return False
    return True


def side_ops(flow: Flow, region: set[Op]) -> set[Op]:
    """Data ops that only `region` reads and that do not descend from its stream.

    Cross-attention's key and value projections are such. What they put out may also leave the
    graph as a cache, or lend its shape.
    """
    side: set[Op] = set()
    heap = [-p.index for op in region for n in op.inputs if (p := flow.producers[n]) and p not in region]
    heapq.heapify(heap)
    while heap:
        op = flow.ops[-heapq.heappop(heap)]
        readers = [r for n in op.outputs for r in flow.consumers[n]]
        if op in side or not all(r in region or r in side or leads_out(flow, r) for r in readers):
            continue
        side.add(op)
        for number in op.inputs:
            producer = flow.producers[number]
            if producer is not None and producer not in region:
                heapq.heappush(heap, -producer.index)
    return side


@dataclass(frozen=True, eq=False)
class CacheIO:
    """Graph inputs and outputs that one block alone reads and writes.

    `layouts` are the nodes that only bring the outputs into their layout; `observed` are graph
    outputs that show the block's inside and are no cache (attention probabilities).
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    layouts: tuple[ir.Node, ...]
    observed: tuple[ir.Value, ...]


def find_cache_io(flow: Flow, region: set[Op], side: set[Op]) -> CacheIO:
    """The caches of the block that consists of `region` and of the `side` ops it alone reads."""
    ops = region | side
    outputs: list[ir.Value] = []
    observed: list[ir.Value] = []
    layouts: dict[ir.Node, None] = {}
    mixed = _after_mixing(flow, ops)
    for op in sorted(ops, key=lambda o: o.index):
        for position, number in enumerate(op.outputs):
            fused = is_mixing(flow, op) and position > 0
            for found, nodes in _graph_outputs(flow, number, ops):
                cached = fused or number not in mixed
                (outputs if cached else observed).append(found)
                layouts.update(dict.fromkeys(nodes))
    inputs = _cache_inputs(flow, ops)
    return CacheIO(inputs, tuple(dict.fromkeys(outputs)), tuple(layouts), tuple(dict.fromkeys(observed)))


def cache_ops(flow: Flow, io: CacheIO, ops: set[Op]) -> set[Op]:
    """Those of a block's `ops` that compute what it puts out as caches."""
    layouts = set(io.layouts)
    work = [flow.producers[flow.numbers[value]] for value in io.outputs]
    found: set[Op] = set()
    while work:
        op = work.pop()
        if op is not None and op not in found and (op in ops or op.node in layouts):
            found.add(op)
            work.extend(flow.producers[number] for number in op.inputs)
    return found & ops


def _cache_inputs(flow: Flow, ops: set[Op]) -> tuple[ir.Value, ...]:
    """Graph inputs (of this graph, or of one around it) that only these ops read, in order."""
    read = dict.fromkeys(v for op in ops for n in op.inputs if (v := flow.values[n]) in flow.inputs)
    own = (v for v in read if v is not None and _read_only_by(flow, v, ops) and _attended(flow, v, ops))
    return tuple(sorted(own, key=flow.inputs.__getitem__))


def _after_mixing(flow: Flow, ops: set[Op]) -> set[int]:
    """Values of a block that come after (or out of) an op that mixes tokens."""
    mixed: set[int] = set()
    for op in sorted(ops, key=lambda o: o.index):
        if is_mixing(flow, op) or any(n in mixed for n in op.inputs):
            mixed.update(op.outputs)
    return mixed


def _graph_outputs(flow: Flow, number: int, ops: set[Op]) -> list[tuple[ir.Value, list[ir.Node]]]:
    """Graph outputs that a value becomes by changes of layout alone, with the nodes on the way."""
    found: list[tuple[ir.Value, list[ir.Node]]] = []
    work: list[tuple[int, list[ir.Node]]] = [(number, [])]
    while work:
        current, path = work.pop()
        value = flow.values[current]
        if value is not None and value.is_graph_output():
            found.append((value, path))
        for reader in flow.consumers[current]:
            if reader not in ops and reader.node.op_type in LAYOUT:
                work.extend((n, [*path, reader.node]) for n in reader.outputs)
    return found


def _read_only_by(flow: Flow, value: ir.Value, ops: set[Op]) -> bool:
    """Whether a graph input is data that only these ops read (besides its shape): a past."""
    number = flow.numbers.get(value)
    if number is None or flow.class_of(value) is not Class.DATA or value.dtype is None:
        return False
    if not value.dtype.is_floating_point() and value.dtype not in {ir.DataType.INT8, ir.DataType.UINT8}:
        return False
    rank = value.shape.rank() if value.shape is not None else 4
    return rank >= 3 and all(op in ops or leads_out(flow, op) for op in flow.consumers[number])


def _attended(flow: Flow, value: ir.Value, ops: set[Op]) -> bool:
    """Whether an input is attended to as it is: a past, and no mask, and no states yet to be projected."""
    work = [flow.numbers[value]]
    for number in work:
        for reader in flow.consumers[number]:
            if is_mixing(flow, reader) and not reader.linear:
                return _position(reader, flow.values[number]) not in _mask_inputs(reader.node)
            if reader.node.op_type in FUSED_ATTENTION or (reader.kind in LAYOUT and len(reader.inputs) > 1):
                return True
            projects = reader.linear or reader.kind in PRODUCTS
            if reader in ops and not projects and len(reader.inputs) == 1:
                work.extend(reader.outputs)
    return False


def _position(op: Op, value: ir.Value | None) -> int:
    return next((i for i, given in enumerate(op.node.inputs) if given is value), -1)


def _mask_inputs(node: ir.Node) -> tuple[int, ...]:
    own = MICROSOFT if node.domain == MICROSOFT else ""
    return MASK_INPUTS.get((own, node.op_type), ())


def as_caches(found: CacheIO, kind: str) -> tuple[Cache, ...]:
    """The block's caches; its kind tells whose keys and values they hold."""
    if not found.inputs and not found.outputs:
        return ()
    names = (tuple(v.name or "" for v in values) for values in (found.inputs, found.outputs))
    return (Cache("cross" if kind == "cross_attention" else "self", found.inputs, found.outputs, *names),)
