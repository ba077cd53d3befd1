from __future__ import annotations

import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_ffn import DropFfn
from tests.graphs import attention, ffn, norm, written
from tests.passes.written import answers, pruned, text

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
# The join and the norm after it in one node; its last input is the bias of the FFN's second linear.
FUSED = f"""
{ffn("x", "f")}
m, u0, u1, h = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (x, f, g_8, b_8, down_bias_8)
{ffn("m", "g")} y = Add (h, g)
"""
# Fused the other way round: the branch comes first.
SWAPPED = FUSED.replace("(x, f, g_8", "(f, x, g_8")


def test_the_norm_before_it_goes_too() -> None:
    after = f"""{norm("x", "n0")} {attention("n0", "a")} y = Add (x, a)"""
    model = pruned(PRE, DropFfn("0"))
    assert text(model) == text(written(after))
    assert set(model.graph.initializers) == {
        "n0_gamma_8", "n0_beta_8", "a_q_8x8", "a_k_8x8", "a_v_8x8", "a_o_8x8",
    }  # fmt: skip


def test_the_norm_after_it_stays() -> None:
    after = f"""{attention("x", "a")} s = Add (x, a) {norm("s", "h")} {norm("h", "y")}"""
    assert text(pruned(POST, DropFfn("0"))) == text(written(after))


def test_or_goes_if_asked() -> None:
    after = f"""{attention("x", "a")} s = Add (x, a) {norm("s", "h")}""".replace("h = ", "y = ")
    assert text(pruned(POST, DropFfn("0", post_norm="drop"))) == text(written(after))


def test_attention_beside_it_stays() -> None:
    after = f"""
    {norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
    {norm("h", "n1")} {attention("n1", "c")} {ffn("n1", "g")} d = Add (c, g) y = Add (h, d)
    """
    assert text(pruned(PARALLEL, DropFfn("0"))) == text(written(after))


@pytest.mark.parametrize("body", [FUSED, SWAPPED])
def test_a_fused_join_leaves_a_norm(body: str) -> None:
    after = f"""
    m = LayerNormalization <axis = -1, epsilon = 0.00001> (x, g_8, b_8) {ffn("m", "g")} y = Add (x, g)
    """
    assert text(pruned(body, DropFfn("0"))) == text(written(after))


def test_a_layer_without_ffn() -> None:
    with pytest.raises(SelectionError, match="ffn"):
        answers(f"{attention('x', 'a')} y = Add (x, a)", DropFfn("0"))


def test_what_it_says() -> None:
    assert answers(PRE, DropFfn("all")) == {"encoder.0.ffn": "drop the FFN: 5 nodes, 400 parameters"}


def test_a_block_that_changes_the_shape_is_left() -> None:
    body = f"""w = MatMul (x, w_8x8) {ffn("x", "f")} h = Add (w, f) {ffn("h", "g")} y = Add (h, g)"""
    (said,) = [said for target, said in answers(body, DropFfn("all")).items() if target.endswith("0.ffn")]
    assert said.startswith("(the shortcut into node"), said
