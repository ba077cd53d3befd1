"""Constants that edits have added to the stream become, at the end, part of a bias that is added before."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphprune.biases import SUM_BIAS_INPUTS, last_dim
from graphprune.dataflow import SKIP_NORMS
from graphprune.surgery.operands import Operand, read_operand
from graphprune.surgery.values import NOTES, replace_value

# Marks the Adds of such constants.
_CONSTANT = f"{NOTES}constant"
# Where norms that are one op have β.
_BETA = {"LayerNormalization": 2, "SkipLayerNormalization": 3}


def mark_constant(node: ir.Node) -> None:
    """Note that a node, an Add of the stream and a stored vector, may be folded away."""
    node.meta[_CONSTANT] = True


def fold_constants(graph: ir.Graph, home: ir.Graph) -> None:
    """Take marked constants into a stored bias before them, where nobody reads the sum in between.

    The new biases are initializers of `home`.
    """
    for node in tuple(graph):
        stream = node.inputs[0] if node.meta.get(_CONSTANT) else None
        constant = read_operand(node, 1) if stream is not None else None
        place = (
            _bias_before(stream, constant) if stream is not None and isinstance(constant, Operand) else None
        )
        if place is None or stream is None or not isinstance(constant, Operand):
            continue
        total = place.read().astype(np.float64) + constant.read().reshape(place.shape)
        place.write(total, home, f"{place.origin.name or 'bias'}/and_constant")
        replace_value(node.outputs[0], stream)
        graph.remove(node, safe=True)


def _bias_before(stream: ir.Value, constant: Operand) -> Operand | None:
    """The stored bias of the last sum, or β of the norm, before a constant is added: both can be one."""
    node = stream.producer()
    if node is None or not _read_once(stream):
        return None
    places: list[tuple[ir.Node, int]] = []
    if node.op_type in _BETA and stream is node.outputs[0]:
        places.append((node, _BETA[node.op_type]))
    elif node.op_type in SKIP_NORMS and not _is_read(node.outputs[0]):
        places.append((node, SUM_BIAS_INPUTS[node.op_type]))
    elif node.op_type == "Add":
        places += [(node, 0), (node, 1)]
        places += [place for value in node.inputs if value is not None for place in _added(value)]
    found = (read_operand(one, index) for one, index in places)
    return next((one for one in found if isinstance(one, Operand) and _fits(one, constant)), None)


def _added(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Where a summand may have a bias of its own, a change of layout before it aside."""
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and _read_once(value) and node.inputs[0] is not None:
        value, width = node.inputs[0], last_dim(node)
        node = value.producer()
        if width is None:
            return []
    if node is None or not _read_once(value):
        return []
    return {"Add": [(node, 0), (node, 1)], "Gemm": [(node, 2)]}.get(node.op_type, [])


def _fits(place: Operand, constant: Operand) -> bool:
    """Whether both are vectors along the last axis, of one size and type."""
    beta = place.node.attributes.get("beta")
    return (
        bool(place.shape)
        and place.shape[-1] == math.prod(place.shape) == math.prod(constant.shape)
        and place.read_type == constant.read_type
        and (beta is None or beta.as_float() == 1.0)
    )


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
