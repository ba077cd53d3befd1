"""Which nodes ONNX Runtime's XNNPACK provider takes: what its mobile check lacks.

The rules are those of the provider's `IsOnnxNodeSupported` functions (in onnxruntime/core/providers/xnnpack),
as far as a graph shows them: types and shapes of values, what is constant, attributes. Each node that it
takes is a kernel on the CPU, so nothing is lost between two runs of such nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_FLOAT, _UINT8, _INT8 = 1, 2, 3  # onnx.TensorProto.DataType
_FUSES_INTO = ("Conv", "MaxPool", "AveragePool")

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class _Value:
    """The element type and the shape of a value, None where they are unknown; whether it is a constant."""

    type: int | None = None
    dims: Dims | None = None
    constant: bool = False

    @property
    def rank(self) -> int | None:
        return None if self.dims is None else len(self.dims)

    @property
    def is_image(self) -> bool:
        """Four axes, of which all but the first have a size."""
        return self.dims is not None and len(self.dims) == 4 and None not in self.dims[1:]


@dataclass(frozen=True)
class Xnnpack:
    """What ONNX Runtime's `check_partitioning` asks for: whether a node of this graph is taken."""

    graph: onnx.GraphProto = field(repr=False)

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        """Whether the provider takes a node by itself, or as the activation of one that it takes."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Relu", "Clip"):
            return self._is_activation(node)
        rule = _RULES.get(node.op_type)
        return rule is not None and rule(node, [self._value(name) for name in node.input])

    def get_caveats(self) -> list[str]:
        """Nothing is left unsaid about the nodes that are taken."""
        return []

    def _is_activation(self, node: onnx.NodeProto) -> bool:
        before = self._producers.get(node.input[0])
        limits = (self._value(name).constant for name in node.input[1:] if name)
        return (
            before is not None
            and before.op_type in _FUSES_INTO
            and all(limits)
            and self.is_op_supported(before)
        )

    def _value(self, name: str) -> _Value:
        """A value; a constant that is stored quantized counts as one."""
        node = self._producers.get(name)
        known = self._values.get(name, _Value())
        if node is not None and node.op_type == "DequantizeLinear" and self._value(node.input[0]).constant:
            return _Value(known.type or _FLOAT, known.dims or self._value(node.input[0]).dims, True)
        return known

    @cached_property
    def _producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for graph in graphs(self.graph) for node in graph.node for name in node.output}

    @cached_property
    def _values(self) -> dict[str, _Value]:
        found: dict[str, _Value] = {}
        for graph in graphs(self.graph):
            for info in (*graph.value_info, *graph.input, *graph.output):
                found[info.name] = _typed(info.type.tensor_type)
            for tensor in graph.initializer:
                found[tensor.name] = _Value(tensor.data_type, tuple(tensor.dims), True)
        return found


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and all that are in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def _typed(tensor: onnx.TypeProto.Tensor) -> _Value:
    if not tensor.HasField("shape"):
        return _Value(tensor.elem_type or None)
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return _Value(tensor.elem_type or None, dims)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx.helper import get_attribute_value

    found = (get_attribute_value(one) for one in node.attribute if one.name == name)
    return next(found, default)


def _convolution(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    quantized = node.op_type.startswith("QLinear")
    weight, bias = (3, 8) if quantized else (1, 2)
    return (
        inputs[0].is_image
        and inputs[0].type in ((_UINT8, _INT8) if quantized else (_FLOAT,))
        and inputs[weight].constant
        and inputs[weight].rank == 4
        and all(one.constant for one in inputs[bias:])
        and _attribute(node, "auto_pad", b"NOTSET") != b"SAME_LOWER"
    )


def _pool(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    kernel = list(_attribute(node, "kernel_shape", []))
    return (
        inputs[0].is_image
        and inputs[0].type in (_FLOAT, _UINT8)
        and len(kernel) == 2
        and kernel != [1, 1]
        and len(node.output) == 1
        and _attribute(node, "ceil_mode", 0) == 0
        and (node.op_type != "AveragePool" or _attribute(node, "count_include_pad", 0) == 0)
        and _attribute(node, "auto_pad", b"NOTSET") != b"SAME_LOWER"
    )


def _softmax(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    """As of opset 13: along the last axis, whose size is known."""
    value = inputs[0]
    if not value.dims or value.type not in (_FLOAT, _UINT8):
        return False
    return _attribute(node, "axis", -1) in (-1, len(value.dims) - 1) and value.dims[-1] is not None


def _resize(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    """Bilinear, of images with known channels, to a known size; rarer attributes are not looked at."""
    value = inputs[0]
    return (
        value.rank == 4
        and value.dims is not None
        and value.dims[1] is not None
        and _attribute(node, "mode", b"nearest") == b"linear"
        and any(one.constant for one in inputs[2:])
    )


def _gemm(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    return (
        len(inputs) == 3
        and inputs[0].type == _FLOAT
        and all(one.rank is not None and one.rank <= 2 for one in inputs)
        and all(one.constant for one in inputs[1:])
        and all(_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    )


def _matmul(node: onnx.NodeProto, inputs: list[_Value]) -> bool:
    """[(batch,) m, k] by constants [k, n]."""
    left, right = inputs
    if left.rank is None or right.rank is None or left.type != _FLOAT or not right.constant:
        return False
    return right.rank <= 2 and left.rank - right.rank in (0, 1)


_RULES = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "QLinearConv": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Softmax": _softmax,
    "Resize": _resize,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
