"""What a block costs: its parameters, and its multiply-accumulates as a formula of the free sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphprune.architecture import BlockKind, Branch
from graphprune.constants import constant_shape, constant_type, origins
from graphprune.dataflow import CONVOLUTIONS, Class, Flow, Op, weight_indices
from graphprune.joins import is_mixing
from graphprune.macs import Macs
from graphprune.ownership import CacheIO
from graphprune.shapes import Dims, Shapes, token_dims

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
# What is no parameter: scales and zero points, by input index.
QUANTIZATION_INPUTS = {
    "QuantizeLinear": {1, 2}, "DequantizeLinear": {1, 2}, "MatMulInteger": {2, 3}, "ConvInteger": {2, 3},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7}, "QLinearConv": {1, 2, 4, 5, 6, 7}, "MatMulNBits": {2, 3, 4},
    "MatMulIntegerToFloat": {2, 3, 4, 5}, "DynamicQuantizeMatMul": {2, 3}, "QGemm": {1, 2, 4, 5, 7, 8},
    "QLinearAdd": {1, 2, 4, 5, 6, 7}, "QAttention": {3, 4, 6, 7},
}  # fmt: skip
BLOCKWISE = {"MatMulNBits", "MatMulBnb4", "MatMulFpQ4"}


def parameters(flow: Flow, nodes: Iterable[ir.Node], branches: Iterable[Branch]) -> int:
    """How many learned numbers go with these nodes, and with the biases that are added at the join.

    Every constant counts once, however it is cast, transposed or dequantized on its way; single
    numbers, integers that are no quantized weights, and scales and zero points do not.
    """
    sizes: dict[ir.Value, int] = {}
    for node in nodes:
        unlearned = QUANTIZATION_INPUTS.get(node.op_type, set())
        for index, value in enumerate(node.inputs):
            if value is not None and index not in unlearned and flow.class_of(value) is Class.CONST:
                sizes.update(_learned(node, index, value))
    for branch in branches:
        for bias in branch.biases:
            sizes.update(_learned(bias.node, bias.index, bias.value))
    return sum(size for size in sizes.values() if size > 1)


def _learned(node: ir.Node, index: int, value: ir.Value) -> Iterator[tuple[ir.Value, int]]:
    """The weights that an operand is made from, with their sizes."""
    quantized = node.op_type == "DequantizeLinear" or index in weight_indices(node)
    if node.op_type in BLOCKWISE and index in weight_indices(node):
        yield value, _blockwise_size(node)
        return
    for origin, dequantized in origins(value):
        dtype = constant_type(origin)
        if dtype in FLOATS or ((quantized or dequantized) and _narrow(dtype)):
            yield origin, math.prod(constant_shape(origin) or (0,))


def _narrow(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_integer() and dtype.itemsize <= 1


def _blockwise_size(node: ir.Node) -> int:
    return node.attributes["K"].as_int() * node.attributes["N"].as_int() if "K" in node.attributes else 0


def op_macs(
    flow: Flow, kind: BlockKind, ops: set[Op], side: set[Op], io: CacheIO, root: int, shapes: Shapes
) -> dict[Op, Macs]:
    """The multiply-accumulates of one branch: those of its linear maps, and of scores and sums of attention.

    The latter two count as the last op's that mixes tokens.
    """
    if kind == "conv":
        return {op: _conv_macs(flow, op, shapes) for op in ops if op.linear}
    tokens = token_dims(flow, root, shapes)
    found = {op: _linear_macs(flow, op, tokens) for op in ops if op.linear}
    if kind not in {"attention", "cross_attention"}:
        return found
    keys = tokens
    for op in side:
        if op.linear and op.inputs:
            keys = token_dims(flow, op.inputs[0], shapes)
            found[op] = _linear_macs(flow, op, keys)
    last = max((op for op in ops if is_mixing(flow, op)), key=lambda op: op.index)
    mixing = _mixing_macs(_context_width(flow, ops, last), io, tokens, keys, kind)
    return found | {last: found.get(last, Macs()) + mixing}


def _weight_shapes(flow: Flow, node: ir.Node) -> list[tuple[int, ...]]:
    values = [node.inputs[i] for i in weight_indices(node) if i < len(node.inputs)]
    constants = [v for v in values if v is not None and flow.class_of(v) is Class.CONST]
    return [shape for v in constants if (shape := constant_shape(v))]


def _linear_macs(flow: Flow, op: Op, positions: Dims) -> Macs:
    if op.node.op_type in BLOCKWISE:
        return Macs.of(_blockwise_size(op.node), *positions)
    return product(sum(map(math.prod, _weight_shapes(flow, op.node))), positions)


def product(count: int, positions: Dims) -> Macs:
    """`count` multiply-accumulates at all positions; `height/4` takes the 4 out of it where it divides it."""
    parts = [dim.rpartition("/") if isinstance(dim, str) else ("", "", "") for dim in positions]
    divisor = math.prod(int(size) for name, _, size in parts if name and size.isdigit())
    if divisor == 1 or count % divisor:
        return Macs.of(count, *positions)
    plain = (
        name if name and size.isdigit() else dim
        for (name, _, size), dim in zip(parts, positions, strict=True)
    )
    return Macs.of(count // divisor, *plain)


def _conv_macs(flow: Flow, op: Op, shapes: Shapes) -> Macs:
    """A convolution uses every weight once for each position that it puts out (transposed: takes in)."""
    convolves = op.node.op_type in CONVOLUTIONS
    transposed = op.node.op_type == "ConvTranspose"
    dims = shapes.of(op.node.inputs[0] if transposed else op.node.outputs[0])
    if dims is None:
        return _linear_macs(flow, op, ("positions",))
    return _linear_macs(flow, op, (dims[0], *dims[2:]) if convolves else dims[:-1])


def _mixing_macs(width: int, io: CacheIO, tokens: Dims, keys: Dims, kind: BlockKind) -> Macs:
    """Scores and their use: twice queries × keys × width, the width that the output projection reads."""
    pairs = 2 * width
    total = Macs.of(pairs, *tokens, *(keys if kind == "cross_attention" else tokens)[-1:])
    past = next((value for value in io.inputs if value.shape is not None), None)
    if past is None or past.shape is None or past.shape.rank() < 4:
        return total
    dim = past.shape[-2]
    cached = Macs.of(pairs, *tokens, dim if isinstance(dim, int) else dim.value or "past")
    return cached if kind == "cross_attention" else total + cached


def _context_width(flow: Flow, ops: set[Op], mixing: Op) -> int:
    """The width of what attention puts out, read off the first linear after it."""
    after = sorted((op for op in ops if op.linear and op.index > mixing.index), key=lambda op: op.index)
    return next((width for op in after if (width := _input_width(flow, op.node))), 0)


def _input_width(flow: Flow, node: ir.Node) -> int:
    if node.op_type in BLOCKWISE:
        return node.attributes["K"].as_int() if "K" in node.attributes else 0
    shape = next((s for s in _weight_shapes(flow, node) if len(s) >= 2), (0, 0))
    transposed = node.attributes.get("transB")
    return shape[1] if node.op_type in CONVOLUTIONS or (transposed and transposed.as_int()) else shape[0]
