from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.replace_mean import ReplaceMean
from graphprune.prunepass import PrunePass
from tests.graphs import attention, ffn, norm, written
from tests.passes.fitted import drawn, stored
from tests.passes.written import answers, pruned, text

CONSTANT = drawn(8)


PLAIN = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
BIASED = PLAIN.replace("h = Add (x, a)", "o = Add (a, bias_8) h = Add (x, o)")
GEMM = """
u = MatMul (x, u_8x8) r = Relu (u) g = Gemm (r, down_8x8, bias_8) h = Add (x, g)
n1 = LayerNormalization (h, n1_gamma_8, n1_beta_8) f_up = MatMul (n1, f_up_8x24) f_act = Relu (f_up)
f = MatMul (f_act, f_down_24x8) y = Add (h, f)
"""
SKIP = "com.microsoft.SkipLayerNormalization <epsilon = 0.01>"
FUSED = f"""
{ffn("x", "f")}
m, u0, u1, h = {SKIP} (x, f, g_8, b_8, bias_8)
{ffn("m", "g")}
p, v0, v1, k = {SKIP} (h, g, c_8, d_8)
{ffn("p", "e")} y = Add (k, e)
"""


@pytest.fixture
def values(tmp_path: Path) -> str:
    return stored(
        tmp_path / "v.npz",
        **{f"encoder_{block}__constant": CONSTANT for block in ("0_ffn", "1_ffn", "0_attention")},
    )


def biases(model: ir.Model) -> dict[str, np.ndarray]:
    """The stored vectors that are made of others."""
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in stored.items() if tensor and "/" in name}


def same(model: ir.Model, after: str, name: str) -> None:
    """The nodes are those of `after`, in which the one made vector is called `made_8`."""
    assert [line.replace(name, "made_8") for line in text(model)] == text(written(after))


def test_a_constant_is_added_where_there_is_no_bias(values: str) -> None:
    model = pruned(PLAIN, ReplaceMean("encoder.0.ffn", values))
    after = f"""{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a) y = Add (h, made_8)"""
    same(model, after, "encoder.0.ffn/constant")


def test_a_bias_before_it_takes_it_up(values: str) -> None:
    model = pruned(BIASED, ReplaceMean("encoder.0.ffn", values))
    after = f"""{norm("x", "n0")} {attention("n0", "a")} o = Add (a, made_8) y = Add (x, o)"""
    same(model, after, "bias_8/and_constant")
    before = written(BIASED).graph.initializers["bias_8"].const_value
    assert before is not None
    ((_, bias),) = biases(model).items()
    np.testing.assert_array_equal(bias, (before.numpy().astype(np.float64) + CONSTANT).astype(np.float32))


def test_so_does_the_bias_of_a_gemm(values: str) -> None:
    rows = {"inputs": "float[rows, 8] x", "outputs": "float[rows, 8] y"}
    model = pruned(GEMM, ReplaceMean("encoder.1.ffn", values), **rows)
    after = "u = MatMul (x, u_8x8) r = Relu (u) g = Gemm (r, down_8x8, made_8) y = Add (x, g)"
    assert [line.replace("bias_8/and_constant", "made_8") for line in text(model)] == text(
        written(after, **rows)
    )


def test_a_fused_sum_takes_it_up_and_does_the_next_norm(values: str) -> None:
    model = pruned(FUSED, ReplaceMean("encoder.1.ffn", values))
    after = f"{ffn('x', 'f')} p, u0, u1, k = {SKIP} (x, f, c_8, d_8, made_8) {ffn('p', 'e')} y = Add (k, e)"
    same(model, after, "bias_8/and_constant")


POST = f"""
{attention("x", "a")} s = Add (x, a) {norm("s", "h")} {ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
"""


def test_the_norm_before_it_takes_it_up_in_a_post_norm_model(values: str) -> None:
    model = pruned(POST, ReplaceMean("encoder.0.ffn", values))
    after = (
        f"{attention('x', 'a')} s = Add (x, a) t = LayerNormalization (s, h_gamma_8, made_8) {norm('t', 'y')}"
    )
    same(model, after, "h_beta_8/and_constant")


def test_so_does_a_fused_one(values: str) -> None:
    fused = POST.replace("s = Add (x, a)", "").replace(norm("s", "h"), f"h = {SKIP} (x, a, g_8, b_8)")
    model = pruned(fused, ReplaceMean("encoder.0.ffn", values))
    after = f"{attention('x', 'a')} h = {SKIP} (x, a, g_8, made_8) {norm('h', 'y')}"
    same(model, after, "b_8/and_constant")


@pytest.mark.parametrize("order", [1, -1])
def test_a_block_before_it_that_goes_too_takes_no_constant_along(order: int, values: str) -> None:
    both: list[PrunePass] = [ReplaceMean("encoder.0.ffn", values), DropAttention("0")]
    third = f"{norm('y0', 'n2')} {ffn('n2', 'g')} y = Add (y0, g)"
    model = pruned(BIASED.replace("y = Add (h, f)", "y0 = Add (h, f)") + third, *both[::order])
    after = f"y0 = Add (x, made_8) {third}"
    same(model, after, "encoder.0.ffn/constant")


def test_two_constants_in_a_row_are_one(values: str) -> None:
    third = f"{norm('y0', 'n2')} {attention('n2', 'c')} z = Add (y0, c)"
    third += f"{norm('z', 'n3')} {ffn('n3', 'g')} y = Add (z, g)"
    body = PLAIN.replace("y = Add (h, f)", "y0 = Add (h, f)") + third
    model = pruned(body, ReplaceMean("encoder.0.attention,encoder.0.ffn", values))
    (line,) = text(model)[:1]
    assert line.partition(" ")[2] == "= Add <> (x, encoder.0.attention/constant/and_constant)"
    assert sum("constant" in line for line in text(model)) == 1
    ((_, total),) = biases(model).items()
    np.testing.assert_allclose(total, 2 * CONSTANT, rtol=1e-6)


def test_a_stream_that_is_put_out_is_left_alone(values: str) -> None:
    outputs = "float[batch, sequence, 8] y, float[batch, sequence, 8] h"
    model = pruned(BIASED, ReplaceMean("encoder.0.ffn", values), outputs=outputs)
    after = (
        f"""{norm("x", "n0")} {attention("n0", "a")} o = Add (a, bias_8) h = Add (x, o) y = Add (h, made_8)"""
    )
    lines = [line.replace("encoder.0.ffn/constant", "made_8") for line in text(model)]
    assert lines == text(written(after, outputs=outputs))


def test_what_it_says(values: str, tmp_path: Path) -> None:
    assert answers(PLAIN, ReplaceMean("encoder.0.ffn", values)) == {
        "encoder.0.ffn": "put a constant of 8 in its place"
    }
    none = stored(tmp_path / "none.npz", encoder_0_ffn__scale=CONSTANT)
    assert answers(PLAIN, ReplaceMean("encoder.0.ffn", none)) == {
        "encoder.0.ffn": f"({none} holds no constant for it)"
    }
