from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_attention import DropAttention
from tests.graphs import STREAM, attention, ffn, norm, written
from tests.passes.written import answers, pruned, text

PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
CACHE = "float[batch, past, 8]"


def cached(stream: str, out: str, past: str, present: str) -> str:
    """Attention over keys and values of the past and of now (one cache for both, for short)."""
    return f"""
    {out}_q = MatMul ({stream}, {out}_q_8x8)
    {out}_n = MatMul ({stream}, {out}_n_8x8)
    {present} = Concat <axis = 1> ({past}, {out}_n)
    {out}_t = Transpose <perm = [0, 2, 1]> ({present})
    {out}_scores = MatMul ({out}_q, {out}_t)
    {out}_p = Softmax <axis = -1> ({out}_scores)
    {out}_c = MatMul ({out}_p, {present})
    {out} = MatMul ({out}_c, {out}_o_8x8)
    """


def cross(stream: str, out: str) -> str:
    """Attention to the input `e`."""
    return (
        attention(stream, out)
        .replace(f"{out}_k = MatMul ({stream},", f"{out}_k = MatMul (e,")
        .replace(f"{out}_v = MatMul ({stream},", f"{out}_v = MatMul (e,")
    )


def test_the_norm_before_it_goes_too() -> None:
    after = f"""{norm("x", "n1")} {ffn("n1", "f")} y = Add (x, f)"""
    assert text(pruned(PRE, DropAttention("0"))) == text(written(after))


def test_its_cache_goes_and_the_others_move_up() -> None:
    names = {"inputs": f"{STREAM} x, {CACHE} past0, {CACHE} past1",
             "outputs": f"{STREAM} y, {CACHE} present0, {CACHE} present1"}  # fmt: skip
    before = f"""
    {cached("x", "a", "past0", "present0")} h = Add (x, a) {ffn("h", "f")} i = Add (h, f)
    {cached("i", "b", "past1", "present1")} j = Add (i, b) {ffn("j", "g")} y = Add (j, g)
    """
    after = f"""
    {ffn("x", "f")} i = Add (x, f)
    {cached("i", "b", "past0", "present0")} j = Add (i, b) {ffn("j", "g")} y = Add (j, g)
    """
    assert answers(before, DropAttention("0"), **names) == {
        "decoder.0.attention": "drop the attention: 9 nodes, 192 parameters; "
        "removes 2 cache inputs and outputs, renumbers the rest"
    }
    model = pruned(before, DropAttention("0"), **names)
    left = {"inputs": f"{STREAM} x, {CACHE} past0", "outputs": f"{STREAM} y, {CACHE} present0"}
    expected = written(after, **left)
    assert text(model) == text(expected)
    assert [v.name for v in model.graph.inputs] == [v.name for v in expected.graph.inputs]
    assert [v.name for v in model.graph.outputs] == [v.name for v in expected.graph.outputs]


def test_who_asks_a_cache_for_its_length_asks_another_one() -> None:
    names = {"inputs": f"{STREAM} x, {CACHE} past0, {CACHE} past1",
             "outputs": f"{STREAM} y, int64 length"}  # fmt: skip
    body = f"""
    shape = Shape (past0) length = Gather (shape, first)
    {cached("x", "a", "past0", "k0")} h = Add (x, a)
    {cached("h", "b", "past1", "k1")} y = Add (h, b)
    """
    model = pruned(body, DropAttention("0"), constants={"first": np.int64(1)}, **names)
    assert [v.name for v in model.graph.inputs] == ["x", "past0"]
    assert text(model)[0] == "%1 = Shape <> (past0)"


def test_self_and_cross() -> None:
    names = {"inputs": f"{STREAM} x, float[batch, source, 8] e"}
    begin, middle, end = attention("x", "a"), cross("h", "b"), ffn("i", "f")
    body = f"{begin} h = Add (x, a) {middle} i = Add (h, b) {end} y = Add (i, f)"
    without_self = f"{cross('x', 'b')} i = Add (x, b) {end} y = Add (i, f)"
    without_cross = f"{begin} i = Add (x, a) {end} y = Add (i, f)"
    assert text(pruned(body, DropAttention("0"), **names)) == text(written(without_self, **names))
    assert text(pruned(body, DropAttention("0", which="cross"), **names)) == text(
        written(without_cross, **names)
    )
    assert text(pruned(body, DropAttention("0", which="both"), **names)) == text(
        written(f"{ffn('x', 'f')} y = Add (x, f)", **names)
    )
    assert [*answers(body, DropAttention("0", which="both"), **names)] == [
        "decoder.0.attention", "decoder.0.cross_attention",
    ]  # fmt: skip


def test_there_is_no_cross_attention() -> None:
    with pytest.raises(SelectionError, match="cross_attention"):
        answers(PRE, DropAttention("0", which="cross"))


def test_attention_whose_probabilities_are_an_output_is_left() -> None:
    names = {"outputs": f"{STREAM} y, float[batch, sequence, sequence] a_p"}
    assert answers(PRE, DropAttention("0"), **names) == {
        "encoder.0.attention": "(its inside is a graph output: 'a_p')"
    }
