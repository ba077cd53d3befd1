"""Normalizations in the forms that exporters and optimizers give them, against numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune.lowering import lower
from graphprune.norms import FoundNorm, find_norms
from tests.graphs import STREAM, proto

MEAN = "mean = ReduceMean <axes = [-1]> (x)\n"
CENTRED = MEAN + "d = Sub (x, mean)\n"
VARIANCE = "sq = Pow (d, two)\nvar = ReduceMean <axes = [-1]> (sq)\nve = Add (var, tiny)\nsd = Sqrt (ve)\n"
AFFINE = "s = Mul (n, gamma_8)\ny = Add (s, beta_8)"
Q = "QuantizeLinear ({}, scale, zero)\n{} = DequantizeLinear ({}, scale, zero)\n"

LAYER_NORMS = {
    "torchscript": CENTRED + VARIANCE + "n = Div (d, sd)\n" + AFFINE,
    "two subtractions": CENTRED + "e = Sub (x, mean)\n" + VARIANCE + "n = Div (e, sd)\n" + AFFINE,
    "product for power": CENTRED + VARIANCE.replace("Pow (d, two)", "Mul (d, d)")
    + "n = Div (d, sd)\n" + AFFINE,
    "reciprocal": CENTRED + VARIANCE + "r = Reciprocal (sd)\nn = Mul (d, r)\n" + AFFINE,
    "negative power": CENTRED + VARIANCE.replace("sd = Sqrt (ve)", "r = Pow (ve, minus_half)")
    + "n = Mul (d, r)\n" + AFFINE,
    "keras": CENTRED + VARIANCE + "r = Reciprocal (sd)\nrg = Mul (r, gamma_8)\nxs = Mul (x, rg)\n"
    "ms = Mul (mean, rg)\nsh = Sub (beta_8, ms)\ny = Add (xs, sh)",
    "flax": MEAN + "xx = Mul (x, x)\nm2 = ReduceMean <axes = [-1]> (xx)\nmm = Mul (mean, mean)\n"
    "var = Sub (m2, mm)\nve = Add (var, tiny)\nsd = Sqrt (ve)\nr = Reciprocal (sd)\nrg = Mul (r, gamma_8)\n"
    "d = Sub (x, mean)\nn = Mul (d, rg)\ny = Add (n, beta_8)",
    "casts": "c = Cast <to = 11> (x)\nmean = ReduceMean <axes = [-1]> (c)\nd = Sub (c, mean)\n"
    "p = Mul (d, d)\nvar = ReduceMean <axes = [-1]> (p)\nve = Add (var, tiny64)\nsd = Sqrt (ve)\n"
    "q = Div (d, sd)\nn = Cast <to = 1> (q)\n" + AFFINE,
    "fused in part": CENTRED
    + "n = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (d, gamma_8)\n"
    "y = Add (n, beta_8)",
    "one op": "y = LayerNormalization <epsilon = 0.00001> (x, gamma_8, beta_8)",
}  # fmt: skip
SQUARES = "sq = Pow (x, two)\nms = ReduceMean <axes = [-1]> (sq)\nme = Add (ms, tiny)\nrt = Sqrt (me)\n"
RMS_NORMS = {
    "torchscript": SQUARES + "r = Div (one, rt)\nn = Mul (x, r)\ny = Mul (gamma_8, n)",
    "division": SQUARES + "n = Div (x, rt)\ny = Mul (n, gamma_8)",
    "one plus gamma": SQUARES + "r = Reciprocal (rt)\nn = Mul (x, r)\ng = Add (less_8, one)\ny = Mul (n, g)",
    "one op": "y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, gamma_8)",
}
CONSTANTS = {"tiny64": np.float64(1e-5), "scale": np.float32(0.05), "zero": np.int8(0)}


def found(body: str) -> tuple[list[FoundNorm], list[str | None]]:
    """The norms of a text, and the names of what the first one reads and puts out."""
    model = proto(body, constants=CONSTANTS)
    flow = lower(ir.from_proto(model).graph)
    norms = find_norms(flow)
    numbers = [number for norm in norms[:1] for number in (norm.input, norm.output)]
    return norms, [value.name if (value := flow.values[n]) is not None else None for n in numbers]


def run(body: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A random input, the output, the weights."""
    model = proto(body, constants=CONSTANTS)
    x = np.random.default_rng(1).normal(2, 3, (2, 5, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = {w.name: ir.from_proto(w).numpy() for w in model.graph.initializer}
    return x, session.run(None, {"x": x})[0], weights


@pytest.mark.parametrize("body", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norms(body: str) -> None:
    (norm,), ends = found(body)
    assert (norm.kind, ends) == ("layer", ["x", "y"])
    assert [value.name for value in (norm.scale, norm.bias) if value is not None] == ["gamma_8", "beta_8"]
    x, y, w = run(body)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, normal * w["gamma_8"] + w["beta_8"], atol=1e-4)


@pytest.mark.parametrize("body", RMS_NORMS.values(), ids=RMS_NORMS)
def test_rms_norms(body: str) -> None:
    (norm,), ends = found(body)
    assert (norm.kind, norm.bias, ends) == ("rms", None, ["x", "y"])
    assert norm.scale is not None
    x, y, w = run(body)
    gamma = w["gamma_8"] if "gamma_8" in w else w["less_8"] + 1
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gamma, atol=1e-4)


def test_quantization_between_all_nodes() -> None:
    """The QDQ form: every float of a norm is quantized and back."""
    body = "a = " + Q.format("x", "b", "a") + "sq = Pow (b, two)\nc = " + Q.format("sq", "e", "c")
    body += "ms = ReduceMean <axes = [-1]> (e)\nf = " + Q.format("ms", "g", "f") + "rt = Sqrt (g)\n"
    body += "n = Div (b, rt)\nh = " + Q.format("n", "i", "h") + "y = Mul (i, gamma_8)"
    (norm,), ends = found(body)
    assert (norm.kind, ends) == ("rms", ["x", "y"])
    assert norm.scale is not None and norm.scale.name == "gamma_8"


def test_the_nodes_of_a_norm_are_all_of_its_nodes() -> None:
    for body in LAYER_NORMS.values():
        (norm,), _ = found(body)
        model = proto(body, constants=CONSTANTS)
        inside = {op.node.outputs[0].name for op in norm.ops}
        assert inside == {node.output[0] for node in model.graph.node}


@pytest.mark.parametrize(
    "body",
    [
        CENTRED + VARIANCE + "y = Div (sd, d)",
        SQUARES + "y = Mul (x, rt)",
        "sq = Pow (x, three)\nm = ReduceMean <axes = [-1]> (sq)\nr = Sqrt (m)\ny = Div (x, r)",
        SQUARES + "z = MatMul (x, w_8x8)\ny = Div (z, rt)",
        "m = ReduceMean <axes = [-1]> (x)\ny = Sub (x, m)",
        "p = Softmax <axis = -1> (x)\ny = Mul (x, p)",
    ],
    ids=["upside down", "times its norm", "third power", "another value", "only centred", "softmax"],
)
def test_what_is_no_norm(body: str) -> None:
    model = proto(body, constants={"three": np.float32(3)})
    assert find_norms(lower(ir.from_proto(model).graph)) == []


def test_a_sum_and_its_norm_in_one_node() -> None:
    body = "u = MatMul (x, w_8x8)\ny, , , s = SkipLayerNormalization (x, u, gamma_8, beta_8, b_8)"
    model = proto(body, outputs=f"{STREAM} y, {STREAM} s")
    flow = lower(ir.from_proto(model).graph)
    (norm,) = find_norms(flow)
    values = flow.values[norm.input], flow.values[norm.output], norm.scale, norm.bias
    assert [value.name if value is not None else None for value in values] == ["s", "y", "gamma_8", "beta_8"]
