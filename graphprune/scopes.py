"""All nodes of a model, subgraphs included, as one order with its edges.

Recovery reads one graph at a time. Who asks what comes before or after a block wherever it lies
(the branches of a merged decoder, what surrounds them) needs them all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.dataflow import Class, Flow, attribute_graphs
from graphprune.lowering import lower


@dataclass(frozen=True, eq=False)
class Scope:
    """The nodes of a model, each after what it reads, the nodes of its subgraphs right before it.

    `readers` and `feeders` are the edges between them; what a subgraph puts out feeds its node.
    `classes` says what values are made of, `linears` are the parametric linear maps.
    """

    order: tuple[ir.Node, ...]
    feeders: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    readers: dict[ir.Node, list[ir.Node]] = field(default_factory=dict)
    classes: dict[ir.Value, Class] = field(default_factory=dict)
    linears: set[ir.Node] = field(default_factory=set)

    @staticmethod
    def of(model: ir.Model) -> Scope:
        """Read a model, whose nodes are in topological order."""
        scope = Scope(tuple(_nodes(model.graph)))
        entries = _entries(scope.order)
        for node in scope.order:
            feeders = tuple(dict.fromkeys(_feeders(node, entries)))
            scope.feeders[node] = feeders
            scope.readers.setdefault(node, [])
            for feeder in feeders:
                scope.readers.setdefault(feeder, []).append(node)
        scope._classify(lower(model.graph))
        return scope

    def class_of(self, node: ir.Node) -> Class:
        """What a node puts out: of several outputs, the most that any is."""
        return max((self.classes.get(value, Class.DATA) for value in node.outputs), default=Class.DATA)

    def _classify(self, flow: Flow) -> None:
        self.classes.update(flow.classes)
        self.linears.update(op.node for op in flow.ops if op.linear)
        for node in flow.captured:
            for graph in _graphs(node):
                self._classify(lower(graph, flow))


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        yield from attribute_graphs(attribute)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for inner in _graphs(node):
            yield from _nodes(inner)
        yield node


def _entries(nodes: tuple[ir.Node, ...]) -> dict[ir.Value, ir.Node]:
    """The inputs of subgraphs, with the node that feeds them."""
    return {value: node for node in nodes for graph in _graphs(node) for value in graph.inputs}


def _feeders(node: ir.Node, entries: dict[ir.Value, ir.Node]) -> Iterator[ir.Node]:
    inner = (value for graph in _graphs(node) for value in graph.outputs)
    for value in (*node.inputs, *inner):
        host = entries.get(value) if value is not None else None
        fed = (value,) if host is None else host.inputs
        yield from (maker for v in fed if v is not None and (maker := v.producer()) is not None)
