"""Norms as nodes: making them, and passing them by."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.dataflow import MICROSOFT
from graphprune.surgery.values import NOTES, constant

LAYER_NORM_OPSET = 17
RMS_NORM_OPSET = 23
# ONNX Runtime keeps this one in the default domain; opset 23 has it as RMSNormalization.
ORT_RMS_NORM = "SimplifiedLayerNormalization"
# Where a graph that is to stand in another one keeps that one.
AROUND = f"{NOTES}around"


def norm_nodes(
    value: ir.Value,
    gamma: ir.Value | None,
    beta: ir.Value | None,
    epsilon: float,
    graph: ir.Graph,
    *,
    rms: bool,
) -> list[ir.Node]:
    """Nodes that normalize `value` over its last axis: one op where the graph has it, else its parts.

    A graph has what its opset has, and the runtime's own op where it uses that already.
    Layer normalization: Ba et al., 2016; RMS normalization: Zhang & Sennrich, 2019.
    """
    opset = graph.opset_imports.get("", 1)
    if gamma is not None and not rms and opset >= LAYER_NORM_OPSET:
        inputs = [value, gamma] if beta is None else [value, gamma, beta]
        return [ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon})]
    if gamma is not None and rms and opset >= RMS_NORM_OPSET:
        return [ir.node("RMSNormalization", [value, gamma], {"axis": -1, "epsilon": epsilon})]
    whole: ir.Graph = graph.meta.get(AROUND, graph)
    if gamma is not None and rms and any(node.op_type == ORT_RMS_NORM for node in whole.all_nodes()):
        return [ir.node(ORT_RMS_NORM, [value, gamma], {"axis": -1, "epsilon": epsilon, "stash_type": 1})]
    return _decomposed_norm(value, gamma, beta, epsilon, opset, rms=rms)


def _decomposed_norm(
    value: ir.Value, gamma: ir.Value | None, beta: ir.Value | None, epsilon: float, opset: int, *, rms: bool
) -> list[ir.Node]:
    nodes: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(kind, inputs))
        return nodes[-1].outputs[0]

    def mean(of: ir.Value) -> ir.Value:
        if opset >= 18:
            nodes.append(ir.node("ReduceMean", [of, constant(np.array([-1], np.int64), nodes)]))
        else:
            nodes.append(ir.node("ReduceMean", [of], {"axes": [-1]}))
        return nodes[-1].outputs[0]

    kind = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    centred = value if rms else add("Sub", value, mean(value))
    variance = mean(add("Mul", centred, centred))
    deviation = add("Sqrt", add("Add", variance, constant(np.array(epsilon, kind), nodes)))
    result = add("Div", centred, deviation)
    if gamma is not None:
        result = add("Mul", result, gamma)
    if beta is not None:
        add("Add", result, beta)
    return nodes


def epsilon_of(node: ir.Node) -> float:
    """The ε of a norm; by default ONNX's norms have 1e-5, and ONNX Runtime's fused ones 1e-12."""
    attribute = node.attributes.get("epsilon")
    if attribute is not None:
        return attribute.as_float()
    return 1e-12 if node.domain == MICROSOFT else 1e-5
