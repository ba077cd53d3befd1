"""Where the biases of linear maps enter: an Add, an operand of the linear, or one of a fused op."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphprune.architecture import Bias, Role
from graphprune.constants import constant_shape, is_vector, small_integers
from graphprune.dataflow import ALIASES, TRANSPARENT, Class, Flow, Op

# The input index of a bias in linear ops that take one.
BIAS_INPUTS = {
    "Gemm": 2, "Conv": 2, "ConvTranspose": 2, "FusedConv": 2, "NhwcConv": 2, "NhwcFusedConv": 2,
    "FusedGemm": 2, "QLinearConv": 8, "QGemm": 6, "MatMulNBits": 5, "DynamicQuantizeMatMul": 4,
    "MatMulIntegerToFloat": 6,
    "GemmFastGelu": 2, "Attention": 2, "QAttention": 2, "PackedAttention": 2,
}  # fmt: skip
# The same of fused sums (the index of the bias that a SkipLayerNormalization adds).
SUM_BIAS_INPUTS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
# Attention ops that take the biases of q, k and v as one vector.
PACKED_BIAS_INPUTS = {"MultiHeadAttention": 3, "DecoderMaskedMultiHeadAttention": 10}
FUSED_BIAS_ACTIVATIONS = {"BiasGelu", "FastGelu"}
# Nodes between a linear and the Add of its bias, at most (casts, layouts, rescaling).
BIAS_REACH = 5

# For a packed linear, the value that each role takes of it.
RoleCuts = dict[Role, int]


def biases_of(flow: Flow, op: Op, role: Role, cuts: RoleCuts) -> Iterator[Bias]:
    """The biases of a linear; one for each of q, k and v where it is packed and the cut is plain."""
    site = _site(flow, op)
    if site is None:
        return
    node, index = site
    value = node.inputs[index]
    assert value is not None
    parts = [(r, b) for r, cut in cuts.items() if (b := _cut_bounds(flow, cut, op, value))]
    if role == "qkv" and len(parts) == len(cuts) > 1:
        yield from (Bias(r, node, index, value, *bounds) for r, bounds in parts)
    elif op.node.op_type.endswith("Attention"):
        yield from _thirds(node, index, value)
    else:
        yield Bias(role, node, index, value)


def fused_attention_biases(flow: Flow, op: Op) -> Iterator[Bias]:
    """The biases that a fused attention adds to what separate linears gave it."""
    index = PACKED_BIAS_INPUTS.get(op.node.op_type)
    value = _constant(flow, op.node, index)
    if index is not None and value is not None:
        yield from _thirds(op.node, index, value)


def added_bias(flow: Flow, op: Op) -> tuple[Op, int] | None:
    """The op that adds a constant vector to what a linear puts out, and the index of that operand."""
    number = op.outputs[0]
    for _ in range(BIAS_REACH):
        readers = flow.consumers[number]
        if len(readers) != 1:
            return None
        reader = readers[0]
        index = _vector_index(flow, reader)
        if index is not None:
            return reader, index
        if reader.kind not in ALIASES and not rescales(flow, reader):
            return None
        number = reader.outputs[0]
    return None


def rescales(flow: Flow, op: Op) -> bool:
    """Whether an op multiplies by scalars only: a scale, or what undoes a quantization."""
    return op.kind == "Mul" and len(op.inputs) == 1 and not any(_is_vector(flow, v) for v in op.node.inputs)


def _constant(flow: Flow, node: ir.Node, index: int | None) -> ir.Value | None:
    if index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return value if value is not None and flow.class_of(value) is Class.CONST else None


def _is_vector(flow: Flow, value: ir.Value | None) -> bool:
    return value is not None and flow.class_of(value) is Class.CONST and is_vector(value)


def _vector_index(flow: Flow, op: Op) -> int | None:
    """The index of the bias operand of an op that adds one."""
    if op.part == "sum" and op.node.op_type in SUM_BIAS_INPUTS:
        index = SUM_BIAS_INPUTS[op.node.op_type]
        return index if _constant(flow, op.node, index) is not None else None
    if op.kind in FUSED_BIAS_ACTIVATIONS:
        return 1 if _constant(flow, op.node, 1) is not None else None
    if op.kind != "Add":
        return None
    return next((i for i, v in enumerate(op.node.inputs) if _is_vector(flow, v)), None)


def _site(flow: Flow, op: Op) -> tuple[ir.Node, int] | None:
    index = BIAS_INPUTS.get(op.node.op_type)
    if index is not None and _constant(flow, op.node, index) is not None:
        return op.node, index
    added = added_bias(flow, op)
    return (added[0].node, added[1]) if added is not None else None


def _thirds(node: ir.Node, index: int, value: ir.Value) -> Iterator[Bias]:
    """The parts of a packed bias: q, k and v one after the other."""
    shape = constant_shape(value)
    sizes = node.attributes.get("qkv_hidden_sizes")
    if shape is None or (sizes is None and shape[-1] % 3):
        yield Bias("qkv", node, index, value)
        return
    start = 0
    names: tuple[Role, ...] = ("q", "k", "v")
    for role, size in zip(names, sizes.as_ints() if sizes else [shape[-1] // 3] * 3, strict=True):
        yield Bias(role, node, index, value, start, start + size)
        start += size


def _cut_bounds(flow: Flow, number: int, linear: Op, bias: ir.Value) -> tuple[int, int] | None:
    """The elements of a packed bias that a Split or Slice of the last axis puts into a value."""
    cut = flow.producers[number]
    shape = constant_shape(bias)
    if cut is None or shape is None or cut.inputs[0] not in _renamings(flow, linear, shape[-1]):
        return None
    if cut.kind == "Split":
        return _split_bounds(cut, cut.outputs.index(number), shape[-1])
    return _slice_bounds(cut.node, shape[-1]) if cut.kind == "Slice" else None


def _split_bounds(cut: Op, position: int, total: int) -> tuple[int, int] | None:
    axis = cut.node.attributes.get("axis")
    sizes = _split_sizes(cut.node, total)
    if (
        sizes is None
        or sum(sizes) != total
        or axis is None
        or not _is_last(cut.node.inputs[0], axis.as_int())
    ):
        return None
    return sum(sizes[:position]), sum(sizes[: position + 1])


def _is_last(value: ir.Value | None, axis: int) -> bool:
    rank = value.shape.rank() if value is not None and value.shape is not None else 3
    return axis in {-1, rank - 1}


def _slice_bounds(node: ir.Node, total: int) -> tuple[int, int] | None:
    """What a Slice of one axis, by constants, takes of the last one."""
    given = [small_integers(v) for v in node.inputs[1:]]
    if len(given) < 3 or any(n is None or len(n) != 1 for n in given):
        return None
    start, stop, axis, step = ([n[0] for n in given if n is not None] + [1])[:4]
    if step != 1 or not _is_last(node.inputs[0], axis):
        return None
    start, stop = (min(n + total if n < 0 else n, total) for n in (start, stop))
    return (start, stop) if 0 <= start < stop else None


def _renamings(flow: Flow, linear: Op, width: int) -> set[int]:
    """The values that are the linear's output, its bias added, with the last axis as it was."""
    added = added_bias(flow, linear)
    found = {linear.outputs[0]} | ({added[0].outputs[0]} if added is not None else set())
    work = list(found)
    while work:
        for reader in flow.consumers[work.pop()]:
            same = reader.kind in TRANSPARENT or (reader.kind == "Reshape" and last_dim(reader.node) == width)
            if same and reader.outputs[0] not in found:
                found.add(reader.outputs[0])
                work.append(reader.outputs[0])
    return found


def last_dim(reshape: ir.Node) -> int | None:
    """The size of the last axis after a Reshape, from its result's shape or from the shape it is given."""
    shape, target = reshape.outputs[0].shape, reshape.inputs[1]
    if shape is not None and shape.rank() and isinstance(shape[-1], int):
        return shape[-1]
    concat = target.producer() if target is not None else None
    sizes = small_integers(concat.inputs[-1] if concat is not None and concat.op_type == "Concat" else target)
    return sizes[-1] if sizes else None


def _split_sizes(node: ir.Node, total: int) -> list[int] | None:
    legacy = node.attributes.get("split")
    if legacy is not None:
        return list(legacy.as_ints())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return small_integers(node.inputs[1])
    parts = len(node.outputs)
    return [total // parts] * parts if total % parts == 0 else None
