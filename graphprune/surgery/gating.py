"""Blocks that run or do not, as an input says: one graph stands for every choice of blocks.

Each block becomes an `If` of its own, one after another in the main graph, never one in another: ONNX
Runtime does not repack weights that are read two subgraphs deep.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Architecture, Block
from graphprune.errors import EditError
from graphprune.gates import MASK
from graphprune.surgery.branching import choice, enclose, passing, without_block
from graphprune.surgery.regions import Region, find_region
from graphprune.surgery.resuming import Boundary, Chain, StreamType, head_nodes, reads_only, stream_type
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.values import constant, current, sort

RESUME, STREAM = "resume", "stream"
_DEFAULTS_VERSION = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Gates:
    """The gates of a graph: the ids of the blocks in the order of the mask, and why others have none.

    `boundaries` are the places at which a run can begin, in running order; `settled` are the outputs
    that are right then, too. Those of what is passed by, such as its keys and values, are not.
    """

    blocks: tuple[str, ...]
    declined: Mapping[str, str]
    boundaries: tuple[Boundary, ...] = ()
    settled: tuple[str, ...] = ()


def gate_blocks(architecture: Architecture, *, resumable: bool = False) -> Gates:
    """Let an input of the main graph say which of its droppable blocks run.

    `run_mask`, bool [gates], is optional: by default all run, and the outputs are what they were. A
    block that does not run leaves the stream as `drop_block` does with the norm after it kept; keys
    and values that are put out are still computed.

    With `resumable` there are two further optional inputs. `resume`, int64 [], is the number of a gate,
    0 by default; the blocks before it do not run, and `stream`, shaped like the stream, stands for what
    they would have left. The stream before each gate where that is possible is a further output.
    Raises `EditError` where a graph has such inputs already.
    """
    graph = architecture.model.graph
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    if clash := taken & ({MASK, RESUME, STREAM} if resumable else {MASK}):
        raise EditError(f"an input or weight is called '{clash.pop()}' already: is the model gated?")
    blocks = [b for stack in architecture.stacks if stack.graph is graph for b in stack.blocks]
    elsewhere = [b for stack in architecture.stacks if stack.graph is not graph for b in stack.blocks]
    declined = {block.id: "it is in a subgraph" for block in elsewhere}
    regions = find_regions(blocks, graph, declined)
    if not regions:
        return Gates((), declined)
    outputs = tuple(value.name or "" for value in graph.outputs)
    kind = stream_type(architecture.model, regions) if resumable else None
    if resumable and kind is None:
        log.info("no run of '%s' can begin in the middle: the shape of its stream is not known", graph.name)
    allow_defaults(architecture.model)
    chain = _gate(graph, regions, kind)
    names = tuple(region.block.id for region in regions)
    if kind is None:
        return Gates(names, declined, (), outputs)
    boundaries = chain.boundaries()
    return Gates(names, declined, boundaries, chain.settled(outputs, boundaries))


def find_regions(blocks: Sequence[Block], graph: ir.Graph, declined: dict[str, str]) -> list[Region]:
    """What of each block its gate is to hold; adds to `declined` those that have none, and why."""
    for block in blocks:
        if block.droppable:
            release_shapes(block.nodes, block)
    order = {node: place for place, node in enumerate(graph)}
    regions: list[Region] = []
    for block in blocks:
        found = find_region(block, order) if block.droppable else block.reason
        if isinstance(found, str):
            declined[block.id] = found
            continue
        regions.append(found)
        for node in found.nodes:
            del order[node]
    return regions


def _gate(graph: ir.Graph, regions: Sequence[Region], kind: StreamType | None) -> Chain:
    """Put each region into an If."""
    runs, entry = _switches(graph, len(regions), kind)
    start = current(regions[0].block.stream_in)
    gates: list[ir.Node] = []
    passable: list[bool] = []
    for number, (region, runs_it) in enumerate(zip(regions, runs, strict=True)):
        off, can_pass = _off(region, graph, number, entry)
        passable.append(can_pass)
        gates.append(enclose(region.nodes, region.outputs, runs_it, off, region.block.id))
    head = head_nodes(start, graph) if entry is not None else ()
    if head and entry is not None:
        start = enclose(head, (start,), entry.fresh, passing(entry.stream, "head/off"), "head").outputs[0]
    sort(graph)
    pairs = zip(gates, regions, strict=True)
    ends = tuple(gate.outputs[region.outputs.index(region.stream)] for gate, region in pairs)
    return Chain(graph, start, tuple(gates), ends, tuple(passable), kind)


def allow_defaults(model: ir.Model) -> None:
    """Before version 4 of the format all initializers are inputs, and none of them is optional."""
    if model.ir_version < _DEFAULTS_VERSION:
        model.ir_version = _DEFAULTS_VERSION
        for value in [value for value in model.graph.inputs if value.is_initializer()]:
            model.graph.inputs.remove(value)


def _off(region: Region, graph: ir.Graph, number: int, entry: _Entry | None) -> tuple[ir.Graph, bool]:
    """What is there in place of a block that does not run; and whether a run can begin behind it."""
    off = without_block(region, graph)
    if entry is None:
        return off, False
    passed = without_block(region, graph, entry.stream)
    if not reads_only(passed, entry.stream):
        return off, False
    return choice(entry.passed[number], passed, off, f"{region.block.id}/not_run"), True


@dataclass(frozen=True, eq=False)
class _Entry:
    """Where a run begins: what the stream is there, which gates are before it, whether none is."""

    stream: ir.Value
    passed: tuple[ir.Value, ...]
    fresh: ir.Value


def _switches(
    graph: ir.Graph, count: int, kind: StreamType | None
) -> tuple[tuple[ir.Value, ...], _Entry | None]:
    """Add the inputs to a graph, and make of them what says of each gate whether it runs."""
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, inputs))
        return nodes[-1].outputs[0]

    def each(values: ir.Value) -> tuple[ir.Value, ...]:
        return tuple(add("Gather", values, constant(np.array(i, np.int64), nodes)) for i in range(count))

    runs = optional_input(graph, MASK, ir.tensor(np.ones(count, np.bool_)))
    entry = None
    if kind is not None:
        resume = optional_input(graph, RESUME, ir.tensor(np.array(0, np.int64)))
        stream = optional_input(graph, STREAM, kind.empty(), kind.dims)
        passed = add("Less", constant(np.arange(count, dtype=np.int64), nodes), resume)
        fresh = add("Not", add("Less", constant(np.array(0, np.int64), nodes), resume))
        runs = add("And", runs, add("Not", passed))
        entry = _Entry(stream, each(passed), fresh)
    conditions = each(runs)
    for number, node in enumerate(nodes):
        node.name = f"gates/{number}_{node.op_type}"
        node.outputs[0].name = f"{node.name}_0"
    graph.insert_before(graph[0], nodes)
    return conditions, entry


def optional_input(
    graph: ir.Graph, name: str, default: ir.TensorProtocol, dims: ir.Shape | None = None
) -> ir.Value:
    """A graph input with a default: an initializer that is listed as an input."""
    value = ir.Value(
        name=name, type=ir.TensorType(default.dtype), const_value=default,
        shape=dims if dims is not None else ir.Shape(default.shape.numpy()),
    )  # fmt: skip
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value
