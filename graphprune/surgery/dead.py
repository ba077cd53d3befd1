"""Removing what nobody reads."""

from __future__ import annotations

import onnx_ir as ir

from graphprune.dataflow import attribute_graphs
from graphprune.surgery.folding import fold_constants
from graphprune.surgery.fusing import take_over_norms
from graphprune.surgery.values import NOTES


def sweep(model: ir.Model) -> None:
    """Remove nodes, initializers and opset imports that nobody uses, to a fixpoint, subgraphs included.

    Graph inputs stay, whether they are read or not. A fused sum-and-norm that is left with a norm
    for nobody takes over another one of its sum. A constant that an edit adds to the stream becomes part
    of a bias before it.
    """
    for graph in _graphs(model.graph):
        sweep_nodes(graph)
        fold_constants(graph, model.graph)
        take_over_norms(graph)
    for graph in _graphs(model.graph):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
    used = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)} | {""}
    for domain in set(model.graph.opset_imports) - used:
        del model.graph.opset_imports[domain]
    for graph in _graphs(model.graph):
        _forget(graph)


def _forget(graph: ir.Graph) -> None:
    """Take away what edits noted: it is about a graph that is no more."""
    values = (value for node in graph for value in node.outputs)
    for noted in (graph, *graph, *values, *graph.inputs, *graph.initializers.values()):
        for key in [key for key in noted.meta if key.startswith(NOTES)]:
            del noted.meta[key]


def _graphs(graph: ir.Graph) -> list[ir.Graph]:
    """A graph and its subgraphs, inner ones first."""
    found: list[ir.Graph] = []
    for node in graph:
        for attribute in node.attributes.values():
            for inner in attribute_graphs(attribute):
                found += _graphs(inner)
    return [*found, graph]


def sweep_nodes(graph: ir.Graph) -> None:
    """Remove the nodes of one graph of which nobody reads anything."""
    for node in reversed(graph):
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        for attribute in node.attributes.values():
            for inner in attribute_graphs(attribute):
                _release(inner)
        graph.remove(node, safe=True)


def _release(graph: ir.Graph) -> None:
    """Let a subgraph that goes stop reading values of the graphs around it."""
    graph.outputs.clear()
    for node in reversed(graph):
        graph.remove(node, safe=True)
