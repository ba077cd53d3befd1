"""A graph as data flow: which values are computed from which others, and through what.

Recovery does not read nodes one by one. It reads a `Flow`: a list of `Op`s over numbered values,
in which constants and shape arithmetic are left out and fused nodes are taken apart
(`lowering.py` makes it). Two questions are asked of it, answered by bit sets: does a value depend
on another one *through a parametric linear map*, and does it depend on it without one?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable

# Where a linear op may have its weights: (op type → input indices).
WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Einsum": (0, 1), "FusedMatMul": (0, 1), "TransposeMatMul": (0, 1),
    "Conv": (1,), "ConvTranspose": (1,), "FusedConv": (1,), "NhwcConv": (1,), "NhwcFusedConv": (1,),
    "ConvInteger": (1,), "QLinearConv": (3,), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "QGemm": (3,),
    "MatMulIntegerToFloat": (1,), "DynamicQuantizeMatMul": (1,), "MatMulNBits": (1,), "MatMulBnb4": (1,),
    "MatMulFpQ4": (1,), "FusedGemm": (1,), "GemmFastGelu": (1,), "GemmFloat8": (1,), "GatherMatMul": (1,),
    "QAttention": (1,), "PackedAttention": (1,), "LongformerAttention": (1,), "DecoderAttention": (2, 3),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "MoE": (2,), "QMoE": (2,), "DeformConv": (1,),
}  # fmt: skip

CONVOLUTIONS = {
    "Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger", "QLinearConv",
    "DeformConv",
}  # fmt: skip
# `Attention` has weights in ORT's domain, none in the standard's (opset 23).
MICROSOFT = "com.microsoft"

SKIP_NORMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
# Convolutions of ORT that add another tensor before their activation: (op type → index of it).
SUMMING_CONVS = {"FusedConv": 3, "NhwcFusedConv": 3, "Conv": 3}

ALIASES = {
    "Identity", "Cast", "CastLike", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Dropout",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput", "ReorderOutput",
}  # fmt: skip
# Those that change how a value is written, and not how it is laid out.
TRANSPARENT = {"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}
SHAPE_OPS = {"Shape", "Size"}
GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
# Ops that compute on quantized values what the plain ones do on real ones.
QUANTIZED_FORMS = {
    "QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearReduceMean": "ReduceMean", "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu", "QLinearSoftmax": "Softmax",
}  # fmt: skip
# Binary ops that work element by element.
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"}


class Class(IntEnum):
    """What a value is made of: constants alone, shapes of tensors (and scales of quantized ones), or data."""

    CONST = 0
    SHAPE = 1
    DATA = 2


@dataclass(slots=True, eq=False)
class Op:
    """One step of the data flow: a node, or the part of a fused node that `part` names."""

    index: int
    node: ir.Node
    part: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    linear: bool
    additive: bool

    @property
    def kind(self) -> str:
        """The op type (of a quantized op that of the plain one), or the name of the part of a fused node."""
        return self.part or QUANTIZED_FORMS.get(self.node.op_type, self.node.op_type)


@dataclass(slots=True, eq=False)
class Flow:
    """The lowered graph. Values are numbered; lists are indexed by these numbers.

    `inputs` counts the inputs of the graph, after those of the graphs around it; `captured` are the
    nodes with subgraphs, and what these read from outside. `roots[v]` is the value that `v` is
    another name, type or layout of. `through[v]` and `around[v]` are bit sets over `bits`: the
    marked values that `v` depends on through at least one parametric linear map, and those that
    reach it by a way without one.
    """

    graph: ir.Graph
    ops: list[Op] = field(default_factory=list)
    values: list[ir.Value | None] = field(default_factory=list)
    producers: list[Op | None] = field(default_factory=list)
    consumers: list[list[Op]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    numbers: dict[ir.Value, int] = field(default_factory=dict)
    classes: dict[ir.Value, Class] = field(default_factory=dict)
    inputs: dict[ir.Value | None, int] = field(default_factory=dict)
    captured: dict[ir.Node, tuple[ir.Value, ...]] = field(default_factory=dict)
    bits: dict[int, int] = field(default_factory=dict)
    through: list[int] = field(default_factory=list)
    around: list[int] = field(default_factory=list)

    def new_value(self, value: ir.Value | None) -> int:
        """Number a value (None: the inside of a fused node)."""
        number = len(self.values)
        self.values.append(value)
        self.producers.append(None)
        self.consumers.append([])
        self.roots.append(number)
        if value is not None:
            self.numbers[value] = number
        return number

    def add_op(
        self, node: ir.Node, part: str, inputs: tuple[int, ...], outputs: tuple[int, ...],
        *, linear: bool = False, additive: bool = False,
    ) -> Op:  # fmt: skip
        """Append an op; it becomes the producer of its outputs and a consumer of its inputs."""
        op = Op(len(self.ops), node, part, inputs, outputs, linear, additive)
        self.ops.append(op)
        for number in outputs:
            self.producers[number] = op
        for number in dict.fromkeys(inputs):
            self.consumers[number].append(op)
        return op

    def class_of(self, value: ir.Value) -> Class:
        """What `value` is made of. Values of outer graphs that nobody classified are data."""
        return self.classes.get(value, Class.DATA)

    def depends(self, value: int, on: int) -> bool:
        """Whether marked value `on` is a data ancestor of `value` (or `value` itself)."""
        return bool((self.through[value] | self.around[value]) >> self.bits[on] & 1)

    def only_through_linear(self, value: int, on: int) -> bool:
        """Whether every way from marked value `on` to `value` passes a parametric linear map."""
        bit = self.bits[on]
        return bool(self.through[value] >> bit & 1) and not self.around[value] >> bit & 1


def source(flow: Flow, number: int) -> int:
    """What a stream operand is taken from: its root, looking through a choice of tokens (the last one)."""
    number = flow.roots[number]
    producer = flow.producers[number]
    while producer is not None and producer.kind in {"Slice", "Gather"} and _chooses(flow, producer):
        number = flow.roots[producer.inputs[0]]
        producer = flow.producers[number]
    return number


def _chooses(flow: Flow, op: Op) -> bool:
    return len(op.inputs) == 1 and op.node.inputs[0] is flow.values[op.inputs[0]]


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """The values of outer graphs that the subgraphs of `node` read."""
    for attribute in node.attributes.values():
        for graph in attribute_graphs(attribute):
            inside = set(graph.inputs) | set(graph.initializers.values())
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                inside.update(inner.outputs)
                for attr in inner.attributes.values():
                    for sub in attribute_graphs(attr):
                        inside.update(sub.inputs)
                        inside.update(sub.initializers.values())
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (v for v in inner.inputs if v is not None and v not in inside)
            yield from (v for v in graph.outputs if v not in inside)


def attribute_graphs(attribute: ir.Attr) -> Iterable[ir.Graph]:
    """The subgraphs that an attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS:
        return attribute.as_graphs()
    return ()


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node carries subgraphs (If, Loop, Scan, GreedySearch, …)."""
    # Asked of every node, and `data` is twice as fast as the view on it.
    return any(attribute.type in GRAPH_TYPES for attribute in node.attributes.data.values())


def weight_indices(node: ir.Node) -> tuple[int, ...]:
    """The inputs in which this op takes weights, if it is a linear map at all."""
    if node.op_type == "Attention":
        return (1,) if node.domain == MICROSOFT else ()
    return WEIGHT_INPUTS.get(node.op_type, ())
