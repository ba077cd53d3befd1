"""Quantized files without rounding: the same nodes over real numbers, an exact oracle for passes.

A quantized tensor becomes a tensor of float32 numbers: those that it would hold if they were not
rounded nor clipped ("scaled": x / scale + zero point), or those that it stands for. The first shows
what a file computes, scales in wrong places included; the second is a plain float graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
BYTES = {TensorProto.INT8, TensorProto.UINT8}
INTEGERS = {*BYTES, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}


def unround(source: Path, target: Path, *, scaled: bool) -> Path:
    """Write the file without rounding."""
    model = onnx.load(source)
    writer = _Writer(scaled, {tensor.name: tensor for tensor in model.graph.initializer})
    for node in model.graph.node:
        write = WRITERS.get(node.op_type)
        if write is None or not write(writer, node):
            writer.copy(node)
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.made)
    onnx.save(model, target)
    return target


@dataclass
class _Writer:
    """The new nodes and constants.

    `stored` are the initializers; `rows` are taken from those of bytes (embeddings), and bytes too.
    """

    scaled: bool
    stored: dict[str, onnx.TensorProto]
    rows: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: list[onnx.TensorProto] = field(default_factory=list)

    def copy(self, node: onnx.NodeProto) -> None:
        """Keep a node that is not about quantized values, or only moves them."""
        first = node.input[0] if node.input else ""
        tensor = self.stored.get(first)
        if first in self.rows or (tensor is not None and tensor.data_type in BYTES):
            self.rows.update(node.output)
        self.nodes.append(node)

    def add(
        self, kind: str, *inputs: str, like: onnx.NodeProto | None = None, domain: str = "", **more: object
    ) -> str:
        """A node; its attributes are `more`, or those of `like`."""
        name = f"unrounded_{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [name], name=name, domain=domain, **more)
        if like is not None:
            node.attribute.extend(like.attribute)
        self.nodes.append(node)
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"unrounded_constant_{len(self.made)}"
        self.made.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def number(self, name: str, default: float = 0.0) -> str:
        """An input as float32 numbers, integers as they are."""
        if not name:
            return self.constant(np.float32(default))
        if name in self.rows:
            return self.add("Cast", name, to=TensorProto.FLOAT)
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type not in INTEGERS:
            return name
        return self.constant(numpy_helper.to_array(tensor))

    def real(self, name: str, scale: str, zero: str) -> str:
        """What a quantized input stands for."""
        if not self.scaled and name not in self.stored and name not in self.rows:
            return name
        if name in self.rows:
            return self.add("DequantizeLinear", *filter(None, (name, scale, zero)))
        return self.add("Mul", self.add("Sub", self.number(name), self.number(zero)), scale)

    def store(self, name: str, scale: str, zero: str, result: str) -> bool:
        """Put a real number out as a quantized one."""
        if self.scaled and scale:
            name = self.add("Add", self.add("Div", name, scale), self.number(zero))
        self.nodes.append(helper.make_node("Identity", [name], [result], name=f"stored_{result}"))
        return True


def _at(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _quantize(w: _Writer, node: onnx.NodeProto) -> bool:
    return w.store(node.input[0], node.input[1], _at(node, 2), node.output[0])


def _dequantize(w: _Writer, node: onnx.NodeProto) -> bool:
    if node.input[0] in w.stored or node.input[0] in w.rows:
        return False
    real = w.real(node.input[0], node.input[1], _at(node, 2))
    return w.store(real, "", "", node.output[0])


def _quantize_as_it_comes(w: _Writer, node: onnx.NodeProto) -> bool:
    for name, value in ((node.output[1], 1.0), (node.output[2], 0.0)):
        w.store(w.constant(np.float32(value)), "", "", name)
    return w.store(node.input[0], "", "", node.output[0])


def _integer(kind: str) -> Callable[[_Writer, onnx.NodeProto], bool]:
    def write(w: _Writer, node: onnx.NodeProto) -> bool:
        left = w.add("Sub", w.number(node.input[0]), w.number(_at(node, 2)))
        right = w.add("Sub", w.number(node.input[1]), w.number(_at(node, 3)))
        return w.store(w.add(kind, left, right, like=node), "", "", node.output[0])

    return write


def _binary(kind: str) -> Callable[[_Writer, onnx.NodeProto], bool]:
    def write(w: _Writer, node: onnx.NodeProto) -> bool:
        result = w.add(kind, w.real(*node.input[:3]), w.real(*node.input[3:6]))
        return w.store(result, node.input[6], _at(node, 7), node.output[0])

    return write


def _unary(kind: str, *attributes: str) -> Callable[[_Writer, onnx.NodeProto], bool]:
    def write(w: _Writer, node: onnx.NodeProto) -> bool:
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in attributes}
        result = w.add(kind, w.real(*node.input[:3]), **kept)
        return w.store(result, node.input[3], _at(node, 4), node.output[0])

    return write


def _gemm(w: _Writer, node: onnx.NodeProto) -> bool:
    inputs = [w.real(*node.input[:3]), w.real(*node.input[3:6])]
    if _at(node, 6):
        inputs.append(w.add("Mul", w.add("Mul", w.number(node.input[6]), node.input[1]), node.input[4]))
    return w.store(w.add("Gemm", *inputs, like=node), _at(node, 7), _at(node, 8), node.output[0])


def _concat(w: _Writer, node: onnx.NodeProto) -> bool:
    parts = [w.real(*node.input[i : i + 3]) for i in range(2, len(node.input), 3)]
    return w.store(w.add("Concat", *parts, like=node), node.input[0], node.input[1], node.output[0])


def _conv(w: _Writer, node: onnx.NodeProto) -> bool:
    arrays = [numpy_helper.to_array(w.stored[node.input[i]]).astype(np.float32) for i in (1, 3, 4, 5)]
    scale, weight, channel, zero = (
        arrays[0],
        arrays[1],
        arrays[2].reshape(-1, 1, 1, 1),
        arrays[3].reshape(-1, 1, 1, 1),
    )
    inputs = [w.real(*node.input[:3]), w.constant((weight - zero) * channel)]
    if _at(node, 8):
        bias = numpy_helper.to_array(w.stored[node.input[8]])
        inputs.append(w.constant(bias * scale * channel.reshape(-1)))
    return w.store(w.add("Conv", *inputs, like=node), node.input[6], node.input[7], node.output[0])


def _dynamic_matmul(w: _Writer, node: onnx.NodeProto) -> bool:
    result = w.add("MatMul", node.input[0], w.real(node.input[1], node.input[2], _at(node, 3)))
    result = w.add("Add", result, node.input[4]) if _at(node, 4) else result
    return w.store(result, "", "", node.output[0])


def _matmul_to_float(w: _Writer, node: onnx.NodeProto) -> bool:
    left = w.add("Mul", w.add("Sub", w.number(node.input[0]), w.number(_at(node, 4))), node.input[2])
    right = w.add("Mul", w.add("Sub", w.number(node.input[1]), w.number(_at(node, 5))), node.input[3])
    result = w.add("MatMul", left, right)
    result = w.add("Add", result, node.input[6]) if _at(node, 6) else result
    return w.store(result, "", "", node.output[0])


def _attention(w: _Writer, node: onnx.NodeProto) -> bool:
    given = w.add("Mul", w.add("Sub", w.number(node.input[0]), w.number(_at(node, 6))), node.input[3])
    weight = w.add("Mul", w.add("Sub", w.number(node.input[1]), w.number(_at(node, 7))), node.input[4])
    inputs = [given, weight, node.input[2], _at(node, 5), _at(node, 8)]
    new = helper.make_node("Attention", inputs, node.output, name=node.name, domain=MICROSOFT)
    new.attribute.extend(node.attribute)
    w.nodes.append(new)
    return True


WRITERS: dict[str, Callable[[_Writer, onnx.NodeProto], bool]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _quantize_as_it_comes,
    "MatMulInteger": _integer("MatMul"),
    "ConvInteger": _integer("Conv"),
    "QLinearMatMul": _binary("MatMul"),
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSoftmax": _unary("Softmax", "axis"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QGemm": _gemm,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QAttention": _attention,
}
