"""Fused sums-and-norms whose own norm has become useless take over the one that is needed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.dataflow import SKIP_NORMS
from graphprune.surgery.norms import ORT_RMS_NORM, epsilon_of
from graphprune.surgery.values import replace_value

_NORM_OF = {
    "SkipLayerNormalization": {"LayerNormalization"},
    "SkipSimplifiedLayerNormalization": {ORT_RMS_NORM, "RMSNormalization"},
}
# Where a fused op puts out the norm and the sum.
_NORMED, _SUM = 0, 3


def take_over_norms(graph: ir.Graph) -> None:
    """Let a fused op do a norm of its sum, where nobody reads the norm that it does.

    A dropped block leaves that behind: the norm of what follows it stands alone, and the fused
    op before it normalizes for nobody. Afterwards the graph is as if exported without the block.
    """
    for node in tuple(graph):
        if node.op_type in SKIP_NORMS and len(node.outputs) > _SUM and not _is_read(node.outputs[_NORMED]):
            norm = next((use.node for use in node.outputs[_SUM].uses() if _fits(use.node, node)), None)
            if norm is not None:
                _take_over(node, norm)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _fits(norm: ir.Node, fused: ir.Node) -> bool:
    """Whether a fused op can do this norm: of its sum, over the last axis, by stored weights, ε alike."""
    axis = norm.attributes.get("axis")
    weights = [value for value in norm.inputs[1:] if value is not None]
    return (
        norm.op_type in _NORM_OF[fused.op_type]
        and norm.graph is fused.graph
        and norm.inputs[0] is fused.outputs[_SUM]
        and (axis is None or axis.as_int() == -1)
        and np.float32(epsilon_of(norm)) == np.float32(epsilon_of(fused))
        and not any(_is_read(output) for output in norm.outputs[1:])
        and all(value.producer() is None for value in weights)
    )


def _take_over(fused: ir.Node, norm: ir.Node) -> None:
    weights = [*norm.inputs[1:], None][: 1 if norm.op_type != "LayerNormalization" else 2]
    fused.resize_inputs(max(len(fused.inputs), 2 + len(weights)))
    for index, value in enumerate(weights, start=2):
        fused.replace_input_with(index, value)
    replace_value(norm.outputs[0], fused.outputs[_NORMED])
    graph = norm.graph
    assert graph is not None
    graph.remove(norm, safe=True)
