"""Operands go out of sums of every kind; what is left is compared with a run where the branch is zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune.errors import EditError
from graphprune.surgery import drop_term, split_join, sweep
from graphprune.surgery.sums import drop_branch
from tests.graphs import ffn, only_block, written
from tests.passes.written import text
from tests.surgery.test_values import valid, value

X = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)


def run(model: ir.Model, x: np.ndarray = X) -> np.ndarray:
    """The model's one output."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def dropped(model: ir.Model, name: str) -> ir.Model:
    """The model without the term of that name in the sums that read it."""
    term = value(model, name)
    drop_term(term, [use.node for use in term.uses()])
    return valid(model)


@pytest.mark.parametrize("operands", ["x, f", "f, x"])
def test_an_add(operands: str) -> None:
    model = written(f"f = Relu (x) h = Add ({operands}) y = Neg (h)")
    assert text(dropped(model, "f")) == text(written("y = Neg (x)"))


def test_a_sum_of_two() -> None:
    assert text(dropped(written("f = Relu (x) h = Sum (x, f) y = Neg (h)"), "f")) == text(
        written("y = Neg (x)")
    )


def test_a_sum_of_many() -> None:
    model = written("f = Relu (x) g = Abs (x) y = Sum (f, x, g)")
    assert text(dropped(model, "f")) == text(written("g = Abs (x) y = Sum (x, g)"))


def test_two_terms_of_one_sum() -> None:
    model = written("f = Relu (x) g = Abs (x) y = Sum (f, x, g)")
    sums = [value(model, "y").producer()]
    assert sums[0] is not None
    drop_term(value(model, "f"), [sums[0]])
    drop_term(value(model, "g"), [sums[0]])
    assert text(valid(model)) == text(written("y = Identity (x)"))


@pytest.mark.parametrize("operands", ["x, f", "f, x"])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_fused_sum_and_norm(operands: str, opset: int) -> None:
    body = f"""
    f0 = Relu (x) f = Mul (f0, SCALE)
    m, u0, u1, h = com.microsoft.SkipLayerNormalization <epsilon = 0.001> ({operands}, g_8, b_8, bias_8)
    y = Add (m, h)
    """
    zero = {"none": np.float32(0), "all": np.float32(1), "bias_8": np.zeros(8, np.float32)}
    expected = run(written(body.replace("SCALE", "none"), opset=opset, constants=zero))
    model = dropped(written(body.replace("SCALE", "all"), opset=opset, constants={"all": 1.0}), "f")
    assert "bias_8" not in model.graph.initializers
    assert not any(node.domain for node in model.graph)
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 23])
def test_a_fused_sum_and_rms_norm(opset: int) -> None:
    body = """
    f = Mul (x, SCALE)
    m, u0, u1, h = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, f, g_8)
    y = Add (m, h)
    """
    expected = run(written(body.replace("SCALE", "none"), constants={"none": np.float32(0)}))
    model = dropped(written(body.replace("SCALE", "one"), opset=opset), "f")
    kinds = [node.op_type for node in model.graph]
    assert ("RMSNormalization" in kinds) == (opset >= 23)
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


def test_a_fused_sum_taken_apart_is_the_same() -> None:
    body = """
    f = Relu (x)
    m, u0, u1, h = com.microsoft.SkipLayerNormalization (x, f, g_8, b_8, bias_8) y = Add (m, h)
    """
    model = written(body)
    node = value(model, "m").producer()
    assert node is not None
    split_join(node)
    np.testing.assert_allclose(run(valid(model)), run(written(body)), rtol=1e-5, atol=1e-5)


def test_a_quantized_sum() -> None:
    numbers = {
        "sx": np.float32(0.03), "zx": np.uint8(120), "sf": np.float32(0.05), "zf": np.uint8(10),
        "sy": np.float32(0.04), "zy": np.uint8(128),
    }  # fmt: skip
    body = """
    qx = QuantizeLinear (x, sx, zx) f = Mul (x, SCALE) qf = QuantizeLinear (f, sf, zf)
    q = com.microsoft.QLinearAdd (qx, sx, zx, qf, sf, zf, sy, zy) y = DequantizeLinear (q, sy, zy)
    """
    expected = run(written(body.replace("SCALE", "none"), constants=numbers | {"none": np.float32(0)}))
    model = dropped(written(body.replace("SCALE", "one"), constants=numbers), "qf")
    assert "QLinearAdd" not in [node.op_type for node in model.graph]
    np.testing.assert_allclose(
        run(model), expected, atol=float(numbers["sy"]) * 1.01
    )  # halves round either way


CONV = {"inputs": "float[1, 4, 6, 6] x", "outputs": "float[1, 4, 6, 6] y"}
IMAGE = np.random.default_rng(2).normal(size=(1, 4, 6, 6)).astype(np.float32)


def fused_conv(activation: str) -> str:
    """A branch of two convolutions, the second of which adds the stream and activates."""
    return f"""
    u = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, up_4x4x3x3) r = Relu (u)
    y = com.microsoft.FusedConv <kernel_shape = [1, 1]{activation}> (r, down_4x4x1x1, b_4, x)
    """


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_a_convolution_that_adds_the_stream(activation: str) -> None:
    model = written(fused_conv(f', activation = "{activation}"'), **CONV)
    block = only_block(model)
    drop_branch(block.branches[0], block)
    assert text(valid(model)) == text(written(f"y = {activation} (x)", **CONV))


def test_a_convolution_with_another_activation() -> None:
    model = written(fused_conv(', activation = "LeakyRelu", activation_params = [0.1]'), **CONV)
    block = only_block(model)
    with pytest.raises(EditError, match="its fused activation LeakyRelu cannot be kept alone"):
        drop_branch(block.branches[0], block)


def test_a_gemm_that_adds_the_stream() -> None:
    options = {"inputs": "float[batch, 8] x", "outputs": "float[batch, 8] y"}
    model = written("u = Gemm (x, up_8x24) r = Relu (u) y = Gemm (r, down_24x8, x)", **options)
    block = only_block(model)
    drop_branch(block.branches[0], block)
    assert text(valid(model)) == text(written("y = Identity (x)", **options))


def test_a_branch_that_is_gone_already() -> None:
    model = written(f"{ffn('x', 'f')} y = Add (x, f)")
    block = only_block(model)
    drop_branch(block.branches[0], block)
    drop_branch(block.branches[0], block)
    sweep(model)
    assert text(model) == text(written("y = Identity (x)"))
