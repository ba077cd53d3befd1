from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.errors import RecipeError
from graphprune.passes.replace_linear import ReplaceLinear
from graphprune.recover import recover
from tests.graphs import attention, ffn, norm, written
from tests.passes.fitted import drawn, stored
from tests.passes.written import answers, pruned, text
from tests.surgery.test_sums import X, run

PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
POST = f"""
{attention("x", "a")} s = Add (x, a) {norm("s", "h")}
{ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
"""
PARALLEL = f"""
{norm("x", "n0")} {attention("n0", "a")} {ffn("n0", "f")} b = Add (a, f) h = Add (x, b)
{norm("h", "n1")} {attention("n1", "c")} {ffn("n1", "g")} d = Add (c, g) y = Add (h, d)
"""
FUSED = f"""
{ffn("x", "f")}
m, u0, u1, h = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (x, f, g_8, b_8, down_bias_8)
{ffn("m", "g")} y = Add (h, g)
"""
LINEAR, CONSTANT, A, B = drawn(8, 8), drawn(8, seed=1), drawn(8, 2), drawn(2, 8, seed=2)


@pytest.fixture
def values(tmp_path: Path) -> str:
    return stored(
        tmp_path / "v.npz",
        encoder_0_ffn__linear=LINEAR, encoder_0_ffn__constant=CONSTANT, encoder_0_attention__linear=LINEAR,
        encoder_0_parallel__linear_a=A, encoder_0_parallel__linear_b=B, encoder_0_parallel__constant=CONSTANT,
    )  # fmt: skip


def renamed(model: ir.Model, names: dict[str, str]) -> list[str]:
    """The text, with these names of weights in place of others."""
    lines = "\n".join(text(model))
    for old, new in names.items():
        lines = lines.replace(old, new)
    return lines.splitlines()


NAMES = {"encoder.0.ffn/linear": "linear_8x8", "encoder.0.ffn/constant": "constant_8",
         "encoder.0.attention/linear": "linear_8x8"}  # fmt: skip


def test_a_pre_norm_stays_and_is_read(values: str) -> None:
    model = pruned(PRE, ReplaceLinear("encoder.0.ffn", values))
    after = f"""
    {norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
    {norm("h", "n1")} l = MatMul (n1, linear_8x8) c = Add (l, constant_8) y = Add (h, c)
    """
    assert renamed(model, NAMES) == text(written(after))
    np.testing.assert_array_equal(
        model.graph.initializers["encoder.0.ffn/linear"].const_value.numpy(), LINEAR
    )
    assert {name for name in model.graph.initializers if name.startswith("f_")} == set()


def test_in_a_post_norm_model_the_stream_is_read(values: str) -> None:
    model = pruned(POST, ReplaceLinear("encoder.0.attention", values))
    after = f"""
    l = MatMul (x, linear_8x8) s = Add (x, l) {norm("s", "h")} {ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
    """
    assert renamed(model, NAMES) == text(written(after))


def test_two_factors_are_two_products_and_both_branches_go(values: str) -> None:
    model = pruned(PARALLEL, ReplaceLinear("encoder.0.parallel", values))
    names = {"encoder.0.parallel/linear.0": "one_8x2", "encoder.0.parallel/linear.1": "two_2x8",
             "encoder.0.parallel/constant": "constant_8"}  # fmt: skip
    after = f"""
    {norm("x", "n0")} k = MatMul (n0, one_8x2) l = MatMul (k, two_2x8) e = Add (l, constant_8) h = Add (x, e)
    {norm("h", "n1")} {attention("n1", "c")} {ffn("n1", "g")} d = Add (c, g) y = Add (h, d)
    """
    assert renamed(model, names) == text(written(after))


def test_a_fused_join_loses_its_bias_with_the_branch(values: str) -> None:
    model = pruned(FUSED, ReplaceLinear("encoder.0.ffn", values))
    after = f"""
    l = MatMul (x, linear_8x8) c = Add (l, constant_8) s = Add (x, c)
    m = LayerNormalization <axis = -1, epsilon = 0.00001> (s, g_8, b_8) {ffn("m", "g")} y = Add (s, g)
    """
    assert renamed(model, NAMES) == text(written(after))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_cuts_the_map_into_its_largest_singular_values(values: str, rank: int) -> None:
    model = pruned(PRE, ReplaceLinear("encoder.0.ffn", values, rank=rank))
    one, two = (model.graph.initializers[f"encoder.0.ffn/linear.{i}"].const_value.numpy() for i in range(2))
    assert one.shape == (8, rank) and two.shape == (rank, 8)
    left = np.linalg.svd(LINEAR.astype(np.float64), compute_uv=False)[rank:]
    np.testing.assert_allclose(np.linalg.norm(LINEAR - one @ two), np.linalg.norm(left), rtol=1e-5)


def test_a_rank_that_saves_nothing_leaves_the_map_whole(values: str) -> None:
    assert text(pruned(PRE, ReplaceLinear("encoder.0.ffn", values, rank=4))) == text(
        pruned(PRE, ReplaceLinear("encoder.0.ffn", values))
    )


def test_it_is_what_numpy_says(values: str) -> None:
    only = f"{norm('x', 'n')} {ffn('n', 'f')} y = Add (x, f)"
    normed = run(written(norm("x", "y").replace("y_", "n_")))
    expected = X + normed @ LINEAR + CONSTANT
    np.testing.assert_allclose(run(pruned(only, ReplaceLinear("all", values))), expected, atol=1e-5)


def test_half_precision_keeps_its_type(values: str) -> None:
    model = pruned(
        "a = MatMul (x, w0) act = Relu (a) f = MatMul (act, down) y = Add (x, f)",
        ReplaceLinear("encoder.0.ffn", values),
        constants={"w0": drawn(8, 24).astype(np.float16), "down": drawn(24, 8).astype(np.float16)},
        inputs="float16[batch, sequence, 8] x", outputs="float16[batch, sequence, 8] y",
    )  # fmt: skip
    assert {v.const_value.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_what_it_says(values: str) -> None:
    assert answers(PRE, ReplaceLinear("all", values)) == {
        "encoder.0.attention": "put a linear of 8×8 in its place",
        "encoder.0.ffn": "put a linear of 8×8 in its place",
    }
    assert answers(PRE, ReplaceLinear("all", values, rank=2))["encoder.0.ffn"] == (
        "put a linear of 8×2 · 2×8 in its place"
    )


def test_a_block_of_which_the_file_has_nothing_is_left(values: str, tmp_path: Path) -> None:
    path = stored(tmp_path / "other.npz", encoder_0_ffn__linear=LINEAR)
    said = answers(PRE, ReplaceLinear("all", path))
    assert said["encoder.0.attention"] == f"({path} holds no linear for it)"


def test_blocks_of_images_are_declined(tmp_path: Path) -> None:
    body = """
    up = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, up_8x8x3x3)
    act = Relu (up) down = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (act, down_8x8x3x3)
    y = Add (x, down)
    """
    size = "float[batch, 8, 6, 6]"
    (block,) = recover(written(body, inputs=f"{size} x", outputs=f"{size} y")).blocks
    path = tmp_path / "v.npz"
    np.savez(path, **{f"{block.id}/linear": LINEAR})
    (said,) = answers(body, ReplaceLinear("all", str(path)), inputs=f"{size} x", outputs=f"{size} y").values()
    assert said.startswith("(it is a block of kind conv"), said


FFN = "encoder.0.ffn"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({f"{FFN}/linear": drawn(8, 4)}, rf"'{FFN}/linear' has the shape \[8, 4\], and \[8, 8\]"),
        ({f"{FFN}/linear": np.full((8, 8), np.nan, np.float32)}, "holds 64 numbers that are not finite"),
        ({f"{FFN}/linear": np.ones((8, 8), np.int64)}, "is of type int64"),
        ({f"{FFN}/linear.a": A}, f"'{FFN}/linear.b' is missing"),
        ({f"{FFN}/linear.a": A, f"{FFN}/linear.b": drawn(3, 8)}, r"\[3, 8\], and \[2, 8\]"),
        ({f"{FFN}/linear": LINEAR, f"{FFN}/constant": drawn(4)}, r"constant' has the shape \[4\]"),
        ({"decoder.7.ffn/linear": LINEAR}, "for other blocks than the model's: for 'decoder.7.ffn'"),
    ],
)
def test_values_that_do_not_fit(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(RecipeError, match=f"bad.npz: .*{message}"):
        answers(PRE, ReplaceLinear("encoder.0.ffn", str(tmp_path / "bad.npz")))


def test_a_rank_is_not_negative(values: str) -> None:
    with pytest.raises(RecipeError, match="rank is -1"):
        ReplaceLinear("0", values, rank=-1)
