from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.errors import RecipeError
from graphprune.passes.drop_ffn import DropFfn
from graphprune.passes.narrow_ffn import NarrowFfn
from tests.graphs import attention, ffn, norm, written
from tests.passes.fitted import drawn
from tests.passes.written import answers, pruned, text
from tests.surgery.test_sums import X, run
from tools.zoo import Entry, families

KEPT = np.array([0, 3, 4, 11, 20])
ROWS = np.isin(np.arange(24), KEPT)
PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
GATED = """
g = MatMul (x, gate_8x24) s = Sigmoid (g) i = Mul (g, s) u = MatMul (x, up_8x24) m = Mul (i, u)
d = MatMul (m, f_down_24x8) y = Add (x, d)
"""
BIASED = """
u = MatMul (x, up_8x24) b = Add (u, bias_24) e = Erf (b) o = Add (e, one) m = Mul (b, o) r = Mul (m, half)
d = MatMul (r, f_down_24x8) z = Add (d, bias_8) y = Add (z, x)
"""
RESHAPED = """
i = Constant <value_ints = [0]> () s = Shape (x) c0 = Constant <value_int = 0> ()
c1 = Constant <value_int = 1> ()
s0 = Gather (s, c0) s1 = Gather (s, c1) r0 = Unsqueeze (s0, i) r1 = Unsqueeze (s1, i)
k = Constant <value_ints = [24]> () l = Concat <axis = 0> (r0, r1, k) q = Constant <value_ints = [-1, 8]> ()
x2 = Reshape (x, q) g = Gemm (x2, up_8x24, bias_24) g3 = Reshape (g, l) a = Tanh (g3)
t = Shape (a) t0 = Gather (t, c0) t1 = Gather (t, c1) t2 = Gather (t, c2) v2 = Unsqueeze (t2, i)
one_less = Constant <value_ints = [-1]> () w = Concat <axis = 0> (one_less, v2) a2 = Reshape (a, w)
d = Gemm (a2, f_down_24x8, bias_8) v0 = Unsqueeze (t0, i) v1 = Unsqueeze (t1, i)
e = Constant <value_ints = [8]> () p = Concat <axis = 0> (v0, v1, e) d3 = Reshape (d, p) y = Add (x, d3)
"""
MORE = {"c2": np.int64(2)}


def file(folder: Path, **arrays: np.ndarray) -> str:
    found = {f"encoder.0.ffn/{name}": array for name, array in arrays.items()}
    np.savez(folder / "v.npz", **{name.replace("__", "."): array for name, array in found.items()})
    return str(folder / "v.npz")


def zeroed(model: ir.Model) -> ir.Model:
    """The same with the rows of the neurons that go being 0."""
    value = model.graph.initializers["f_down_24x8"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * ROWS[:, None])
    return model


@pytest.mark.parametrize("body", [PRE, GATED, BIASED, RESHAPED], ids=["plain", "gated", "bias", "reshaped"])
def test_the_neurons_that_stay_compute_what_they_did(body: str, tmp_path: Path) -> None:
    model = pruned(body, NarrowFfn(file(tmp_path, neurons=KEPT)), constants=MORE)
    np.testing.assert_allclose(run(model, X), run(zeroed(written(body, constants=MORE)), X), atol=1e-6)
    shapes = [tuple(value.shape or ()) for value in model.graph.initializers.values()]
    assert (5, 8) in shapes and (8, 5) in shapes
    assert not any(24 in shape for shape in shapes)


def test_another_weight_of_the_last_linear(tmp_path: Path) -> None:
    weight = drawn(5, 8)
    model = pruned(PRE, NarrowFfn(file(tmp_path, neurons=KEPT, neurons__weight=weight)))
    other = written(PRE)
    whole = np.zeros((24, 8), np.float32)
    whole[KEPT] = weight
    other.graph.initializers["f_down_24x8"].const_value = ir.tensor(whole)
    np.testing.assert_allclose(run(model, X), run(other, X), atol=1e-6)


def test_weights_that_others_read_stay_theirs(tmp_path: Path) -> None:
    body = f"""
    {norm("x", "n1")} {ffn("n1", "f")} z = Add (x, f)
    {norm("z", "n2")} g_up = MatMul (n2, f_up_8x24) g_act = Relu (g_up) g = MatMul (g_act, f_down_24x8)
    y = Add (z, g)
    """
    model = pruned(body, NarrowFfn(file(tmp_path, neurons=KEPT), "0"))
    shapes = sorted(tuple(value.shape or ()) for value in model.graph.initializers.values() if value.shape)
    assert {(8, 5), (5, 8), (8, 24), (24, 8)} <= set(shapes)


def test_a_block_that_another_pass_drops(tmp_path: Path) -> None:
    values = file(tmp_path, neurons=KEPT)
    both = pruned(PRE, DropFfn("0"), NarrowFfn(values))
    assert text(both) == text(pruned(PRE, DropFfn("0")))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            PRE.replace("f_act = Relu (f_up)", "f_act = Softmax (f_up)"),
            "'' (Softmax) stands between its linears",
        ),
        (PRE + "other = Relu (f_act) stray = Add (other, other)", "is also read by node"),
    ],
)
def test_where_neurons_are_not_apart(body: str, reason: str, tmp_path: Path) -> None:
    (answer,) = answers(body, NarrowFfn(file(tmp_path, neurons=KEPT))).values()
    assert reason in answer, answer


@pytest.mark.parametrize(
    ("neurons", "reason"),
    [
        (np.array([0, 24]), "ascending numbers from 0 to 23"),
        (np.array([3, 1]), "ascending numbers from 0 to 23"),
        (np.array([1, 1]), "ascending numbers from 0 to 23"),
        (np.array([-1, 2]), "ascending numbers from 0 to 23"),
        (np.array([], np.int64), "ascending numbers from 0 to 23"),
        (np.array([0.0, 1.0]), "of type float64, and integers are needed"),
        (np.array([[0, 1]]), "has the shape"),
    ],
)
def test_values_that_do_not_fit(neurons: np.ndarray, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=reason):
        answers(PRE, NarrowFfn(file(tmp_path, neurons=neurons)))


def test_a_weight_of_another_number_of_neurons(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has the shape"):
        answers(PRE, NarrowFfn(file(tmp_path, neurons=KEPT, neurons__weight=drawn(6, 8))))


def test_what_is_counted_is_what_is_left(tmp_path: Path) -> None:
    path = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    bundle = gp.load(path)
    np.savez(tmp_path / "v.npz", **{"encoder.1.ffn/neurons": np.arange(14)})
    one = gp.prune(bundle, narrow_ffn=str(tmp_path / "v.npz"))
    again = gp.prune(one.bundle, drop_bias={"blocks": "0"}).plan.before
    assert one.after.parameters == again.parameters < one.plan.before.parameters
    sizes = dict.fromkeys(again.macs.names, 3)
    assert one.after.macs.at(**sizes) == again.macs.at(**sizes) < one.plan.before.macs.at(**sizes)
