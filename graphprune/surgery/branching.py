"""The two branches of a gate: the block as it is, and what is there in its place where it does not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphprune.dataflow import has_subgraph
from graphprune.errors import EditError
from graphprune.surgery.dead import sweep_nodes
from graphprune.surgery.norms import AROUND
from graphprune.surgery.regions import Region
from graphprune.surgery.sums import drop_branch
from graphprune.surgery.values import current, graph_of, replace_value


@dataclass(frozen=True, eq=False)
class _Copy:
    """A copy of a region in a graph of its own that reads the values around it.

    Nodes that hold subgraphs are left out: they belong to the branch that is dropped.
    """

    graph: ir.Graph
    nodes: dict[ir.Node, ir.Node]
    values: dict[ir.Value, ir.Value]

    @staticmethod
    def of(region: Region, around: ir.Graph) -> _Copy:
        nodes: dict[ir.Node, ir.Node] = {}
        values: dict[ir.Value, ir.Value] = {}
        for node in (node for node in region.nodes if not has_subgraph(node)):
            new = ir.Node(
                node.domain, node.op_type, [v if v is None else values.get(v, v) for v in node.inputs],
                list(node.attributes.values()), num_outputs=len(node.outputs), version=node.version,
            )  # fmt: skip
            new.meta.update(node.meta)
            for old, made in zip(node.outputs, new.outputs, strict=True):
                made.type, made.shape = old.type, old.shape
                values[old] = made
            nodes[node] = new
        outputs = [values[value] for value in region.outputs]
        graph = ir.Graph([], outputs, nodes=nodes.values(), opset_imports=dict(around.opset_imports))
        graph.meta[AROUND] = around
        return _Copy(graph, nodes, values)


def without_block(region: Region, around: ir.Graph, start: ir.Value | None = None) -> ir.Graph:
    """A graph that puts out what a region does when its block is dropped and the norm after it kept.

    Where `start` is given, it stands for the stream behind the dropped block.
    """
    copy = _Copy.of(region, around)
    block = region.block
    end = copy.values.get(region.end, region.end)
    for value in region.rounded:
        replace_value(copy.values[value], end)
    sums = tuple(copy.nodes.get(node, node) for node in block.sums)
    copied = replace(block, join=copy.nodes[block.join], sums=sums, nodes=())
    for branch in block.branches:
        terms = tuple(copy.values.get(term, term) for term in branch.terms)
        drop_branch(replace(branch, terms=terms, nodes=()), copied)
    if start is not None:
        _read_instead(copy.graph, current(end), start)
    sweep_nodes(copy.graph)
    _require_apart(copy.graph, region)
    name = f"{block.id}/{'off' if start is None else 'passed'}"
    copy.graph.name = name
    rename(copy.graph, name)
    return copy.graph


def _require_apart(graph: ir.Graph, region: Region) -> None:
    for node in graph:
        for maker in (value.producer() for value in node.inputs if value is not None):
            if maker in region.nodes:
                raise EditError(
                    f"{region.block.id} cannot be gated: what is left without it needs node '{maker.name}' "
                    f"({maker.op_type})"
                )


def _read_instead(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for use in tuple(old.uses()):
        if use.node.graph is graph:
            use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            node = ir.node("Identity", [new])
            graph.append(node)
            node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
            graph.outputs[index] = node.outputs[0]


def rename(graph: ir.Graph, prefix: str) -> None:
    """Names in a subgraph must differ from all that are around it."""
    for number, node in enumerate(graph):
        node.name = f"{prefix}/{number}_{node.op_type}"
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_{index}"


def choice(condition: ir.Value, then: ir.Graph, otherwise: ir.Graph, name: str) -> ir.Graph:
    """A graph that puts out what `then` does where `condition` is true, else what `otherwise` does."""
    node = ir.node("If", [condition], num_outputs=len(then.outputs))
    set_branches(node, then, otherwise)
    graph = ir.Graph([], node.outputs, nodes=[node], name=name)
    rename(graph, name)
    return graph


def passing(value: ir.Value, name: str) -> ir.Graph:
    """A graph that puts out a value of the graphs around it."""
    node = ir.node("Identity", [value])
    graph = ir.Graph([], node.outputs, nodes=[node], name=name)
    rename(graph, name)
    return graph


def set_branches(node: ir.Node, then: ir.Graph, otherwise: ir.Graph) -> None:
    """Give an If its branches."""
    node.attributes.add(ir.AttrGraph("then_branch", then))
    node.attributes.add(ir.AttrGraph("else_branch", otherwise))


def enclose(
    nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], condition: ir.Value, otherwise: ir.Graph, name: str
) -> ir.Node:
    """Let `nodes` of a graph run if `condition` is true, else `otherwise`; returns the If that says so.

    The nodes move into it; whoever reads `outputs` reads its outputs instead, which have their names.
    """
    graph, inside = graph_of(nodes[-1]), set(nodes)
    node = ir.node("If", [condition], num_outputs=len(outputs), name=f"{name}/gate")
    graph.insert_after(nodes[-1], node)
    for old, new in zip(outputs, node.outputs, strict=True):
        for use in tuple(old.uses()):
            if use.node not in inside:
                use.node.replace_input_with(use.idx, new)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = f"{old.name}/on"
    graph.remove(nodes)
    set_branches(node, ir.Graph([], outputs, nodes=nodes, name=f"{name}/on"), otherwise)
    return node
