"""Putting fitted weights in place: output projections and norms get other numbers, and nothing else changes.

Others that read the same stored weights (ALBERT's layers, tied ones) keep them: a node gets its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Architecture, Block
from graphprune.biases import SUM_BIAS_INPUTS
from graphprune.dataflow import SKIP_NORMS
from graphprune.surgery.fitted import Floats, PostNorm, Projections
from graphprune.surgery.operands import stored_in
from graphprune.surgery.values import current, detached, graph_of, place_of, replace_value

# Where a norm op takes β, if it takes one at all.
_BETA = {"LayerNormalization": 2, "SkipLayerNormalization": 3}
_BIAS = {"Gemm": 2, "Conv": 2}


def refit_norm(
    block: Block, found: PostNorm, architecture: Architecture, scale: Floats | None, shift: Floats | None
) -> None:
    """Give the norm behind a block's join another γ and β, both [d]; None leaves one as it is.

    A norm without β gets one, or an Add where its op takes none. Nothing happens where the norm is gone.
    """
    home = architecture.model.graph
    place = place_of(found.gamma.value, found.gamma.node, found.gamma.index)
    if place is None:
        return
    if shift is not None and found.beta is not None:
        found.beta.write(shift, home, f"{block.id}/shift")
    elif shift is not None and shift.any():
        beta = stored_in(home, f"{block.id}/shift", shift, found.gamma.read_type)
        _add_beta(place[0], beta, current(found.norm.output))
    if scale is not None:
        found.gamma.write(scale, home, f"{block.id}/scale")


def _add_beta(node: ir.Node, beta: ir.Value, output: ir.Value) -> None:
    index = _BETA.get(node.op_type)
    if index is None:
        _add_behind(output, beta)
    else:
        _fill(node, index, beta)


def refit_projections(
    block: Block,
    found: Projections,
    architecture: Architecture,
    weights: Mapping[int, Floats],
    bias: Floats | None,
) -> None:
    """Give the output projections of a block other weights ([k, d] by branch) and another bias ([d]).

    `bias` stands in place of all biases that the block's join adds; None leaves them. Nothing happens to
    a linear that is gone.
    """
    home = architecture.model.graph
    for number, weight in weights.items():
        part = found.parts[number]
        part.stored.write(part.turned(weight / np.float32(part.alpha)), home, f"{block.id}/weight.{number}")
    if bias is None:
        return
    for number, place in enumerate(found.places):
        value = bias if number == 0 else np.zeros_like(bias)
        place.write(value, home, f"{block.id}/bias" + (f".{number}" if number else ""))
    if not found.places and bias.any() and not detached(found.parts[0].node):
        _add_bias(block, found, stored_in(home, f"{block.id}/bias", bias, found.parts[0].stored.read_type))


def _add_bias(block: Block, found: Projections, bias: ir.Value) -> None:
    """Add a bias where there is none: as an operand of the linear or of the fused sum, or by an Add."""
    node, join = found.parts[0].node, block.join
    if node.op_type in _BIAS and node is not join:
        _fill(node, _BIAS[node.op_type], bias)
    elif join.op_type in SKIP_NORMS and not detached(join):
        _fill(join, SUM_BIAS_INPUTS[join.op_type], bias)
    else:
        _add_behind(current(node.outputs[0]), bias)


def _fill(node: ir.Node, index: int, value: ir.Value) -> None:
    """Give a node an operand that it has left out so far."""
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, value)


def _add_behind(value: ir.Value, addend: ir.Value) -> None:
    """Let everybody who reads a value read it with a stored one added."""
    maker = value.producer()
    assert maker is not None
    add = ir.node("Add", [value, addend])
    add.outputs[0].type, add.outputs[0].shape = value.type, value.shape
    graph_of(maker).insert_after(maker, add)
    replace_value(value, add.outputs[0])
    add.replace_input_with(0, value)
