"""Adding what sets one layer's parameters apart from another's onto a third: layers that collapse into one.

LaCo: Yang et al., 2024, https://arxiv.org/abs/2402.11187.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Architecture, Block, Layer
from graphprune.dataflow import SKIP_NORMS
from graphprune.surgery.fitted import said
from graphprune.surgery.operands import Operand, read_operand
from graphprune.surgery.values import place_of

Pair: TypeAlias = tuple[Operand, Operand]


def mergeable(layer: Layer, into: Layer) -> list[Pair] | str:
    """The parameters of `into`, each with that of `layer` which has its place; why there are none.

    Reads no weights, and changes nothing.
    """
    if [block.kind for block in layer.blocks] != [block.kind for block in into.blocks]:
        return "its blocks are not of the same kinds"
    pairs: list[Pair] = []
    for own, theirs in zip(into.blocks, layer.blocks, strict=True):
        stored = [_linear_weights(block) for block in (own, theirs)]
        unread = next((reason for found in stored for reason in found if isinstance(reason, str)), "")
        if unread:
            return unread
        origins = [{weight.origin for weight in found if isinstance(weight, Operand)} for found in stored]
        if origins[0] & origins[1]:
            return f"{own.id} and {theirs.id} share weights"
        parameters = [_parameters_of(block) for block in (own, theirs)]
        if [one.form for one in parameters[0]] != [one.form for one in parameters[1]]:
            return f"the parameters of {own.id} and {theirs.id} are not of the same form"
        pairs += [(a.stored, b.stored) for a, b in zip(*parameters, strict=True)]
    return pairs


def merge_parameters(pairs: Sequence[Pair], name: str, architecture: Architecture) -> None:
    """Add to every first parameter what sets the second one apart from it: `θ + (θ_other - θ)`.

    Both differ by what they were before any edit, and what is added to is what earlier edits have left. The
    new weights are called after `name`. Raises `EditError` where one does not fit the parameter's type.
    """
    for number, (own, other) in enumerate(pairs):
        place = place_of(own.value, own.node, own.index)
        now = read_operand(*place) if place is not None else ""
        if own.origin is not other.origin and isinstance(now, Operand):
            apart = other.read().astype(np.float64) - own.read()
            own.write(now.read() + apart, architecture.model.graph, f"{name}/merged.{number}")


@dataclass(frozen=True, eq=False)
class _Parameter:
    """A parameter, and what it is for: two layers' have to be for the same, in the same order."""

    stored: Operand
    use: str

    @property
    def form(self) -> tuple[object, ...]:
        return self.use, self.stored.shape, self.stored.dtype


def _parameters_of(block: Block) -> list[_Parameter]:
    """The stored vectors and matrices of a block and its norms: by use, those of one in the graph's order."""
    order = {node: number for number, node in enumerate(block.join.graph or ())}
    uses = dict(_uses(block))
    places = sorted(uses, key=lambda place: (uses[place], order.get(place[0], -1), place[1]))
    found = ((read_operand(*place), uses[place]) for place in places)
    return [_Parameter(o, use) for o, use in found if isinstance(o, Operand) and math.prod(o.shape) > 1]


def _uses(block: Block) -> Iterator[tuple[tuple[ir.Node, int], str]]:
    """The operands of a block and what they are for, the more telling word last.

    A fused sum-and-norm may hold the norm of another block: of it only what is this block's own counts.
    """
    norms = [*block.norms, *(norm for branch in block.branches for norm in branch.norms)]
    own = dict.fromkeys((*block.nodes, *block.sums, *(node for norm in norms for node in norm.nodes)))
    for node in own:
        if node.op_type not in SKIP_NORMS:
            yield from (((node, index), f"{node.op_type} {index}") for index in range(len(node.inputs)))
    for branch in block.branches:
        for linear in branch.linears:
            yield from _of_values(
                linear.node, dict.fromkeys(linear.weights, f"{branch.kind} {linear.role} weight")
            )
        yield from (((bias.node, bias.index), f"{branch.kind} {bias.role} bias") for bias in branch.biases)
    for norm in norms:
        for node in norm.nodes:
            yield from _of_values(node, {norm.scale: f"{norm.role} γ", norm.bias: f"{norm.role} β"})


def _of_values(
    node: ir.Node, uses: Mapping[ir.Value | None, str]
) -> Iterator[tuple[tuple[ir.Node, int], str]]:
    """The operands of a node that are these values."""
    for index, value in enumerate(node.inputs):
        if value is not None and value in uses:
            yield (node, index), uses[value]


def _linear_weights(block: Block) -> list[Operand | str]:
    """The stored weights of a block's linears; the reason for each that is none."""
    linears = [linear for branch in block.branches for linear in branch.linears]
    if any(not linear.weights for linear in linears):
        return ["it has a linear without weights of its own"]
    return [
        found
        for linear in linears
        for index, value in enumerate(linear.node.inputs)
        if value is not None and any(value is weight for weight in linear.weights)
        for found in [read_operand(linear.node, index)]
    ] or [f"no weight of it is stored, as at {said(block.join)}"]
