"""What one run of a kernel computes and moves: multiply-accumulates and bytes, from its actual shapes.

Shapes of activations come from ONNX Runtime's profile, those of weights from the graph: the profile
leaves weights out that a kernel has repacked for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.dataflow import CONVOLUTIONS, MICROSOFT, weight_indices
from graphprune.joins import FUSED_ATTENTION, PRODUCTS

Shape = tuple[int, ...]
# Products whose depth is the last axis of their first input.
_ROWS = PRODUCTS | {"MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "FusedGemm", "GemmFastGelu", "QGemm"}
_LOOKUPS = {"Gather", "GatherND", "GatherElements", "GatherBlockQuantized", "EmbedLayerNormalization"}


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of linear maps and attention (0 for all else), and bytes read and written."""

    macs: int
    bytes: int


def work(node: ir.Node, inputs: Sequence[Shape], outputs: Sequence[Shape], moved: int) -> Work:
    """The work of one run of `node`.

    `inputs` and `outputs` are the shapes that the profile lists, `moved` the bytes of the activations
    that it read and wrote. Weights count once, but for look-ups, which read only a part of them.
    """
    given = _by_index(node, inputs)
    weights = 0 if node.op_type in _LOOKUPS else sum(_nbytes(value) for value in node.inputs)
    return Work(_macs(node, given, list(outputs)), moved + weights)


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None else None


def _nbytes(value: ir.Value | None) -> int:
    tensor = _tensor(value)
    return tensor.nbytes if tensor is not None else 0


def _static(value: ir.Value | None) -> Shape | None:
    tensor = _tensor(value)
    return tuple(tensor.shape.numpy()) if tensor is not None else None


def _by_index(node: ir.Node, listed: Sequence[Shape]) -> dict[int, Shape]:
    """Shapes by the index of the input: weights that the list leaves out have their own."""
    found: dict[int, Shape] = {}
    rest = list(listed)
    for index, value in enumerate(node.inputs):
        static = _static(value)
        if value is None:
            continue
        if static is not None and (not rest or rest[0] != static):
            found[index] = static
        elif rest:
            found[index] = rest.pop(0)
    return found


def _macs(node: ir.Node, inputs: dict[int, Shape], outputs: list[Shape]) -> int:
    op = node.op_type
    if not outputs or not inputs:
        return 0
    if op in FUSED_ATTENTION:
        return _attention(node, inputs, outputs)
    if op in CONVOLUTIONS:
        return _convolution(node, inputs, outputs[0])
    if op == "Einsum":
        return _einsum(node, inputs)
    if op == "Gemm" or op in _ROWS:
        return math.prod(outputs[0]) * _depth(node, inputs)
    return 0


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.value)


def _depth(node: ir.Node, inputs: dict[int, Shape]) -> int:
    """How many products each element of the result sums."""
    shape = inputs.get(0, ())
    return shape[-2 if _flag(node, "transA") and len(shape) > 1 else -1] if shape else 0


def _convolution(node: ir.Node, inputs: dict[int, Shape], output: Shape) -> int:
    """Every position put out (transposed: taken in) uses each weight of its channel once."""
    kernel = inputs.get(next(iter(weight_indices(node)), 1), ())
    positions = inputs.get(0, ()) if node.op_type == "ConvTranspose" else output
    return math.prod(positions) * math.prod(kernel[1:]) if kernel else 0


def _einsum(node: ir.Node, inputs: dict[int, Shape]) -> int:
    """The product of the sizes of all letters."""
    terms = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = inputs.get(index, ())
        before, dots, after = term.partition("...")
        if dots:
            middle = shape[len(before) : len(shape) - len(after)]
            sizes["..."] = max(sizes.get("...", 1), math.prod(middle))
        ends = (*shape[: len(before)], *(shape[len(shape) - len(after) :] if dots else ()))
        sizes.update(zip(before + after, ends, strict=False))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _attention(node: ir.Node, inputs: dict[int, Shape], outputs: list[Shape]) -> int:
    """Scores and their use: 2 × queries × keys × width; with the projections where the op has them."""
    context = outputs[0]
    projections = 0
    packed = weight_indices(node)
    if node.domain == MICROSOFT and packed and packed[0] in inputs and len(inputs.get(0, ())) == 3:
        projections = math.prod(inputs[0][:2]) * math.prod(inputs[packed[0]])
    return projections + 2 * math.prod(context) * _keys(node, inputs, outputs)


def _keys(node: ir.Node, inputs: dict[int, Shape], outputs: list[Shape]) -> int:
    """How many tokens are attended to: those of the present, or of the keys, or of the input."""
    presents = [shape for shape in outputs[1:] if len(shape) >= 4]
    if presents:
        return presents[0][-2]
    own = weight_indices(node)  # such an op projects its input itself: its second one are the weights
    keys = inputs.get(0 if own else 1) or inputs.get(0, ())
    return 0 if len(keys) < 3 else keys[-2]
