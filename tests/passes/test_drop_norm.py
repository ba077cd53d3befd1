from __future__ import annotations

import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_ffn import DropFfn
from graphprune.passes.drop_norm import DropNorm
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
SANDWICH = f"""
{norm("x", "n")} {ffn("n", "f")} {norm("f", "m")} h = Add (x, m)
{norm("h", "o")} {ffn("o", "g")} {norm("g", "p")} y = Add (h, p)
"""
PLAIN = f"""{attention("x", "a")} h = Add (x, a) {ffn("h", "f")} y = Add (h, f)"""


def test_before_a_block() -> None:
    after = f"""{attention("x", "a")} h = Add (x, a) {norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)"""
    model = pruned(PRE, DropNorm("encoder.0.attention"))
    assert text(model) == text(written(after))
    assert {"n0_gamma_8", "n0_beta_8"}.isdisjoint(model.graph.initializers)


def test_after_a_block() -> None:
    assert text(pruned(POST, DropNorm("0"))) == text(written(PLAIN))


def test_after_a_block_that_another_pass_drops() -> None:
    found = pruned(POST, DropFfn("0"), DropNorm("encoder.0.ffn"))
    after = f"""{attention("x", "a")} s = Add (x, a) {norm("s", "h")} y = Identity (h)"""
    expected = written(after)
    assert [n.op_type for n in found.graph] == [n.op_type for n in expected.graph if n.op_type != "Identity"]


@pytest.mark.parametrize(("which", "stays"), [("pre", "post"), ("post", "pre"), ("block", "")])
def test_on_either_side(which: str, stays: str) -> None:
    left = norm("x", "n") if stays == "pre" else ""
    left += ffn("n" if stays == "pre" else "x", "f") + (norm("f", "m") if stays == "post" else "")
    left += f"h = Add (x, {'m' if stays == 'post' else 'f'})"
    after = f"""{left} {norm("h", "o")} {ffn("o", "g")} {norm("g", "p")} y = Add (h, p)"""
    assert text(pruned(SANDWICH, DropNorm("0", which=which))) == text(written(after))  # type: ignore[arg-type]


def test_in_parts() -> None:
    body = """
    m = ReduceMean <axes = [-1]> (x) c = Sub (x, m) s = Mul (c, c) v = ReduceMean <axes = [-1]> (s)
    e = Add (v, tiny) d = Sqrt (e) i = Div (c, d) g = Mul (i, gamma_8) n = Add (g, beta_8)
    """
    end = "y = Add (x, f)"
    assert text(pruned(body + ffn("n", "f") + end, DropNorm("0"))) == text(written(ffn("x", "f") + end))


def test_fused_with_a_join() -> None:
    body = f"""
    {ffn("x", "f")} m, u0, u1, h = com.microsoft.SkipLayerNormalization (x, f, g_8, b_8, down_8)
    {ffn("m", "g")} y = Add (h, g)
    """
    after = f"""{ffn("x", "f")} b = Add (f, down_8) h = Add (x, b) {ffn("h", "g")} y = Add (h, g)"""
    assert text(pruned(body, DropNorm("1"))) == text(written(after))


def test_of_queries_and_keys() -> None:
    body = """
    q0 = MatMul (x, q_8x8) k0 = MatMul (x, k_8x8) v = MatMul (x, v_8x8)
    q = LayerNormalization (q0, gq_8) k = LayerNormalization (k0, gk_8)
    t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) p = Softmax <axis = -1> (s)
    c = MatMul (p, v) o = MatMul (c, o_8x8) y = Add (x, o)
    """
    after = """
    q = MatMul (x, q_8x8) k = MatMul (x, k_8x8) v = MatMul (x, v_8x8)
    t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) p = Softmax <axis = -1> (s)
    c = MatMul (p, v) o = MatMul (c, o_8x8) y = Add (x, o)
    """
    assert text(pruned(body, DropNorm("0", which="qk"))) == text(written(after))
    assert answers(body, DropNorm("0")) == {"encoder.0.attention": "(it has no such norm (block))"}


def test_a_block_without_norms() -> None:
    said = answers(PLAIN, DropNorm("all"))
    assert said == dict.fromkeys(["encoder.0.attention", "encoder.0.ffn"], "(it has no such norm (block))")


def test_fused_with_the_embeddings_it_is_left() -> None:
    inputs = "int32[batch, sequence] ids, int32[batch, sequence] types"
    body = f"""
    x, mask = com.microsoft.EmbedLayerNormalization (ids, types, words_11x8, places_7x8, types_2x8, g_8, b_8)
    {attention("x", "a")} s = Add (x, a) {norm("s", "h")} {ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
    """
    body = body.replace("types_2x8", "kinds_2x8")
    assert all("embeddings" not in said for said in answers(body, DropNorm("all"), inputs=inputs).values())
    model = pruned(body, DropNorm("all"), inputs=inputs)
    assert text(model)[0].startswith("%1, %2 = com.microsoft.EmbedLayerNormalization")


def test_no_such_layer() -> None:
    with pytest.raises(SelectionError, match="does not exist"):
        answers(PRE, DropNorm("7"))
