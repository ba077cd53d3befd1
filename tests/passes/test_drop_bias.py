from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_bias import DropBias
from tests.graphs import attention, ffn, written
from tests.passes.written import answers, pruned, text

FFN = """
n = LayerNormalization (x, gamma_8, beta_8)
u0 = MatMul (n, up_8x24) u = Add (bu_24, u0) r = Relu (u)
d0 = MatMul (r, down_24x8) d = Add (d0, bd_8)
y = Add (x, d)
"""
PACKED = """
p0 = MatMul (x, qkv_8x24) p = Add (p0, b_24)
q, k, v = Split <axis = -1> (p, thirds)
t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) w = Softmax <axis = -1> (s)
c = MatMul (w, v) o = MatMul (c, o_8x8) y = Add (x, o)
"""
THIRDS = {"thirds": np.int64([8, 8, 8])}


def test_adds_go() -> None:
    after = """
    n = LayerNormalization (x, gamma_8, beta_8)
    u = MatMul (n, up_8x24) r = Relu (u) d = MatMul (r, down_24x8) y = Add (x, d)
    """
    model = pruned(FFN, DropBias())
    assert text(model) == text(written(after))
    assert {"bu_24", "bd_8"}.isdisjoint(model.graph.initializers)


@pytest.mark.parametrize(("role", "gone"), [("up", "bu_24"), ("down", "bd_8")])
def test_by_role(role: str, gone: str) -> None:
    left = {"gamma_8", "beta_8", "up_8x24", "down_24x8", "bu_24", "bd_8"} - {gone}
    assert set(pruned(FFN, DropBias(roles=(role,))).graph.initializers) == left  # type: ignore[arg-type]


def test_beta_of_a_norm() -> None:
    assert text(pruned(FFN, DropBias(roles=("norm",)))) == text(written(FFN.replace(", beta_8", "")))


def test_beta_of_a_norm_in_parts() -> None:
    body = """
    m = ReduceMean <axes = [-1]> (x) c = Sub (x, m) s = Mul (c, c) v = ReduceMean <axes = [-1]> (s)
    e = Add (v, tiny) d = Sqrt (e) i = Div (c, d) g = Mul (i, gamma_8) n = Add (g, beta_8)
    """ + ffn("n", "f") + "y = Add (x, f)"  # fmt: skip
    after = body.replace("g = Mul", "n = Mul").replace("n = Add (g, beta_8)", "")
    assert text(pruned(body, DropBias(roles=("norm",)))) == text(written(after))


def test_operands_of_fused_ops() -> None:
    body = f"""
    g = com.microsoft.BiasGelu (u, bu_24) d = MatMul (g, down_24x8)
    n, a0, a1, h = com.microsoft.SkipLayerNormalization (x, d, gamma_8, beta_8, bd_8)
    {ffn("n", "f")} y = Add (h, f)
    """
    body = "u = MatMul (x, up_8x24)" + body
    after = body.replace("BiasGelu (u, bu_24)", "Gelu (u)").replace(", bd_8", "")
    assert text(pruned(body, DropBias("0"))) == text(written(after))


def test_the_bias_of_a_gemm() -> None:
    options = {"inputs": "float[batch, 8] x", "outputs": "float[batch, 8] y"}
    body = "u = Gemm (x, up_8x24, bu_24) r = Relu (u) d = Gemm (r, down_24x8, bd_8) y = Add (x, d)"
    after = body.replace(", bu_24", "").replace(", bd_8", "")
    assert text(pruned(body, DropBias(), **options)) == text(written(after, **options))


def test_a_part_of_a_packed_bias_becomes_zero() -> None:
    model = pruned(PACKED, DropBias(roles=("k", "v")), constants=THIRDS)
    before = _array(written(PACKED, constants=THIRDS), "b_24")
    after = _array(model, next(name for name in model.graph.initializers if name.startswith("b_24")))
    np.testing.assert_array_equal(after, np.where(np.arange(24) < 8, before, 0))


def test_all_parts_of_a_packed_bias_go() -> None:
    after = PACKED.replace("p0 = MatMul", "p = MatMul").replace("p = Add (p0, b_24)", "")
    model = pruned(PACKED, DropBias(roles=("q", "k", "v")), constants=THIRDS)
    assert text(model) == text(written(after, constants=THIRDS))


def test_a_bias_that_other_layers_share_stays_for_them() -> None:
    body = PACKED.replace("y = Add", "h = Add") + """
    z0 = MatMul (h, z_8x24) z = Add (z0, b_24) e = Relu (z) f = MatMul (e, f_24x8) y = Add (h, f)
    """  # fmt: skip
    model = pruned(body, DropBias("encoder.0.attention", roles=("q",)), constants=THIRDS)
    np.testing.assert_array_equal(
        _array(model, "b_24"), _array(written(body, constants=THIRDS), "b_24"), strict=True
    )


def test_no_bias() -> None:
    body = f"{attention('x', 'a')} h = Add (x, a) {ffn('h', 'f')} y = Add (h, f)"
    assert answers(body, DropBias(roles=("q", "up"))) == {
        "encoder.0.attention": "(it has no bias of q, up)",
        "encoder.0.ffn": "(it has no bias of q, up)",
    }


def test_what_it_says() -> None:
    assert answers(FFN, DropBias(roles=("up", "norm"))) == {
        "encoder.0.ffn": "drop the bias of up, pre-norm β"
    }


def test_no_such_block() -> None:
    with pytest.raises(SelectionError, match="layer 4 does not exist"):
        answers(FFN, DropBias("4"))


def _array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
