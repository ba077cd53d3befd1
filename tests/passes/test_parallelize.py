from __future__ import annotations

import pytest

from graphprune.errors import EditError, SelectionError
from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.parallelize import Parallelize
from graphprune.passes.reorder_layers import ReorderLayers
from tests.graphs import attention, ffn, norm, written
from tests.passes.test_drop_layers import THREE, layer, post_layer
from tests.passes.written import answers, pruned, text

# Layers q and r side by side: both attentions read p, both FFNs the stream behind these.
PAIR = f"""
{layer("x", "p")}
{norm("p", "qm")} {attention("qm", "qa")} qh = Add (p, qa)
{norm("p", "rm")} {attention("rm", "ra")} rh = Add (qh, ra)
{norm("rh", "qn")} {ffn("qn", "qf")} q = Add (rh, qf)
{norm("rh", "rn")} {ffn("rn", "rf")} r = Add (q, rf)
{norm("r", "y")}
"""
BLOCKS = f"""
{layer("x", "p")}
{norm("p", "qm")} {attention("qm", "qa")} qh = Add (p, qa)
{norm("p", "qn")} {ffn("qn", "qf")} q = Add (qh, qf)
{layer("q", "r")} {norm("r", "y")}
"""
SKIP = "com.microsoft.SkipLayerNormalization <epsilon = 0.01>"


def same(left: list[str], right: list[str]) -> None:
    """The same nodes over the same values, in whatever order."""

    def resolved(lines: list[str]) -> set[str]:
        made: dict[str, str] = {}
        for line in lines:
            outs, _, rest = line.partition(" = ")
            for name, expression in sorted(made.items(), key=lambda item: -len(item[0])):
                rest = rest.replace(f"{name},", f"[{hash(expression)}],").replace(
                    f"{name})", f"[{hash(expression)}])"
                )
            for index, out in enumerate(outs.split(", ")):
                made[out] = f"{index} {rest}"
        return set(made.values())

    assert resolved(left) == resolved(right)


def test_layers_run_in_pairs() -> None:
    same(text(pruned(THREE, Parallelize("1-2"))), text(written(PAIR)))


def test_blocks_of_a_layer_read_one_value() -> None:
    same(text(pruned(THREE, Parallelize("1", what="blocks"))), text(written(BLOCKS)))


def test_casts_between_blocks_stay() -> None:
    body = f"""
    {norm("x", "m")} {attention("m", "a")} h = Add (x, a) c = Cast <to = 1> (h)
    {norm("c", "n")} {ffn("n", "f")} y = Add (c, f)
    """
    after = f"""
    {norm("x", "m")} {attention("m", "a")} h = Add (x, a) c = Cast <to = 1> (h) d = Cast <to = 1> (x)
    {norm("d", "n")} {ffn("n", "f")} y = Add (c, f)
    """
    same(text(pruned(body, Parallelize("0", what="blocks"))), text(written(after)))


def test_fused_joins_are_taken_apart() -> None:
    body = f"""
    {norm("x", "m")} {attention("m", "a")} n, u0, u1, h = {SKIP} (x, a, g_8, b_8, bias_8)
    {ffn("n", "f")} y = Add (h, f)
    """
    after = f"""
    {norm("x", "m")} {attention("m", "a")} o = Add (a, bias_8) h = Add (x, o)
    n = LayerNormalization <axis = -1, epsilon = 0.01> (x, g_8, b_8) {ffn("n", "f")} y = Add (h, f)
    """
    same(text(pruned(body, Parallelize("0", what="blocks"))), text(written(after)))


def test_what_goes_besides() -> None:
    both = pruned(THREE, Parallelize("1-2"), DropAttention("2"))
    left = f"""
    {layer("x", "p")} {norm("p", "qm")} {attention("qm", "qa")} qh = Add (p, qa)
    {norm("qh", "qn")} {ffn("qn", "qf")} q = Add (qh, qf) {norm("qh", "rn")} {ffn("rn", "rf")} r = Add (q, rf)
    {norm("r", "y")}
    """
    same(text(both), text(written(left)))
    same(text(pruned(THREE, DropAttention("2"), Parallelize("1-2"))), text(written(left)))
    alone = layer("x", "p") + layer("p", "q") + norm("q", "y")
    same(text(pruned(THREE, Parallelize("1-2"), DropLayers("2"))), text(written(alone)))


def test_layers_that_run_side_by_side_have_no_order() -> None:
    with pytest.raises(EditError, match="layers of 'encoder' run side by side already"):
        pruned(THREE, Parallelize("1-2"), ReorderLayers("2,1,0"))


def test_what_it_says() -> None:
    assert answers(THREE, Parallelize("all")) == {
        "encoder.0": "run it side by side with layer 1",
        "encoder.2": "(no other selected layer is left beside it)",
    }
    assert answers(THREE, Parallelize("2", what="blocks")) == {"encoder.2": "run its 2 blocks side by side"}


def test_post_norm_layers_are_declined() -> None:
    body = post_layer("x", "p") + post_layer("p", "y")
    reason = "(encoder.0.attention: the norm behind its join makes what the next block reads)"
    assert answers(body, Parallelize("all")) == {"encoder.0": reason}


def test_layers_have_to_follow_each_other() -> None:
    with pytest.raises(SelectionError, match="no two of the selected layers follow each other"):
        answers(THREE, Parallelize("0,2"))
