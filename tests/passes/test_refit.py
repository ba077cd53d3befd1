from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.errors import EditError, RecipeError
from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_ffn import DropFfn
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.refit import Refit
from graphprune.passes.replace_linear import ReplaceLinear
from graphprune.prunepass import PrunePass
from tests.graphs import attention, ffn, norm, written
from tests.passes.fitted import drawn, stored
from tests.passes.written import answers, pruned, text
from tests.surgery.test_sums import X, run

POST = f"""
{attention("x", "a")} s = Add (x, a) {norm("s", "h")}
{ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
"""
PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
SKIP = "com.microsoft.SkipLayerNormalization <epsilon = 0.01>"
SCALE, SHIFT, WEIGHT, BIAS = drawn(8), drawn(8, seed=1), drawn(24, 8, seed=2), drawn(8, seed=3)
NEW = {
    "encoder.0.ffn/scale": "scale_8", "encoder.0.ffn/shift": "shift_8", "encoder.0.ffn/bias": "bias_8",
    "encoder.0.ffn/weight.0": "weight_24x8",
}  # fmt: skip


@pytest.fixture
def values(tmp_path: Path) -> str:
    return stored(
        tmp_path / "v.npz",
        encoder_0_ffn__scale=SCALE, encoder_0_ffn__shift=SHIFT,
        encoder_0_ffn__weight_0=WEIGHT, encoder_0_ffn__bias=BIAS,
    )  # fmt: skip


@pytest.fixture
def norms(tmp_path: Path) -> str:
    return stored(tmp_path / "n.npz", encoder_0_ffn__scale=SCALE, encoder_0_ffn__shift=SHIFT)


@pytest.fixture
def outputs(tmp_path: Path) -> str:
    return stored(tmp_path / "o.npz", encoder_0_ffn__weight_0=WEIGHT, encoder_0_ffn__bias=BIAS)


def same(model: ir.Model, after: str, **options: object) -> None:
    """The nodes are those of `after`; fitted weights are called as in `NEW` there, and have its values."""
    lines = "\n".join(text(model))
    for name, short in NEW.items():
        lines = lines.replace(name, short)
    assert lines.splitlines() == text(written(after, **options))
    given = dict(zip(NEW, (SCALE, SHIFT, BIAS, WEIGHT), strict=True))
    for name, value in model.graph.initializers.items():
        if name in given and value.const_value is not None:
            np.testing.assert_array_equal(value.const_value.numpy().reshape(given[name].shape), given[name])


def test_norm_and_output_of_a_post_norm_block(values: str) -> None:
    after = f"""
    {attention("x", "a")} s = Add (x, a) {norm("s", "h")}
    u = MatMul (h, f_up_8x24) r = Relu (u) d = MatMul (r, weight_24x8) b = Add (d, bias_8) t = Add (h, b)
    y = LayerNormalization (t, scale_8, shift_8)
    """
    same(pruned(POST, Refit(values)), after)


@pytest.mark.parametrize("drop", [DropFfn("0"), DropFfn("0", post_norm="keep")])
@pytest.mark.parametrize("order", [1, -1])
def test_the_norm_of_a_block_that_goes_is_refitted_all_the_same(
    order: int, drop: PrunePass, values: str
) -> None:
    after = (
        f"{attention('x', 'a')} s = Add (x, a) {norm('s', 'h')} y = LayerNormalization (h, scale_8, shift_8)"
    )
    same(pruned(POST, *[drop, Refit(values)][::order]), after)


@pytest.mark.parametrize("order", [1, -1])
def test_so_is_that_of_a_fused_join(order: int, norms: str) -> None:
    body = f"""
    {ffn("x", "f")} m, u0, u1, h = {SKIP} (x, f, g_8, b_8, down_bias_8)
    {ffn("m", "g")} y, v0, v1, k = {SKIP} (m, g, c_8, d_8)
    """
    after = f"""
    m = LayerNormalization <axis = -1, epsilon = 0.01> (x, scale_8, shift_8)
    {ffn("m", "g")} y, v0, v1, k = {SKIP} (m, g, c_8, d_8)
    """
    same(pruned(body, *[DropFfn("0"), Refit(norms)][::order]), after)


def test_a_norm_that_goes_with_its_block_needs_no_refit(values: str) -> None:
    dropped = text(pruned(POST, DropFfn("0", post_norm="drop")))
    assert text(pruned(POST, DropFfn("0", post_norm="drop"), Refit(values))) == dropped
    first = f"""
    {attention("x", "c")} o = Add (x, c) {norm("o", "p")} {ffn("p", "e")} q = Add (p, e) {norm("q", "z")}
    """
    two = first + POST.replace("(x, ", "(z, ")
    assert text(pruned(two, DropLayers("0"), Refit(values))) == text(pruned(two, DropLayers("0")))


def test_a_replaced_block_has_its_norm_refitted(values: str, tmp_path: Path) -> None:
    linear = stored(tmp_path / "l.npz", encoder_0_ffn__linear=drawn(8, 8))
    model = pruned(POST, ReplaceLinear("encoder.0.ffn", linear), Refit(values))
    after = f"""
    {attention("x", "a")} s = Add (x, a) {norm("s", "h")}
    l = MatMul (h, linear_8x8) t = Add (h, l) y = LayerNormalization (t, scale_8, shift_8)
    """.replace("linear_8x8", "encoder_0_ffn_linear_8x8")
    lines = [line.replace("encoder.0.ffn/linear", "encoder_0_ffn_linear_8x8") for line in text(model)]
    for name, short in NEW.items():
        lines = [line.replace(name, short) for line in lines]
    assert lines == text(written(after))


def test_a_norm_without_beta_gets_one(norms: str) -> None:
    bare = "y = LayerNormalization (t, y_gamma_8)"
    body = POST.replace(norm("t", "y").strip(), bare)
    assert bare in body
    after = body.replace(bare, "y = LayerNormalization (t, scale_8, shift_8)")
    same(pruned(body, Refit(norms)), after)


def test_an_rms_norm_gets_an_add(norms: str) -> None:
    def rms(stream: str, out: str) -> str:
        return f"{out} = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> ({stream}, {out}_gamma_8)"

    body = (
        f"{attention('x', 'a')} s = Add (x, a) {rms('s', 'h')} {ffn('h', 'f')} t = Add (h, f) {rms('t', 'y')}"
    )
    model = written(body)
    from graphprune.adapter import IrPass

    before = run(written(body))
    IrPass(Refit(norms))(model)
    gamma = written(body).graph.initializers["y_gamma_8"].const_value
    assert gamma is not None
    np.testing.assert_allclose(run(model), before / gamma.numpy() * SCALE + SHIFT, atol=1e-5)


FITTED = "f = MatMul (r, weight_24x8) g = Add (f, bias_8) y = Add (x, g)"
FUSED = f"f = MatMul (r, weight_24x8) y, u0, u1, h = {SKIP} (x, f, g_8, c_8, bias_8)"


@pytest.mark.parametrize(
    ("last", "after"),
    [
        ("f = MatMul (r, down_24x8) y = Add (x, f)", FITTED),
        ("i = Identity (w) f = MatMul (r, i) y = Add (x, f)", FITTED),
        ("i = Transpose (v) f = MatMul (r, i) y = Add (x, f)", FITTED),
        ("f = MatMul (r, w) g = Add (b, f) y = Add (x, g)", FITTED.replace("(f, bias_8)", "(bias_8, f)")),
        (f"f = MatMul (r, w) y, u0, u1, h = {SKIP} (x, f, g_8, c_8)", FUSED),
        (f"f = MatMul (r, w) y, u0, u1, h = {SKIP} (x, f, g_8, c_8, b)", FUSED),
        (
            "i = Cast <to = 1> (half) f = MatMul (r, i) y = Add (x, f)",
            "i = Cast <to = 1> (weight_24x8)" + FITTED.replace("weight_24x8", "i"),
        ),
    ],
)
def test_the_dialects_of_an_output_projection(last: str, after: str, tmp_path: Path) -> None:
    path = stored(
        tmp_path / "v.npz",
        encoder_0_ffn__weight_0=WEIGHT.astype(np.float16).astype(np.float32), encoder_0_ffn__bias=BIAS,
    )  # fmt: skip
    head = "u = MatMul (x, up_8x24) r = Relu (u) "
    constants = {"w": drawn(24, 8), "v": drawn(8, 24), "b": drawn(8), "half": drawn(24, 8).astype(np.float16)}
    model = pruned(head + last, Refit(path), constants=constants)
    lines = "\n".join(text(model))
    for name, short in NEW.items():
        lines = lines.replace(name, short)
    assert lines.splitlines() == text(written(head + after, constants=constants))
    names = {"weight.0": WEIGHT.astype(np.float16), "bias": BIAS}
    for key, array in names.items():
        value = model.graph.initializers[f"encoder.0.ffn/{key}"].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy().astype(np.float32), array.astype(np.float32))


@pytest.mark.parametrize(
    ("last", "attributes"),
    [
        ("f = Gemm <transB = 1> (r, v, b)", ""),
        ("f = Gemm (r, w)", ""),
        ("f = Gemm <alpha = 2.0> (r, w, b)", ""),
        ("f = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (r, v)", ""),
    ],
)
def test_linears_with_attributes_compute_the_same(last: str, attributes: str, outputs: str) -> None:
    rows = {"inputs": "float[rows, 8] x", "outputs": "float[rows, 8] y"}
    constants = {"w": drawn(24, 8, seed=5), "v": drawn(8, 24, seed=5), "b": drawn(8, seed=6)}
    body = f"u = MatMul (x, up_8x24) r = Relu (u) {last} y = Add (x, f)"
    model = pruned(body, Refit(outputs), constants=constants, **rows)
    inside = "u = MatMul (x, up_8x24) r = Relu (u) f = MatMul (r, new_w) g = Add (f, new_b) y = Add (x, g)"
    expected = written(inside, constants={"new_w": WEIGHT, "new_b": BIAS}, **rows)
    np.testing.assert_allclose(run(model, X[0]), run(expected, X[0]), atol=1e-5)
    assert sum(node.op_type == "Add" for node in model.graph) == (2 if "Fused" in last else 1)


def test_weights_that_others_share_are_theirs(tmp_path: Path) -> None:
    layer = """
    {o}n = LayerNormalization ({i}, g_8, b_8) {o}u = MatMul ({o}n, up_8x24) {o}r = Relu ({o}u)
    {o}f = MatMul ({o}r, down_24x8) {o} = Add ({i}, {o}f)
    """
    body = layer.format(i="x", o="p") + layer.format(i="p", o="y")
    path = stored(tmp_path / "v.npz", encoder_0_ffn__weight_0=WEIGHT)
    model = pruned(body, Refit(path, "0"))
    other = layer.format(i="x", o="p").replace("down_24x8", "weight_24x8") + layer.format(i="p", o="y")
    assert [line.replace("encoder.0.ffn/weight.0", "weight_24x8") for line in text(model)] == text(
        written(other)
    )


def test_what_it_says(values: str, norms: str) -> None:
    none = f"({values} holds nothing to refit it by)"
    assert answers(POST, Refit(values, "encoder.0.attention")) == {"encoder.0.attention": none}
    assert answers(POST, Refit(values)) == {
        "encoder.0.ffn.norm": "refit γ and β of the norm after it",
        "encoder.0.ffn.output": "refit the weight and the bias of its output projection",
    }
    assert answers(PRE, Refit(norms, "encoder.0.ffn")) == {
        "encoder.0.ffn.norm": "(it has no norm after its join)"
    }


def test_what_is_no_sum_of_linears_is_declined_with_the_node(outputs: str) -> None:
    scaled = PRE.replace("y = Add (h, f)", "l = Mul (f, layer_scale_8) y = Add (h, l)")
    (said,) = answers(scaled, Refit(outputs, "encoder.0.ffn")).values()
    assert said == "(node '' (Mul) stands between its last linear and its join)"


def test_numbers_that_the_type_does_not_hold(tmp_path: Path) -> None:
    path = stored(tmp_path / "v.npz", encoder_0_ffn__weight_0=np.full((24, 8), 1e6, np.float32))
    body = "i = Cast <to = 1> (half) u = MatMul (x, up_8x24) r = Relu (u) f = MatMul (r, i) y = Add (x, f)"
    with pytest.raises(EditError, match=r"'encoder.0.ffn/weight.0' cannot be stored as float16"):
        pruned(body, Refit(path), constants={"half": drawn(24, 8).astype(np.float16)})


def test_a_branch_that_the_block_has_not(tmp_path: Path) -> None:
    path = stored(tmp_path / "v.npz", encoder_0_ffn__weight_1=WEIGHT)
    with pytest.raises(RecipeError, match=r"weight.1' is for a branch that the block has not: it has 1"):
        answers(POST, Refit(path))


def test_an_attention_that_goes_has_no_output_to_refit(tmp_path: Path) -> None:
    path = stored(tmp_path / "v.npz", encoder_0_attention__weight_0=drawn(8, 8))
    assert text(pruned(POST, DropAttention("0"), Refit(path))) == text(pruned(POST, DropAttention("0")))
