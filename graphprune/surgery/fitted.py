"""What closed-form healing fits, as stored weights: output projections of blocks, and the norms after joins.

A block is read as `stream + Σ input_i @ weight_i + bias`. Where anything else stands between its last
linears and its join (a scale, a norm, another order of positions, quantization), the reason is told instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.architecture import Block, Branch, Norm
from graphprune.biases import BIAS_INPUTS, SUM_BIAS_INPUTS, last_dim
from graphprune.dataflow import SKIP_NORMS, weight_indices
from graphprune.surgery.operands import Operand, read_operand
from graphprune.surgery.values import current

Floats: TypeAlias = npt.NDArray[np.float32]

_RENAMES = {"Identity", "Cast", "Dropout"}
# Linears of which the weight is read; "transB" and "alpha" are followed, these have to be as here.
_WEIGHTS = {"MatMul", "Gemm", "FusedMatMul", "Conv"}
_PLAIN = {"transA": 0, "transBatchA": 0, "transBatchB": 0, "beta": 1.0, "group": 1}


@dataclass(frozen=True, eq=False)
class Projection:
    """The last linear of a branch: `node` puts out `input @ weight`, and maybe a bias.

    `input` has its `k` features along `axis`: the last one (-1), or 1 for a convolution over single
    positions. `stored` is the operand of the node that holds the weight.
    """

    node: ir.Node
    input: ir.Value
    axis: int
    stored: Operand

    @property
    def weight(self) -> Floats:
        """The weight as [k, d], read anew each time."""
        weight = self.turned(self.stored.read())
        return weight if self.alpha == 1.0 else weight * np.float32(self.alpha)

    @property
    def inputs(self) -> int:
        """How many features it reads (k)."""
        return self.stored.shape[1 if self._is_turned else 0]

    @property
    def width(self) -> int:
        """How many features it puts out (d)."""
        return self.stored.shape[0 if self._is_turned else 1]

    @property
    def output_axis(self) -> int:
        """The axis of `stored` along which it has one entry for every feature that is put out."""
        return 0 if self._is_turned else 1

    @property
    def alpha(self) -> float:
        """What the node multiplies its product by."""
        alpha = self.node.attributes.get("alpha")
        return 1.0 if alpha is None else alpha.as_float()

    @property
    def _is_turned(self) -> bool:
        """Whether the node holds its weight as [d, k]."""
        turned = self.node.attributes.get("transB")
        return self.node.op_type == "Conv" or (turned is not None and bool(turned.as_int()))

    def turned(self, array: Floats) -> Floats:
        """A weight as the node holds it, as [k, d], and the other way round; a convolution's without axes."""
        matrix = array.reshape(array.shape[:2])
        return matrix.T if self._is_turned else matrix


@dataclass(frozen=True, eq=False)
class Projections:
    """The output projections of a block, one for each of its branches, in their order.

    The join adds to the stream `input @ weight` of each, and `bias`, and nothing else. `places` are the
    operands that hold the bias (none, one, or several that add up); `width` is d.
    """

    parts: tuple[Projection, ...]
    places: tuple[Operand, ...]
    width: int

    @property
    def bias(self) -> Floats:
        """The sum of all biases, [d]; zeros where there are none."""
        total = np.zeros(self.width, np.float32)
        for place in self.places:
            total += place.read().reshape(-1)
        return total


@dataclass(frozen=True, eq=False)
class PostNorm:
    """The norm behind the join of a post-norm block: `scale * normalized + shift` over the last axis."""

    norm: Norm
    gamma: Operand
    beta: Operand | None

    @property
    def scale(self) -> Floats:
        """γ, [d]."""
        return self.gamma.read().reshape(-1)

    @property
    def shift(self) -> Floats:
        """β, [d]; zeros where the norm has none."""
        return np.zeros_like(self.scale) if self.beta is None else self.beta.read().reshape(-1)


class UnreadableError(Exception):
    """Why a block is not a sum of linears."""


def output_projections(block: Block) -> Projections | str:
    """The linears that write to the stream at a block's join; the reason where these are not all there is.

    Reads shapes, not weights; these are read when they are asked for.
    """
    try:
        return _projections(block)
    except UnreadableError as unreadable:
        return str(unreadable)


def post_norm(block: Block) -> PostNorm | str:
    """The norm after a block's join, which stays where the block goes; why there is none to refit."""
    norm = next((norm for norm in block.norms if norm.role == "post"), None)
    if norm is None or block.placement != "post":
        return "it has no norm after its join"
    where = f"the norm after its join, at {said(norm.nodes[-1])},"
    if norm.kind not in {"layer", "rms"}:
        return f"{where} is a {norm.kind} norm"
    if norm.scale is None:
        return f"{where} has no γ of its own"
    gamma = _vector(norm, norm.scale)
    beta = None if norm.bias is None else _vector(norm, norm.bias)
    if isinstance(gamma, str) or isinstance(beta, str):
        return f"{where} cannot be refitted: {gamma if isinstance(gamma, str) else beta}"
    if beta is not None and math.prod(beta.shape) != math.prod(gamma.shape):
        return f"{where} has γ and β of different sizes"
    return PostNorm(norm, gamma, beta)


def said(node: ir.Node) -> str:
    """A node as messages name it."""
    return f"node '{node.name}' ({node.op_type})"


def _vector(norm: Norm, value: ir.Value) -> Operand | str:
    """The operand of a norm's nodes that is `value`, a stored vector along the last axis."""
    places = ((node, i) for node in norm.nodes for i, given in enumerate(node.inputs) if given is value)
    node, index = next(places, (None, 0))
    if node is None:
        return f"none of its nodes reads '{value.name}'"
    found = read_operand(node, index)
    if isinstance(found, Operand) and (not found.shape or math.prod(found.shape) != found.shape[-1]):
        return f"'{value.name}' has the shape {list(found.shape)}"
    return found


@dataclass(eq=False)
class _Sum:
    """The sum at a block's join, followed back to the stream, to linears, and to stored vectors."""

    block: Block
    stream: ir.Value
    parts: list[Projection] = field(default_factory=list)
    places: list[Operand] = field(default_factory=list)
    reshapes: list[ir.Node] = field(default_factory=list)
    streams: int = 0

    def follow(self, node: ir.Node) -> None:
        """Take apart what an add-like node adds."""
        for index in _summands(node):
            value = node.inputs[index]
            if value is None:
                continue
            first = _first_name(value)
            maker = first.producer()
            if first is self.stream:
                self.streams += 1
            elif maker is not None and maker in self.block.sums:
                self.follow(maker)
            elif not self._take_bias(node, index):
                self._follow_term(value)
        if node.op_type == "Gemm":
            self.parts.append(projection(node))

    def _follow_term(self, value: ir.Value) -> None:
        """Go from a summand back to its linear."""
        while (node := value.producer()) is not None:
            if node.op_type == "Reshape":
                self.reshapes.append(node)
            elif node.op_type == "Add" and self._take_bias(node, 0):
                value = _given(node, 1)
                continue
            elif node.op_type not in _RENAMES and not (node.op_type == "Add" and self._take_bias(node, 1)):
                self._take_linear(node)
                return
            value = _given(node, 0)
        raise UnreadableError(f"its join adds '{value.name}', which no linear puts out")

    def _take_bias(self, node: ir.Node, index: int) -> bool:
        found = read_operand(node, index)
        if isinstance(found, str):
            return False
        if not found.shape or max(found.shape) == 1 or math.prod(found.shape) != max(found.shape):
            raise UnreadableError(f"what {said(node)} adds is no bias: its shape is {list(found.shape)}")
        self.places.append(found)
        return True

    def _take_linear(self, node: ir.Node) -> None:
        if not weight_indices(node):
            raise UnreadableError(f"{said(node)} stands between its last linear and its join")
        self.parts.append(projection(node))
        index = BIAS_INPUTS.get(node.op_type, len(node.inputs))
        given = index < len(node.inputs) and node.inputs[index] is not None
        if given and not self._take_bias(node, index):
            raise UnreadableError(f"the bias of {said(node)} is not stored as a float")


def _projections(block: Block) -> Projections:
    found = _Sum(block, _first_name(current(block.stream_in)))
    found.follow(block.join)
    if found.streams != 1:
        raise UnreadableError(f"its join, {said(block.join)}, does not add the stream just as it is")
    ordered = tuple(_of_branch(branch, found.parts) for branch in block.branches)
    if len(found.parts) != len(ordered):
        raise UnreadableError(f"{len(found.parts)} linears write to the stream")
    widths = {part.width for part in ordered} | {math.prod(place.shape) for place in found.places}
    if len(widths) != 1 or len({part.axis for part in ordered}) != 1:
        raise UnreadableError(f"what its join adds is not of one layout: its widths are {sorted(widths)}")
    broken = next((node for node in found.reshapes if last_dim(node) not in widths), None)
    if broken is not None:
        raise UnreadableError(f"{said(broken)} stands between its last linear and its join")
    return Projections(ordered, tuple(found.places), widths.pop())


def _of_branch(branch: Branch, parts: list[Projection]) -> Projection:
    own = {linear.node for linear in branch.linears}
    mine = [part for part in parts if part.node in own]
    if len(mine) != 1:
        raise UnreadableError(f"{len(mine)} linears of its {branch.kind} branch write to the stream, not one")
    return mine[0]


def projection(node: ir.Node) -> Projection:
    """A linear as `input @ weight`. Raises `UnreadableError`."""
    if node.op_type not in _WEIGHTS:
        raise UnreadableError(f"{said(node)} holds its weight quantized, packed, or fused with more")
    for name, plain in _PLAIN.items():
        given = node.attributes.get(name)
        if given is not None and given.value != plain:
            raise UnreadableError(f"{said(node)} has {name} {given.value}")
    stored = read_operand(node, 1)
    if isinstance(stored, str):
        raise UnreadableError(stored)
    convolves = node.op_type == "Conv"
    if convolves and not _is_pointwise(node, stored.shape):
        raise UnreadableError(f"{said(node)} convolves over more than one position")
    if not convolves and len(stored.shape) != 2:
        raise UnreadableError(f"the weight of {said(node)} has the shape {list(stored.shape)}, not two axes")
    return Projection(node, _given(node, 0), 1 if convolves else -1, stored)


def _is_pointwise(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a convolution maps every position by itself."""
    strides, pads = (node.attributes.get(name) for name in ("strides", "pads"))
    return (
        all(size == 1 for size in shape[2:])
        and (strides is None or set(strides.as_ints()) == {1})
        and (pads is None or not any(pads.as_ints()))
    )


def _summands(node: ir.Node) -> tuple[int, ...]:
    """The operands that an add-like node adds; of a Gemm that which it adds to its product."""
    if node.op_type in SKIP_NORMS:
        bias = SUM_BIAS_INPUTS[node.op_type]
        return (0, 1, bias) if bias < len(node.inputs) else (0, 1)
    known = {"Add": range(2), "Sum": range(len(node.inputs)), "BiasAdd": range(3), "Gemm": range(2, 3)}
    if node.op_type not in known:
        raise UnreadableError(f"its join, {said(node)}, does not simply add")
    return tuple(known[node.op_type])


def _first_name(value: ir.Value) -> ir.Value:
    """A value before it was passed on by Identity or Cast."""
    while (maker := value.producer()) is not None and maker.op_type in _RENAMES:
        value = _given(maker, 0)
    return value


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
