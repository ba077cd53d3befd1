from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import EditError, SelectionError
from graphprune.passes.reorder_layers import ReorderLayers
from tests.graphs import STREAM, attention, ffn, norm, written
from tests.passes.written import answers, pruned, text


def layer(stream: str, out: str) -> str:
    """A pre-norm FFN, its names after `out`."""
    return f"""{norm(stream, f"{out}n")} {ffn(f"{out}n", f"{out}f")} {out} = Add ({stream}, {out}f) """


THREE = layer("x", "p") + layer("p", "q") + layer("q", "r") + norm("r", "y")
TURNED = layer("x", "r") + layer("r", "p") + layer("p", "q") + norm("q", "y")


def test_layers_change_places() -> None:
    assert text(pruned(THREE, ReorderLayers("2,0,1"))) == text(written(TURNED))


def test_the_output_is_the_new_end() -> None:
    body = layer("x", "p") + layer("p", "y")
    after = layer("x", "q") + layer("q", "z")
    for old, new in (("qf", "yf"), ("qn", "yn"), ("zf", "pf"), ("zn", "pn"), ("z =", "y =")):
        after = after.replace(old, new)
    assert text(pruned(body, ReorderLayers("1,0"))) == text(written(after))


def test_fused_joins_are_taken_apart() -> None:
    def fused(streams: str, out: str) -> str:
        return f"""
        {out}m, {out}0, {out}1, {out} =
            com.microsoft.SkipLayerNormalization <epsilon = 0.00001> ({streams}, {out}_8)
        {ffn(f"{out}m", f"{out}f")}
        """

    def plain(stream: str, out: str) -> str:
        norm = f"{out}m = LayerNormalization <axis = -1, epsilon = 0.00001> ({stream}, {out}_8)"
        return f"""{norm} {ffn(f"{out}m", f"{out}f")} """

    start = f"{ffn('x', 'f')}"
    body = start + fused("x, f", "p") + fused("p, pf", "q") + "y = Add (q, qf)"
    after = plain("x", "q") + "s = Add (x, qf)" + plain("s", "p") + "t = Add (s, pf)"
    model = pruned(body, ReorderLayers("2,1,0"))
    assert text(model) == text(written(after + ffn("t", "f") + "y = Add (t, f)"))


def test_a_layer_whose_first_join_alone_is_fused_goes_whole() -> None:
    def layer(stream: str, out: str) -> str:
        return f"""
        {attention(stream, f"{out}a")}
        {out}m, {out}0, {out}1, {out}h =
            com.microsoft.SkipLayerNormalization <epsilon = 0.00001> ({stream}, {out}a, {out}_8)
        {ffn(f"{out}m", f"{out}f")} {out} = Add ({out}h, {out}f)
        """

    def plain(stream: str, out: str) -> str:
        return f"""
        {attention(stream, f"{out}a")} {out}h = Add ({stream}, {out}a)
        {out}m = LayerNormalization <axis = -1, epsilon = 0.00001> ({out}h, {out}_8)
        {ffn(f"{out}m", f"{out}f")} {out} = Add ({out}h, {out}f)
        """

    model = pruned(layer("x", "p") + layer("p", "q") + "y = Neg (q)", ReorderLayers("1,0"))
    assert text(model) == text(written(plain("x", "q") + plain("q", "p") + "y = Neg (p)"))


def test_what_it_says() -> None:
    assert answers(THREE, ReorderLayers("2,0,1")) == {"encoder": "run its layers in the order 2, 0, 1"}


def test_the_order_it_has_already() -> None:
    (said,) = answers(THREE, ReorderLayers("0,1,2")).values()
    assert said.startswith("(")


@pytest.mark.parametrize("order", ["0,1", "0,1,1", "0,1,3", "0,1,2,2", "a,b,c"])
def test_no_order_of_these_layers(order: str) -> None:
    with pytest.raises(SelectionError, match="is no order of the layers of 'encoder'"):
        answers(THREE, ReorderLayers(order))


def test_no_such_stack() -> None:
    with pytest.raises(SelectionError, match="no stack is called 'decoder': the model has encoder"):
        answers(THREE, ReorderLayers("2,0,1", stack="decoder"))


def test_a_layer_that_reads_an_earlier_one_cannot_come_before_it() -> None:
    """As in T5, where the first layer's cache tells all of them how long the past is."""

    def cached(stream: str, out: str, past: str, present: str) -> str:
        return f"""
        {out}_q = MatMul ({stream}, {out}_q_8x8) {out}_n = MatMul ({stream}, {out}_n_8x8)
        {present} = Concat <axis = 1> ({past}, {out}_n) {out}_t = Transpose <perm = [0, 2, 1]> ({present})
        {out}_r = MatMul ({out}_q, {out}_t) {out}_s = Mul ({out}_r, length)
        {out}_p = Softmax <axis = -1> ({out}_s)
        {out}_c = MatMul ({out}_p, {present}) {out} = MatMul ({out}_c, {out}_o_8x8)
        """

    length = "shape = Shape (present0) first = Gather (shape, one_axis) length = Cast <to = 1> (first)"
    before, after = cached("x", "a", "past0", "present0").split("a_t =")
    body = f"""
    {before} {length} a_t = {after} h = Add (x, a) {cached("h", "b", "past1", "present1")} y = Add (h, b)
    """
    cache = "float[batch, past, 8]"
    with pytest.raises(EditError, match="cannot run in this order"):
        pruned(
            body, ReorderLayers("1,0"), inputs=f"{STREAM} x, {cache} past0, {cache} past1",
            outputs=f"{STREAM} y, {cache} present0, {cache} present1", constants={"one_axis": np.int64(1)},
        )  # fmt: skip


def test_a_last_layer_in_another_layout_stays_the_last() -> None:
    """As in SqueezeBERT: channels come first between layers, and last in the model's output."""

    def turned(stream: str, out: str) -> str:
        return f"""
        {out}t = Transpose <perm = [0, 2, 1]> ({stream}) {ffn(f"{out}t", f"{out}f")}
        {out}s = Add ({out}t, {out}f) {norm(f"{out}s", f"{out}l")}
        """

    back = "{0} = Transpose <perm = [0, 2, 1]> ({0}l)"
    body = turned("c", "p") + back.format("p") + turned("p", "q") + back.format("q") + turned("q", "r")
    body = "c = Transpose <perm = [0, 2, 1]> (x)" + body.replace("rl = ", "y = ")
    with pytest.raises(EditError, match="layer 2 of 'encoder' puts out other axes first"):
        pruned(body, ReorderLayers("2,1,0"))
    pruned(body, ReorderLayers("1,0,2"))
