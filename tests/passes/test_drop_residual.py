from __future__ import annotations

import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_residual import DropResidual
from tests.graphs import attention, ffn, norm, written
from tests.passes.written import answers, pruned, text

PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""


def test_the_branch_stays() -> None:
    after = PRE.replace("h = Add (x, a)", "").replace("h,", "a,").replace("(h", "(a")
    assert text(pruned(PRE, DropResidual("encoder.0.attention"))) == text(written(after))


def test_all_blocks_of_a_layer() -> None:
    after = f"""{norm("x", "n0")} {attention("n0", "a")} {norm("a", "n1")} {ffn("n1", "y")}"""
    renamed = after.replace("y_up_8x24", "f_up_8x24").replace("y_down_24x8", "f_down_24x8")
    assert text(pruned(PRE, DropResidual("0"))) == text(written(renamed))


def test_before_a_norm() -> None:
    body = f"""{attention("x", "a")} s = Add (x, a) {norm("s", "h")} {ffn("h", "f")} y = Add (h, f)"""
    after = f"""{attention("x", "a")} {norm("a", "h")} {ffn("h", "f")} y = Add (h, f)"""
    assert text(pruned(body, DropResidual("encoder.0.attention"))) == text(written(after))


@pytest.mark.parametrize("operands", ["x, f", "f, x"])
def test_a_fused_join_keeps_the_bias_of_the_branch(operands: str) -> None:
    body = f"""
    {ffn("x", "f")}
    m, u0, u1, h = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> ({operands}, g_8, b_8, down_8)
    {ffn("m", "g")} y = Add (h, g)
    """
    after = f"""
    {ffn("x", "f")} h = Add (f, down_8) m = LayerNormalization <axis = -1, epsilon = 0.00001> (h, g_8, b_8)
    {ffn("m", "g")} y = Add (h, g)
    """
    assert text(pruned(body, DropResidual("0"))) == text(written(after))


def test_a_block_with_a_projection_beside_it_is_left() -> None:
    body = f"""w = MatMul (x, w_8x8) {ffn("x", "f")} h = Add (w, f) {ffn("h", "g")} y = Add (h, g)"""
    said = answers(body, DropResidual("all"))
    assert said["encoder.0.ffn"].startswith("(the shortcut into node")


def test_no_such_block() -> None:
    with pytest.raises(SelectionError, match="conv"):
        answers(PRE, DropResidual("encoder.0.conv"))
