"""Shape arithmetic outside of a block reads its sizes off values that stay."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_ffn import DropFfn
from tests.graphs import attention, ffn
from tests.passes.written import pruned

READ = """
s = Shape (VALUE) l = Gather (s, axis) f = Cast <to = 1> (l)
z = Mul (h, f) b = MatMul (z, w_8x8) r = Relu (b) d = MatMul (r, v_8x8) y = Add (h, d)
"""


def left(body: str, axis: int, **constants: object) -> list[str]:
    """The op types after the first layer's attention has gone; its weights must go."""
    model = pruned(body, DropAttention("0"), constants={"axis": np.int64(axis), **constants})  # type: ignore[dict-item]
    assert not [name for name in model.graph.initializers if name.startswith("a_")]
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("value", ["a_q", "a_t"])
def test_the_reader_of_a_length_reads_the_stream(value: str) -> None:
    axis = 2 if value == "a_t" else 1
    body = f"{attention('x', 'a')} h = Add (x, a)" + READ.replace("VALUE", value)
    kinds = left(body, axis)
    assert kinds[:2] == ["Shape", "Constant"] and "Softmax" not in kinds


def test_a_width_is_a_number() -> None:
    body = f"{attention('x', 'a')} h = Add (x, a)" + READ.replace("VALUE", "a_q")
    assert "Shape" not in left(body, -1)


def test_a_shape_of_one_axis() -> None:
    read = READ.replace("Shape (VALUE)", "Shape <start = 1, end = 2> (a_q)").replace(
        "l = Gather (s, axis)", ""
    )
    body = f"{attention('x', 'a')} h = Add (x, a)" + read.replace("Cast <to = 1> (l)", "Cast <to = 1> (s)")
    assert "Softmax" not in left(body, 1)


@pytest.mark.parametrize("heads", [[0, 0, 2, 4], [0, -1, 2, 4]])
def test_through_heads(heads: list[int]) -> None:
    apart = f"""
    {
        attention("x", "a").replace(
            "a_t = Transpose <perm = [0, 2, 1]> (a_k)",
            '''
    a_h = Reshape (a_k, heads) a_ht = Transpose <perm = [0, 2, 1, 3]> (a_h)
    a_b = Transpose <perm = [0, 2, 1, 3]> (a_ht) a_m = Reshape (a_b, merged)
    a_t = Transpose <perm = [0, 2, 1]> (a_m)''',
        )
    } h = Add (x, a)
    """
    body = apart + READ.replace("VALUE", "a_ht")
    assert "Softmax" not in left(body, 2, heads=np.int64(heads), merged=np.int64([0, 0, 8]))


@pytest.mark.parametrize("scale", ["scale", "c"])
def test_no_length_is_read_off_a_scale(scale: str) -> None:
    """A number that a value is multiplied with has no axes, be it stored or passed on to several blocks."""
    turned = "k0 = MatMul (x, a_k_8x8) k1, i = TopK <axis = 1> (k0, one_row) k2 = Mul (k1, SCALE)"
    body = f"{attention('x', 'a')} {turned.replace('SCALE', scale)} h = Add (x, a)"
    body = body.replace("a_k = MatMul (x, a_k_8x8)", "").replace("(a_k)", "(k2)")
    read = READ.replace("VALUE", "k2").replace("z = Mul (h, f)", "g = Mul (h, f) z = Mul (g, c)")
    body = f"c = Identity (scale) {body} {read}"
    constants = {"axis": np.int64(1), "one_row": np.int64([1]), "scale": np.float32(2)}
    model = pruned(body, DropAttention("0"), constants=constants)
    assert [node.inputs[0].name for node in model.graph if node.op_type == "Shape"] == ["k2"]  # type: ignore[union-attr]


def test_what_cannot_be_followed_stays() -> None:
    body = f"{ffn('x', 'g')} k, i = TopK <axis = 1> (g_act, one_row) h0 = Add (x, g)"
    body += f"{ffn('h0', 'e')} h = Add (h0, e)"
    constants = {"axis": np.int64(1), "one_row": np.int64([1])}
    model = pruned(body + READ.replace("VALUE", "k"), DropFfn("0"), constants=constants)
    assert "TopK" in [node.op_type for node in model.graph]
