from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import SelectionError
from graphprune.passes.drop_activation import DropActivation
from graphprune.passes.drop_bias import DropBias
from tests.graphs import attention, ffn, written
from tests.passes.written import answers, pruned, text

END = "d = MatMul (a, down_24x8) y = Add (x, d)"
LINEAR = "a = MatMul (x, up_8x24)" + END


@pytest.mark.parametrize(
    "activation",
    [
        "a = Relu (u)",
        "a = Gelu (u)",
        "a = com.microsoft.QuickGelu (u)",
        "s = Sigmoid (u) a = Mul (u, s)",
        "v = Div (u, root2) e = Erf (v) o = Add (e, one) m = Mul (u, o) a = Mul (m, half)",
    ],
)
def test_a_linear_ffn(activation: str) -> None:
    body = f"u = MatMul (x, up_8x24) {activation} {END}"
    assert text(pruned(body, DropActivation("0"), opset=20)) == text(written(LINEAR, opset=20))


def test_a_bilinear_ffn() -> None:
    body = f"""
    g = MatMul (x, gate_8x24) u = MatMul (x, up_8x24)
    s = Sigmoid (g) w = Mul (g, s) a = Mul (w, u) {END}
    """
    after = f"g = MatMul (x, gate_8x24) u = MatMul (x, up_8x24) a = Mul (g, u) {END}"
    assert answers(body, DropActivation("0")) == {"encoder.0.ffn": "drop Sigmoid·Mul: a bilinear FFN"}
    assert text(pruned(body, DropActivation("0"))) == text(written(after))


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_the_bias_in_a_fused_activation_stays(op: str) -> None:
    body = f"u = MatMul (x, up_8x24) a = com.microsoft.{op} (u, bias_24) {END}"
    after = f"u = MatMul (x, up_8x24) a = Add (u, bias_24) {END}"
    assert text(pruned(body, DropActivation("0"))) == text(written(after))


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
@pytest.mark.parametrize("bias_first", [True, False])
def test_unless_a_second_pass_takes_it(op: str, bias_first: bool) -> None:
    body = f"u = MatMul (x, up_8x24) a = com.microsoft.{op} (u, bias_24) {END}"
    passes = [DropBias("0"), DropActivation("0")]
    model = pruned(body, *(passes if bias_first else reversed(passes)))
    assert text(model) == text(written(LINEAR))


def test_a_change_of_layout_before_it_stays() -> None:
    body = f"""
    f = Reshape (x, rows) w = MatMul (f, up_8x24) u = Reshape (w, tokens) a = Relu (u) {END}
    """
    constants = {"rows": np.int64([-1, 8]), "tokens": np.int64([0, -1, 24])}
    options = {
        "inputs": "float[1, sequence, 8] x",
        "outputs": "float[1, sequence, 8] y",
        "constants": constants,
    }
    after = body.replace("u = Reshape", "a = Reshape").replace("a = Relu (u)", "")
    options["constants"] = constants | {"tokens": np.int64([1, -1, 24])}
    assert text(pruned(body, DropActivation("0"), **options)) == text(written(after, **options))


def test_an_ffn_without_one() -> None:
    assert answers(LINEAR, DropActivation("0")) == {
        "encoder.0.ffn": "(no activation of its own was found between its linears)"
    }


def test_attention_has_none() -> None:
    body = f"{attention('x', 'a')} h = Add (x, a) {ffn('h', 'f')} y = Add (h, f)"
    assert [*answers(body, DropActivation("0"))] == ["encoder.0.ffn"]
    with pytest.raises(SelectionError, match="attention"):
        answers(body, DropActivation("encoder.0.attention"))
