"""Gates that stay in a model: an input says which blocks run, and rules may say so further.

The gates are those of `gating.py`, for the blocks that were chosen, in the main graph and in branches of
its Ifs. There, too, the inputs are the main graph's, and copies of a block (both branches of a merged
decoder) share a place of the mask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from graphprune.architecture import Architecture, Block, Stack
from graphprune.errors import EditError
from graphprune.gates import GATES, MASK, PHASE_MASKS, THRESHOLDS
from graphprune.surgery.branching import enclose, without_block
from graphprune.surgery.gating import allow_defaults, find_regions, optional_input
from graphprune.surgery.regions import Region, find_region
from graphprune.surgery.skipscores import Phase, Score, other_phase, score_value
from graphprune.surgery.values import current, graph_of, sort

_IR_VERSION = 10  # of models that are made for one pass; nothing depends on it
_ELSEWHERE = "it is in a subgraph that does not read the graph around it"


@dataclass(frozen=True, eq=False)
class Gate:
    """When a block runs: as the inputs say, which have these defaults.

    `runs` is its place of `run_mask`. In the phase that is not asked for (`phase` of `Skips`) it runs
    whatever the following say: `listed` is its place of the phase's own mask, and with a `score` it does
    not run where that is over `threshold`, its place of `skip_thresholds`.
    """

    runs: bool = True
    listed: bool = True
    score: Score | None = None
    threshold: float = 0.0


@dataclass(frozen=True, eq=False)
class Skips:
    """Gates by the ids of their blocks, in the order of the mask, and the phase in which they ask further."""

    gates: Mapping[str, Gate]
    phase: Phase = "all"

    @property
    def scored(self) -> bool:
        """Whether the gates ask for a score; all of them do then."""
        return any(gate.score is not None for gate in self.gates.values())


def why_no_gates(architecture: Architecture) -> str:
    """Why a model cannot have gates at all; empty where it can."""
    graph = architecture.model.graph
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    clash = sorted(name for name in taken if name in {MASK, THRESHOLDS, *PHASE_MASKS.values()})
    return f"an input or weight is called '{clash[0]}' already: the model has gates" if clash else ""


def why_no_gate(architecture: Architecture) -> dict[str, str]:
    """Of each block that cannot have a gate, why; nothing is changed."""
    reasons: dict[str, str] = {}
    reached = _reached(architecture.model.graph)
    for graph, stacks in _by_graph(architecture).items():
        if graph not in reached:
            reasons |= {block.id: _ELSEWHERE for stack in stacks for block in stack.blocks}
            continue
        order = {node: place for place, node in enumerate(graph)}
        for block in (block for stack in stacks for block in stack.blocks):
            found = find_region(block, order) if block.droppable else block.reason
            if isinstance(found, str):
                reasons[block.id] = found
                continue
            for node in found.nodes:
                del order[node]
    return reasons


def add_skips(architecture: Architecture, skips: Skips) -> None:
    """Let inputs of the main graph say which blocks run: one gate, an `If`, for each that `skips` names.

    `run_mask`, bool [gates], is optional. A block that does not run leaves the stream as `drop_block` does
    with the norm after it kept; the keys and values that it puts out are computed all the same. Blocks that
    are gone have no gate. The ids stand in the model's metadata, as a list in JSON under `graphprune.gates`.
    Raises `EditError` where a block cannot have a gate, or the model has some already.
    """
    model = architecture.model
    reason = why_no_gates(architecture)
    if reason:
        raise EditError(reason)
    allow_defaults(model)
    graphs = _by_graph(architecture)
    regions = {graph: _regions(stacks, skips) for graph, stacks in graphs.items()}
    there = {region.block.id for found in regions.values() for region in found}
    ids = [id for id in skips.gates if id in there]
    if not ids:
        raise EditError("no block is left that could have a gate")
    inputs = _Inputs.add(model, skips, ids)
    for graph, found in regions.items():
        _insert(graph, found, graphs[graph], skips, inputs)
    sort(model.graph)
    model.metadata_props[GATES] = json.dumps(ids)


def _reached(main: ir.Graph) -> set[ir.Graph]:
    """The main graph, and the branches of its own Ifs: these read what is around them."""
    held = (a for node in main if node.op_type == "If" for a in node.attributes.values())
    return {main, *(a.as_graph() for a in held if a.type == ir.AttributeType.GRAPH)}


def _by_graph(architecture: Architecture) -> dict[ir.Graph, list[Stack]]:
    graphs: dict[ir.Graph, list[Stack]] = {}
    for stack in architecture.stacks:
        graphs.setdefault(stack.graph, []).append(stack)
    return graphs


def _regions(stacks: Sequence[Stack], skips: Skips) -> list[Region]:
    """What the gates of one graph are to hold. Raises `EditError`."""
    blocks = [block for stack in stacks for block in stack.blocks if block.id in skips.gates]
    there = [block for block in blocks if block.join.graph is stacks[0].graph]
    declined: dict[str, str] = {}
    regions = find_regions(there, stacks[0].graph, declined)
    for id, reason in declined.items():
        raise EditError(f"{id} cannot have a gate: {reason}")
    return regions


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What the main graph says of gates by their ids: whether they run, whether they are listed, thresholds.

    `elsewhere` says whether the run is in the phase that is not asked for; None where all are. `opset` is
    the version of ONNX's own ops that conditions are written in.
    """

    runs: Mapping[str, ir.Value]
    listed: Mapping[str, ir.Value]
    thresholds: Mapping[str, ir.Value]
    elsewhere: ir.Value | None
    opset: int

    @staticmethod
    def add(model: ir.Model, skips: Skips, ids: Sequence[str]) -> _Inputs:
        graph, nodes = model.graph, list[ir.Node]()
        gates = [skips.gates[id] for id in ids]

        def each(name: str, default: ir.TensorProtocol) -> dict[str, ir.Value]:
            value = optional_input(graph, name, default)
            return {id: _place(value, number, nodes) for number, id in enumerate(ids)}

        runs = each(MASK, ir.tensor(np.array([gate.runs for gate in gates])))
        listed: dict[str, ir.Value] = {}
        thresholds: dict[str, ir.Value] = {}
        elsewhere = None
        if skips.phase != "all":
            listed = each(PHASE_MASKS[skips.phase], ir.tensor(np.array([gate.listed for gate in gates])))
            elsewhere = other_phase(graph, skips.phase, nodes)
        if skips.scored:
            values = np.array([gate.threshold for gate in gates], np.float32)
            thresholds = each(THRESHOLDS, ir.tensor(values))
        _put_first(graph, nodes)
        return _Inputs(runs, listed, thresholds, elsewhere, graph.opset_imports.get("", 1))


def _place(values: ir.Value, number: int, nodes: list[ir.Node]) -> ir.Value:
    index = ir.node("Constant", [], {"value": ir.tensor(np.array(number, np.int64))})
    gather = ir.node("Gather", [values, index.outputs[0]])
    nodes += [index, gather]
    return gather.outputs[0]


def _put_first(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    name_nodes(nodes, "gates")
    graph.insert_before(graph[0], nodes)


def name_nodes(nodes: Sequence[ir.Node], prefix: str) -> None:
    """Give nodes, and what they put out, names that nothing else has."""
    for number, node in enumerate(nodes):
        node.name = f"{prefix}/{number}_{node.op_type}"
        node.outputs[0].name = f"{node.name}_0"


def _insert(
    graph: ir.Graph, regions: Sequence[Region], stacks: Sequence[Stack], skips: Skips, inputs: _Inputs
) -> None:
    """Put the regions of one graph behind their gates, each one's condition before it."""
    before = {block.id: one for stack in stacks for one, block in pairwise(stack.blocks)}
    moved: dict[ir.Value, ir.Value] = {}

    def stream(block: Block) -> ir.Value:
        value = current(block.stream_in)
        return moved.get(value, value)

    for region in regions:
        block, nodes = region.block, list[ir.Node]()
        streams = (stream(before.get(block.id, block)), stream(block))
        condition = _condition(block.id, streams, skips.gates[block.id], inputs, nodes)
        if nodes:
            name_nodes(nodes, f"{block.id}/gate")
            graph.insert_before(region.nodes[0], nodes)
        off = without_block(region, graph)
        gate = enclose(region.nodes, region.outputs, condition, off, block.id)
        moved |= dict(zip(region.outputs, gate.outputs, strict=True))
        _compute_once(gate.attributes["then_branch"].as_graph())
    sort(graph)


def _compute_once(branch: ir.Graph) -> None:
    """Let what is equal in a branch be computed once; ONNX Runtime looks for that in the main graph alone."""
    CommonSubexpressionEliminationPass()(ir.Model(branch, ir_version=_IR_VERSION))


def _condition(
    id: str, streams: tuple[ir.Value, ir.Value], gate: Gate, inputs: _Inputs, nodes: list[ir.Node]
) -> ir.Value:
    """Whether a block runs: `mask and (other phase or (listed and not score > threshold))`."""

    def add(op: str, *operands: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, operands))
        return nodes[-1].outputs[0]

    further = [inputs.listed[id]] if id in inputs.listed else []
    if gate.score is not None:
        score = score_value(gate.score, streams, nodes, inputs.opset)
        further.append(add("Not", add("Greater", score, inputs.thresholds[id])))
    if not further:
        return inputs.runs[id]
    own = add("And", *further) if len(further) > 1 else further[0]
    if inputs.elsewhere is not None:
        own = add("Or", inputs.elsewhere, own)
    return add("And", inputs.runs[id], own)


def remove_gates(model: ir.Model) -> None:
    """Let all blocks of a model with gates run, as if there had never been any; its inputs for gates go.

    Changes the model; one without gates stays as it is. Dead nodes stay until `sweep`.
    """
    graph = model.graph
    given = [value for value in graph.inputs if value.name in {MASK, THRESHOLDS, *PHASE_MASKS.values()}]
    mask = next((value for value in given if value.name == MASK), None)
    if mask is None or not model.metadata_props.pop(GATES, ""):
        return
    for one in [graph, *graph.subgraphs()]:
        for node in [node for node in one if node.op_type == "If" and _asks(node.inputs[0], mask)]:
            _inline(node)
    for value in given:
        graph.inputs.remove(value)
    sort(graph)


def _asks(condition: ir.Value | None, mask: ir.Value) -> bool:
    """Whether a condition is made of a place of the mask: `Gather(mask, …)`, alone or in an And."""
    maker = condition.producer() if condition is not None else None
    if maker is None:
        return False
    if maker.op_type == "And":
        return any(_asks(value, mask) for value in maker.inputs)
    return maker.op_type == "Gather" and maker.inputs[0] is mask


def _inline(gate: ir.Node) -> None:
    """Put what a gate holds in its place."""
    graph, branch = graph_of(gate), gate.attributes["then_branch"].as_graph()
    nodes, results = [*branch], [*branch.outputs]
    branch.outputs.clear()
    branch.remove(nodes)
    graph.insert_before(gate, nodes)
    for old, new in zip(gate.outputs, results, strict=True):
        name, old.name = old.name, f"{old.name}/gated"
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, new)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        new.name, new.type, new.shape = name, old.type, old.shape
    graph.remove(gate)
