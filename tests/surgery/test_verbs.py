"""The verbs of surgery on tiny graphs: what they promise about outputs, sums, sizes and caches."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphprune.architecture import Bias
from graphprune.recover import recover
from graphprune.surgery import (
    drop_bias,
    drop_block,
    drop_term,
    release_shapes,
    replace_value,
    split_join,
    sweep,
)
from tests.graphs import STREAM, attention, ffn, norm, written

X = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(
        None, feeds or {"x": X}
    )


def node(model: ir.Model, kind: str, index: int = 0) -> ir.Node:
    return [n for n in model.graph if n.op_type == kind][index]


def test_an_output_keeps_its_name_and_shape() -> None:
    model = written("h = Relu (x) y = Neg (h)")
    before = model.graph.outputs[0]
    replace_value(before, node(model, "Relu").outputs[0])
    sweep(model)
    (after,) = model.graph.outputs
    assert (after.name, after.shape, after.dtype) == ("y", before.shape, before.dtype)
    assert [n.op_type for n in model.graph] == ["Relu"]
    assert np.array_equal(run(model)[0], np.maximum(X, 0))


def test_an_output_that_becomes_an_input_stays_a_value_of_its_own() -> None:
    model = written("y = Neg (x)")
    replace_value(model.graph.outputs[0], model.graph.inputs[0])
    sweep(model)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert np.array_equal(run(model)[0], X)


def test_two_outputs_of_one_value_are_both_there() -> None:
    model = written("h = Relu (x) y = Neg (h) z = Abs (h)", outputs=f"{STREAM} y, {STREAM} z")
    hidden = node(model, "Relu").outputs[0]
    for output in tuple(model.graph.outputs):
        replace_value(output, hidden)
    sweep(model)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert all(np.array_equal(out, np.maximum(X, 0)) for out in run(model))


def test_a_sum_of_three_loses_one() -> None:
    model = written("a = Relu (x) b = Neg (x) y = Sum (x, a, b)")
    total = node(model, "Sum")
    drop_term(node(model, "Relu").outputs[0], (total,))
    drop_term(node(model, "Neg").outputs[0], (total,))
    sweep(model)
    assert np.allclose(run(model)[0], X)
    assert all(n.op_type in {"Identity", "Sum"} for n in model.graph)


def test_a_fused_join_comes_apart_into_equal_parts() -> None:
    body = """
    b = Relu (x)
    n, u, w, s = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, b, g_8, beta_8, bias_8)
    y = Add (n, s)
    """
    for opset in (12, 17):
        model = written(body, opset=opset)
        dense = run(model)[0]
        split_join(node(model, "SkipLayerNormalization"))
        kinds = {n.op_type for n in model.graph}
        assert "SkipLayerNormalization" not in kinds
        assert ("LayerNormalization" in kinds) == (opset == 17)
        assert np.allclose(run(model)[0], dense, atol=1e-5)


def test_a_quantized_sum_gives_the_stream_in_its_own_scale() -> None:
    constants = {"sx": np.float32(0.05), "sb": np.float32(0.02), "sy": np.float32(0.1), "z": np.uint8(128)}
    body = """
    q = QuantizeLinear (x, sx, z) r = Neg (x) p = QuantizeLinear (r, sb, z)
    s = com.microsoft.QLinearAdd (q, sx, z, p, sb, z, sy, z) y = DequantizeLinear (s, sy, z)
    """
    model = written(body, constants=constants)
    drop_term(node(model, "QuantizeLinear", 1).outputs[0], (node(model, "QLinearAdd"),))
    sweep(model)
    assert np.abs(run(model)[0] - np.clip(X, -6.4, 6.35)).max() <= 0.1


def test_the_part_of_a_quantized_bias_that_goes_stands_for_zero() -> None:
    """Zero is stored as the zero point, not as the number 0."""
    bias = np.uint8([138, 148, 158, 108, 98, 88, 128, 200])
    constants = {"s": np.float32(0.05), "z": np.uint8(128), "b": bias}
    body = """
    q = QuantizeLinear (x, s, z) a = com.microsoft.QLinearAdd (q, s, z, b, s, z, s, z)
    y = DequantizeLinear (a, s, z)
    """
    model = written(body, constants=constants)
    add = node(model, "QLinearAdd")
    assert add.inputs[3] is not None
    drop_bias(Bias("q", add, 3, add.inputs[3], start=0, stop=4))
    left = 0.05 * np.where(np.arange(8) < 4, 0, bias.astype(np.float32) - 128)
    assert np.abs(run(model)[0] - np.clip(X + left, -6.4, 6.35)).max() <= 0.05


def test_a_size_is_read_off_the_stream_instead() -> None:
    """The mask's length comes from the first layer's keys, as old exporters have it."""
    size = """
    a_r = Reshape (a_k, heads) a_tr = Transpose <perm = [0, 2, 1, 3]> (a_r)
    dims = Shape (a_tr) length = Gather (dims, two_i) row = Unsqueeze (length, zero_i)
    ones = Expand (one, row)
    """
    body = f"""
    {attention("x", "a")} {size} h = Add (x, a) w = Add (h, zero)
    {ffn("w", "f")} o = Add (w, f) y = Add (o, zero)
    """
    constants = {
        "heads": np.int64([0, -1, 2, 4]), "two_i": np.int64(2), "zero_i": np.int64([0]),
        "zero": np.float32(0),
    }  # fmt: skip
    model = written(body, constants=constants, outputs=f"{STREAM} y, float[n] ones")
    found = recover(model)
    drop_block(next(block for block in found.blocks if block.kind == "attention"), found)
    sweep(model)
    out, ones = run(model)
    assert ones.shape == (3,)
    assert out.shape == X.shape
    assert not any("a_k" in (value.name or "") for value in model.graph.initializers.values())


def test_releasing_shapes_twice_changes_nothing_more() -> None:
    body = f"{norm('x', 'n')} {attention('n', 'a')} y = Add (x, a)"
    model = written(body)
    (block,) = recover(model).blocks
    nodes = [n.op_type for n in model.graph]
    release_shapes(block.nodes, block)
    assert [n.op_type for n in model.graph] == nodes


def test_a_branch_of_an_if_loses_what_its_sibling_loses() -> None:
    """Both branches put out the same caches by position: names close up in the signature of the If."""
    layer = attention("x", "a").replace("a_q_8x8", "wq").replace("a_k_8x8", "wk")
    layer = layer.replace("a_v_8x8", "wv").replace("a_o_8x8", "wo")
    second = layer.replace("(x,", "(h0,").replace("a_", "c_").replace(" a = ", " c = ").strip()
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
    merged (bool use, {STREAM} x, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, float[8, 8] wo)
        => ({STREAM} y, {STREAM} present0, {STREAM} present1) {{
      y, present0, present1 = If (use) <
        then_branch = one () => ({STREAM} y0, {STREAM} a_k, {STREAM} c_k)
          {{ {layer} h0 = Add (x, a) {second} y0 = Add (h0, c) }},
        else_branch = other () => ({STREAM} y1, {STREAM} a_k, {STREAM} c_k)
          {{ {layer} h0 = Add (x, a) {second} y1 = Add (h0, c) }}>
    }}"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    found = recover(model)
    assert [(s.name, len(s.layers)) for s in found.stacks] == [("decoder", 2)] * 2
    for stack in found.stacks:
        drop_block(stack.layers[0].blocks[0], found)
    sweep(model)
    assert [value.name for value in model.graph.outputs] == ["y", "present0"]
    eye = np.eye(8, dtype=np.float32)
    feeds = dict.fromkeys(("wq", "wk", "wv", "wo"), eye)
    results = [run(model, use=np.array(use), x=X, **feeds) for use in (True, False)]
    for y, present in results:
        assert np.array_equal(present, X)
        assert y.shape == X.shape
    assert np.array_equal(results[0][0], results[1][0])
