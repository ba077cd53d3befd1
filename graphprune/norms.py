"""Normalizations in a data flow: one op, part of a fused op, or a dozen nodes.

Layer normalization (Ba et al., 2016), RMS normalization (Zhang & Sennrich, 2019), batch, group
and instance normalization. A decomposed one is found by its statistic: a reduction over the
squares of a value, by whose root the value is then divided. Casts and quantization may stand
between any two of its nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.architecture import NormKind
from graphprune.constants import is_scalar, scalar
from graphprune.dataflow import TRANSPARENT, Class, Flow, Op

FUSED: dict[str, NormKind] = {
    "LayerNormalization": "layer", "SkipLayerNormalization": "layer", "EmbedLayerNormalization": "layer",
    "RMSNormalization": "rms", "SimplifiedLayerNormalization": "rms",
    "SkipSimplifiedLayerNormalization": "rms", "BatchNormalization": "batch",
    "InstanceNormalization": "group", "GroupNormalization": "group",
    "GroupNorm": "group", "SkipGroupNorm": "group", "LpNormalization": "other",
    "MeanVarianceNormalization": "other",
}  # fmt: skip
# Input indices of γ and β, where they are not 1 and 2.
SCALE_AND_BIAS = {
    "SkipLayerNormalization": (2, 3), "SkipSimplifiedLayerNormalization": (2, None),
    "EmbedLayerNormalization": (5, 6), "RMSNormalization": (1, None), "LpNormalization": (None, None),
    "SimplifiedLayerNormalization": (1, None), "MeanVarianceNormalization": (None, None),
}  # fmt: skip

SQUARE_REDUCTIONS = {"ReduceSumSquare", "ReduceL2"}
REDUCTIONS = {"ReduceMean", "ReduceSum"} | SQUARE_REDUCTIONS
# What a statistic may pass on its way to the division.
STATISTIC_STEPS = {
    "Add", "Sub", "Sqrt", "Rsqrt", "Reciprocal", "Div", "Mul", "Pow", "Max", "Clip", "Exp", "Log",
    "Expand", "Reshape",
}  # fmt: skip
# Nodes from the statistic to the division, and of a whole norm, at most.
CHAIN_REACH, NORM_REACH = 12, 60


@dataclass(frozen=True, eq=False)
class FoundNorm:
    """A normalization in terms of flow values: `input` and `output` are their numbers."""

    kind: NormKind
    ops: tuple[Op, ...]
    input: int
    output: int
    scale: ir.Value | None
    bias: ir.Value | None


def find_norms(flow: Flow) -> list[FoundNorm]:
    """All normalizations of a graph, in the order of its ops."""
    found: list[FoundNorm] = []
    taken: set[Op] = set()
    for op in flow.ops:
        norm = _fused(flow, op) if op.kind in FUSED or op.part == "norm" else None
        if norm is None and op.kind in REDUCTIONS and op not in taken:
            norm = _decomposed(flow, op)
        if norm is not None:
            taken.update(norm.ops)
            found.append(norm)
    return found


def _fused(flow: Flow, op: Op) -> FoundNorm:
    indices = SCALE_AND_BIAS.get(op.node.op_type, (1, 2))
    scale, bias = (_constant_input(flow, op.node, index) for index in indices)
    kind, start, end = FUSED[op.node.op_type], op.inputs[0], op.outputs[0]
    centred, source = _centring(flow, start)
    if centred and kind == "rms":  # a layer norm of which an optimizer saw the middle only
        tail = _affine(flow, end)
        kind, start, end, bias = "layer", _unwrapped(flow, source), tail.output, tail.bias
        scale = scale or tail.scale
    return FoundNorm(kind, _between(flow, start, end) or (op,), start, end, scale, bias)


def _constant_input(flow: Flow, node: ir.Node, index: int | None) -> ir.Value | None:
    if index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return value if value is not None and flow.class_of(value) is Class.CONST else None


def _decomposed(flow: Flow, statistic: Op) -> FoundNorm | None:
    """The norm that `statistic`, a mean of squares, belongs to."""
    squared = _squared(flow, statistic)
    if squared is None:
        return None
    centred, source = _centring(flow, squared)
    for division in _divisions(flow, statistic, source):
        tail = _folded_affine(flow, division, source) or _affine(flow, division.output)
        start = _unwrapped(flow, source)
        ops = _between(flow, start, tail.output)
        if ops is not None and statistic in ops:
            centred = centred or any(_is_centred(flow, n, source) for op in ops for n in op.outputs)
            scale = tail.scale or division.scale
            return FoundNorm(_kind(statistic, centred), ops, start, tail.output, scale, tail.bias)
    return None


def _kind(statistic: Op, centred: bool) -> NormKind:
    if centred:
        return "layer"
    return "rms" if statistic.kind == "ReduceMean" else "other"


def _squared(flow: Flow, statistic: Op) -> int | None:
    """The value whose squares `statistic` reduces."""
    if statistic.kind in SQUARE_REDUCTIONS:
        return statistic.inputs[0]
    square = _maker(flow, statistic.inputs[0])
    if square is None or square.kind not in {"Pow", "Mul"}:
        return None
    if len({flow.roots[n] for n in square.inputs}) != 1:
        return None
    if len(square.inputs) == 1 and (square.kind == "Mul" or scalar(square.node.inputs[1]) not in {None, 2.0}):
        return None
    return square.inputs[0]


def _centring(flow: Flow, number: int) -> tuple[bool, int]:
    """Whether a value is another one less its mean (layer norm), and that other one; else it is itself."""
    subtract = _maker(flow, number)
    if subtract is not None and subtract.kind == "Sub" and _is_centred(flow, number, subtract.inputs[0]):
        return True, subtract.inputs[0]
    return False, number


def _is_centred(flow: Flow, number: int, source: int) -> bool:
    """Whether a value is `source` less its mean. Exporters often subtract it twice, in nodes of their own."""
    subtract = _maker(flow, number)
    if subtract is None or subtract.kind != "Sub" or len(subtract.inputs) != 2:
        return False
    mean = _maker(flow, subtract.inputs[1])
    if mean is None or mean.kind != "ReduceMean":
        return False
    return flow.roots[subtract.inputs[0]] == flow.roots[mean.inputs[0]] == flow.roots[source]


def _maker(flow: Flow, number: int) -> Op | None:
    return flow.producers[flow.roots[number]]


def _readers(flow: Flow, number: int) -> Iterator[tuple[Op, int]]:
    """Who reads a value, casts and quantization aside, and what they read in its place."""
    work = [number]
    for current in work:
        for reader in flow.consumers[current]:
            if reader.kind in TRANSPARENT:
                work.append(reader.outputs[0])
            else:
                yield reader, current


@dataclass(frozen=True)
class _Division:
    """A value divided by its statistic; `scale` where γ has been multiplied into the divisor."""

    output: int
    scale: ir.Value | None


def _divisions(flow: Flow, statistic: Op, source: int) -> Iterator[_Division]:
    """Follow the statistic through arithmetic to where the value itself is divided by it.

    It is a division only if the statistic is inverted on its way: a value multiplied by its own
    norm (GRN, a gate) is not normalized.
    """
    work: list[tuple[int, bool, ir.Value | None]] = [(statistic.outputs[0], False, None)]
    seen: set[Op] = set()
    while work and len(seen) < CHAIN_REACH:
        number, inverted, scale = work.pop(0)
        for reader, read in _readers(flow, number):
            if reader in seen:
                continue
            turned = inverted ^ _inverts(flow, reader, read)
            others = [n for n in reader.inputs if n != read]
            own = bool(others) and _is_normalized(flow, others[0], source)
            if reader.kind in {"Div", "Mul"} and own:
                if turned:
                    yield _Division(reader.outputs[0], scale)
            elif reader.kind in STATISTIC_STEPS:
                seen.add(reader)
                factor = _vector_operand(flow, reader) if reader.kind == "Mul" else None
                work.append((reader.outputs[0], turned, scale or factor))


def _is_normalized(flow: Flow, number: int, source: int) -> bool:
    return flow.roots[number] == flow.roots[source] or _is_centred(flow, number, source)


def _inverts(flow: Flow, op: Op, number: int) -> bool:
    """Whether an op puts out something like one over `number`."""
    if op.kind == "Div":
        return flow.numbers.get(op.node.inputs[1]) == number if op.node.inputs[1] is not None else False
    if op.kind == "Pow":
        return (scalar(op.node.inputs[1]) or 0.0) < 0
    return op.kind in {"Reciprocal", "Rsqrt"}


@dataclass(frozen=True)
class _Affine:
    """γ and β after the division, and what comes out of them."""

    scale: ir.Value | None
    bias: ir.Value | None
    output: int


def _folded_affine(flow: Flow, division: _Division, source: int) -> _Affine | None:
    """The form x·(r·γ) + (β − mean·(r·γ)), in which the mean is subtracted last (Keras)."""
    readers = list(_readers(flow, division.output))
    if len(readers) != 1 or readers[0][0].kind != "Add":
        return None
    total, read = readers[0]
    shift = next((_maker(flow, n) for n in total.inputs if n != read), None)
    if (
        shift is None
        or shift.kind != "Sub"
        or _between(flow, _unwrapped(flow, source), shift.outputs[0]) is None
    ):
        return None
    return _Affine(None, _constant_input(flow, shift.node, 0), total.outputs[0])


def _affine(flow: Flow, number: int) -> _Affine:
    """The multiplication by γ and the addition of β that follow a normalized value, if any."""
    parts: dict[str, ir.Value] = {}
    while len(readers := list(_readers(flow, number))) == 1:
        reader = readers[0][0]
        factor = _vector_operand(flow, reader)
        if reader.kind not in {"Mul", "Add"} or reader.kind in parts or "Add" in parts or factor is None:
            break
        parts[reader.kind] = factor
        number = reader.outputs[0]
    return _Affine(parts.get("Mul"), parts.get("Add"), number)


def _vector_operand(flow: Flow, op: Op) -> ir.Value | None:
    """The constant operand of a binary op, where it is no scalar."""
    constants = (v for v in op.node.inputs if v is not None and flow.class_of(v) is Class.CONST)
    return next((value for value in constants if not is_scalar(value)), None)


def _unwrapped(flow: Flow, number: int) -> int:
    """A value before its casts and before quantization and back."""
    while (producer := flow.producers[number]) is not None:
        before = producer.inputs[0]
        quantize = flow.producers[before]
        if producer.kind in {"Cast", "Identity"}:
            number = before
        elif (
            producer.kind == "DequantizeLinear" and quantize is not None and quantize.kind == "QuantizeLinear"
        ):
            number = quantize.inputs[0]
        else:
            break
    return number


def _between(flow: Flow, start: int, end: int) -> tuple[Op, ...] | None:
    """The ops that compute `end` from `start` alone, in order; None if something else comes in.

    Optimizers may dequantize the start once for every reader.
    """
    found: dict[Op, None] = {}
    starts = {start, flow.roots[start]}
    work = [end]
    while work:
        number = work.pop()
        if number in starts:
            continue
        op = flow.producers[number]
        if op is None or op.linear or len(found) > NORM_REACH:
            return None
        if op not in found:
            found[op] = None
            work.extend(op.inputs)
    return tuple(sorted(found, key=lambda op: op.index))
