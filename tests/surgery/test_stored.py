"""Quantized values: what a block leaves behind, each value read with the scale that it is stored with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.passes.drop_activation import DropActivation
from graphprune.recover import recover
from graphprune.surgery import drop_branch, replace_value, sweep
from tests.graphs import written
from tests.passes.written import pruned, text

WIDTH = 8
CONSTANTS = {
    "w": np.ones((WIDTH, WIDTH), np.int8), "v": np.ones((WIDTH, WIDTH), np.int8),
    "s": np.float32(0.1), "t": np.float32(0.2), "z": np.int8(3), "o": np.int8(0),
}  # fmt: skip
QDQ = """
    q0 = QuantizeLinear (x, s, z)   d0 = DequantizeLinear (q0, s, z)
    dw = DequantizeLinear (w, s, o)
    a = MatMul (d0, dw)
    qa = QuantizeLinear (a, s, z)   da = DequantizeLinear (qa, s, z)
    r = Relu (da)
    qr = QuantizeLinear (r, t, o)   dr = DequantizeLinear (qr, t, o)
    dv = DequantizeLinear (v, s, o)
    b = MatMul (dr, dv)
    qb = QuantizeLinear (b, s, z)   db = DequantizeLinear (qb, s, z)
    sum = Add (d0, db)
    q1 = QuantizeLinear (sum, t, z) d1 = DequantizeLinear (q1, t, z)
    y = Relu (d1)
"""


def test_a_dropped_block_takes_its_pairs_and_the_rounding_of_its_sum_along() -> None:
    model = written(QDQ, constants=CONSTANTS)
    [block] = recover(model).blocks
    drop_branch(block.branches[0], block)
    sweep(model)
    assert text(model) == [
        "%1 = QuantizeLinear <> (x, s, z)",
        "%2 = DequantizeLinear <> (%1, s, z)",
        "y = Relu <> (%2)",
    ]


def test_a_dropped_activation_leaves_one_pair() -> None:
    lines = text(pruned(QDQ, DropActivation("all"), constants=CONSTANTS))
    assert sum(" = QuantizeLinear" in line for line in lines) == 4
    assert not any(line.endswith("t, o)") for line in lines)


def quantized(*nodes: tuple[str, list[str], str]) -> ir.Graph:
    """A graph over `x` and the scalars `s`, `t` (scales) and `z` (zero point); its last value is put out."""
    values = {name: ir.val(name, ir.DataType.FLOAT, []) for name in "xst"}
    values["z"] = ir.val("z", ir.DataType.INT8, [])
    made = []
    for kind, inputs, output in nodes:
        made.append(ir.node(kind, [values[name] for name in inputs], outputs=[ir.val(output)]))
        values[output] = made[-1].outputs[0]
    outputs = [made[-1].outputs[0]]
    return ir.Graph([values[name] for name in "xstz"], outputs, nodes=made, opset_imports={"": 21})


def kinds(graph: ir.Graph, output: str) -> list[tuple[str, list[str | None]]]:
    """The nodes that lead to a value, with what they read."""
    return [
        (node.op_type, [value.name for value in node.inputs if value is not None])
        for node in graph
        if any(value.name == output for value in node.outputs)
    ]


def test_a_reader_takes_the_scale_along() -> None:
    graph = quantized(
        ("QuantizeLinear", ["x", "s", "z"], "a"), ("QuantizeLinear", ["x", "t", "z"], "b"),
        ("QLinearMul", ["b", "t", "z", "a", "s", "z", "s", "z"], "y"),
    )  # fmt: skip
    first, second, _ = graph
    replace_value(second.outputs[0], first.outputs[0])
    assert kinds(graph, "y") == [("QLinearMul", ["a", "s", "z", "a", "s", "z", "s", "z"])]


def test_a_reader_with_a_scale_of_its_own_gets_the_value_in_it() -> None:
    graph = quantized(
        ("QuantizeLinear", ["x", "s", "z"], "a"), ("QuantizeLinear", ["x", "t", "z"], "b"),
        ("QLinearConcat", ["t", "z", "b", "t", "z"], "y"),
    )  # fmt: skip
    first, second, _ = graph
    replace_value(second.outputs[0], first.outputs[0])
    [(_, inputs)] = kinds(graph, "y")
    assert [node.op_type for node in graph][-3:] == ["DequantizeLinear", "QuantizeLinear", "QLinearConcat"]
    assert inputs[:2] == ["t", "z"]
    assert inputs[3:] == ["t", "z"]


def test_a_real_number_in_place_of_a_quantized_one_is_quantized() -> None:
    graph = quantized(
        ("Relu", ["x"], "r"), ("QuantizeLinear", ["x", "t", "z"], "b"),
        ("QLinearConcat", ["t", "z", "b", "t", "z"], "c"), ("DequantizeLinear", ["c", "t", "z"], "y"),
    )  # fmt: skip
    real, quantize, *_ = graph
    replace_value(quantize.outputs[0], real.outputs[0])
    assert [node.op_type for node in graph] == [
        "Relu", "QuantizeLinear", "QuantizeLinear", "QLinearConcat", "DequantizeLinear"
    ]  # fmt: skip
