"""How sure an exit is of each sample, written as nodes: pooling, heads and criteria."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.surgery.exitfile import Criterion, ExitHead, Pool
from graphprune.surgery.fitted import Floats
from graphprune.surgery.writing import Writer

_FLOAT = ir.DataType.FLOAT
_TINY = 1e-30


def as_float(write: Writer, value: ir.Value) -> ir.Value:
    """A value in single precision."""
    return value if value.dtype == _FLOAT else write("Cast", value, to=_FLOAT)


def pooled(write: Writer, stream: ir.Value, weights: ir.Value | None, pool: Pool) -> ir.Value:
    """One vector for each sample, float [n, d], of a stream [n, tokens, d].

    `weights` are those of its tokens; None where none of them is padding.
    """
    whole = as_float(write, stream)
    if weights is not None:
        return write.shaped(write("MatMul", weights, whole), 0, -1)
    if pool == "mean":
        return write.reduced("ReduceMean", whole, 1)
    return write("Gather", whole, write.constant(0 if pool == "first" else -1), axis=1)


def token_weights(write: Writer, mask: ir.Value, pool: Pool) -> ir.Value:
    """What each token counts for, float [n, 1, tokens], by a mask [n, tokens] that is 0 at padding."""
    given = write("Cast", mask, to=_FLOAT)
    if pool == "mean":
        count = write.reduced("ReduceSum", given, 1, keep=True)
        chosen = write("Div", given, write("Max", count, write.constant(1, np.float32)))
        return write.shaped(chosen, 0, 1, -1)
    zero, one = write.constant(0), write.constant(1)
    width = write("Reshape", write.sizes(mask, 1, 2), write.constant(np.zeros(0, np.int64)))
    places = write("Range", zero, width, one)
    if pool == "last":
        given = write("Mul", given, write("Cast", write("Add", places, one), to=_FLOAT))
    chosen = write("Equal", write("ArgMax", given, axis=1, keepdims=1), write.shaped(places, 1, -1))
    return write.shaped(write("Cast", chosen, to=_FLOAT), 0, 1, -1)


def linear(
    write: Writer, x: ir.Value, weight: ir.Value, bias: ir.Value, kind: ir.DataType = _FLOAT
) -> ir.Value:
    """`x @ weight + bias` of values of this kind; weight and bias are float."""
    if kind != _FLOAT:
        weight, bias = write("Cast", weight, to=kind), write("Cast", bias, to=kind)
    made = write("Add", write("MatMul", x, weight), bias)
    made.type = ir.TensorType(kind)
    return made


def sureness(write: Writer, scores: ir.Value, head: ExitHead, criterion: Criterion) -> ir.Value:
    """How sure an exit is, float [n], by its scores [n, C]: higher is surer, and 1 the most."""
    scores = as_float(write, scores)
    if head.temperature != 1:
        scores = write("Div", scores, write.constant(head.temperature, np.float32))
    if criterion == "confidence":
        return write.reduced("ReduceMax", write("Softmax", scores, axis=-1), 1)
    logs = write("LogSoftmax", scores, axis=-1)
    shares = write("Exp", logs)
    if criterion == "margin":
        return write.shaped(_margin(write, _top(write, shares, 2)), -1)
    if criterion == "entropy":
        return write.shaped(_certainty(write, shares, logs), -1)
    assert head.rule is not None
    top = _top(write, shares, 2)
    told = write("Concat", _first(write, top), _margin(write, top), _certainty(write, shares, logs), axis=1)
    weights, bias = write.constant(head.rule[:3, None], np.float32), write.constant(head.rule[3], np.float32)
    return write.shaped(write("Sigmoid", write("Add", write("MatMul", told, weights), bias)), -1)


def _top(write: Writer, shares: ir.Value, count: int) -> ir.Value:
    """The largest of each row, the largest first: [n, count]."""
    node = ir.node("TopK", [shares, write.constant([count])], {"axis": -1}, num_outputs=2)
    write.nodes.append(node)
    return node.outputs[0]


def _first(write: Writer, top: ir.Value) -> ir.Value:
    return write("Gather", top, write.constant([0]), axis=1)


def _margin(write: Writer, top: ir.Value) -> ir.Value:
    return write("Sub", _first(write, top), write("Gather", top, write.constant([1]), axis=1))


def _certainty(write: Writer, shares: ir.Value, logs: ir.Value) -> ir.Value:
    """1 − H / log C: [n, 1]."""
    entropy = write("Neg", write.reduced("ReduceSum", write("Mul", shares, logs), 1, keep=True))
    classes = write("Cast", write.sizes(shares, 1, 2), to=_FLOAT)
    return write("Sub", write.constant(1, np.float32), write("Div", entropy, write("Log", classes)))


def cosine(write: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    """The cosine of each row of two values [n, d]: [n]."""

    def product(x: ir.Value, y: ir.Value) -> ir.Value:
        return write.reduced("ReduceSum", write("Mul", x, y), 1)

    sizes = write("Sqrt", write("Mul", product(a, a), product(b, b)))
    return write("Div", product(a, b), write("Max", sizes, write.constant(_TINY, np.float32)))


def agreeing(
    write: Writer, scores: ir.Value, before: tuple[ir.Value, ir.Value] | None
) -> tuple[ir.Value, ir.Value]:
    """What each row of scores [n, C] says, int64 [n], and how many exits in a row have said so, float [n]."""
    label = write("ArgMax", scores, axis=-1, keepdims=0)
    one = write.constant([1], np.float32)
    if before is None:
        return label, write("Expand", one, write("Shape", label))
    same = write("Cast", write("Equal", label, before[0]), to=_FLOAT)
    return label, write("Add", write("Mul", same, before[1]), one)


def stored(graph: ir.Graph, name: str, array: Floats) -> ir.Value:
    """An initializer of a graph that holds this array."""
    value = ir.Value(
        name=name, const_value=ir.tensor(array), type=ir.TensorType(_FLOAT), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value
