"""Exits in a stack: between two layers, a head, a criterion, and an `If` around the layers behind.

The Ifs follow each other flat in the main graph: ONNX Runtime does not repack weights that are read two
subgraphs deep. Samples that are sure enough leave; the rows of the others move together, run on, and what
comes of them is put back in its place. What later layers read besides the stream, they compute for the rows
that are left (`excerpt.py`).
"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Architecture, Stack
from graphprune.errors import EditError
from graphprune.surgery.dead import sweep_nodes
from graphprune.surgery.exitchain import Chain, State
from graphprune.surgery.exitfile import Heads
from graphprune.surgery.exitsite import Site
from graphprune.surgery.gating import allow_defaults, optional_input
from graphprune.surgery.values import replace_value, sort

THRESHOLDS, EXIT_LAYER, SCORES = "exit_thresholds", "exit_layer", "logits"
METADATA = "graphprune.exits"


def add_exits(architecture: Architecture, stack: Stack, heads: Heads) -> None:
    """Give a stack of the main graph exits.

    `exit_thresholds`, float [exits], is an optional input: samples that are at least so sure leave. A value
    over all that can be (2, or one more than there are exits where the criterion counts) is never, −1 always.
    `exit_layer`, int64 [batch], says how many layers have run for each sample. Classifiers' scores, `logits`
    [batch, C], stand for the outputs that the model had. Keys and values that are put out are complete: what
    a sample left with is taken through the layers that it did not run. Raises `EditError`.
    """
    graph = architecture.model.graph
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    if THRESHOLDS in taken or any(value.name == EXIT_LAYER for value in graph.outputs):
        raise EditError("the model has exits already: insert all of them at once")
    allow_defaults(architecture.model)
    site = Site.of(architecture, stack, heads)
    chain = Chain(site)
    default = ir.tensor(np.array([head.threshold for head in heads.exits], np.float32))
    state = chain.build(optional_input(graph, THRESHOLDS, default))
    _put_in(site, chain, state)
    described = {
        "stack": stack.name, "layers": site.layers, "after": [head.after for head in heads.exits],
        "heads": heads.kind, "criterion": heads.criterion, "batch_mode": heads.batch_mode,
    }  # fmt: skip
    architecture.model.metadata_props[METADATA] = json.dumps(described)


def _put_in(site: Site, chain: Chain, state: State) -> None:
    """Put the nodes into the graph, and what samples left with where the last stream was read."""
    graph, last = site.graph, site.heads.last
    for number, node in enumerate(site.main.nodes):
        node.name = f"exits/{number}_{node.op_type}"
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_{index}"
    graph.extend(site.main.nodes)
    if last is not None and last.weight is not None:
        graph.outputs.clear()
        _put_out(site, state.result, SCORES, ir.DataType.FLOAT, last.weight.shape[1])
    else:
        replace_value(site.streams[-1], state.result)
        for old, new in chain.presents.items():
            new.name, new.type, new.shape = old.name, old.type, old.shape
            old.name = f"{old.name}/replaced"
            graph.outputs[[*graph.outputs].index(old)] = new
    _put_out(site, state.depth, EXIT_LAYER, ir.DataType.INT64)
    sort(graph)
    sweep_nodes(graph)
    _require_gone(chain.moved, graph)


def _put_out(site: Site, value: ir.Value, name: str, kind: ir.DataType, *sizes: int) -> None:
    value.name, value.type = name, ir.TensorType(kind)
    value.shape = ir.Shape([site.batch.name or None, *sizes])
    site.graph.outputs.append(value)


def _require_gone(moved: set[ir.Node], graph: ir.Graph) -> None:
    """Raise `EditError` where the main graph still needs what runs in a branch now."""
    for node in (node for node in graph if node in moved):
        for value in node.outputs:
            reader = next((use.node for use in value.uses() if use.node not in moved), None)
            if reader is None and not value.is_graph_output():
                continue
            what = f"node '{reader.name}' ({reader.op_type})" if reader else f"the output '{value.name}'"
            raise EditError(
                f"{what} needs what node '{node.name}' ({node.op_type}) behind an exit computes: no sample "
                "could leave before it"
            )
