"""A fused sum-and-norm that is left with a norm for nobody does the one that follows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.adapter import IrPass
from graphprune.passes.drop_ffn import DropFfn
from graphprune.surgery import sweep
from graphprune.surgery.norms import epsilon_of
from tests.graphs import written
from tests.passes.written import text
from tests.surgery.test_sums import run

LN = "com.microsoft.SkipLayerNormalization"
EPSILON = "epsilon=0.01"
RMS = "com.microsoft.SkipSimplifiedLayerNormalization"
LEFT = "f = Relu (x) unread, u0, u1, h = {fused} n = {norm} y = Add (n, h)"
DONE = "f = Relu (x) n, u0, u1, h = {fused} y = Add (n, h)"


@pytest.mark.parametrize(
    "fused, norm, expected",
    [
        (f"{RMS} (x, f, g_8)", "SimplifiedLayerNormalization <epsilon=1e-12> (h, k_8)", f"{RMS} (x, f, k_8)"),
        (
            f"{RMS} <epsilon=0.01> (x, f, g_8, bias_8)",
            "SimplifiedLayerNormalization <axis=-1, epsilon=0.01> (h, k_8)",
            f"{RMS} <epsilon=0.01> (x, f, k_8, bias_8)",
        ),
        (
            f"{LN} <epsilon=0.01> (x, f, g_8, b_8, bias_8)",
            "LayerNormalization <epsilon=0.01> (h, k_8, c_8)",
            f"{LN} <epsilon=0.01> (x, f, k_8, c_8, bias_8)",
        ),
        (
            f"{LN} <epsilon=0.01> (x, f, g_8)",
            "LayerNormalization <epsilon=0.01> (h, k_8, c_8)",
            f"{LN} <epsilon=0.01> (x, f, k_8, c_8)",
        ),
    ],
)
def test_it_takes_the_norm_over(fused: str, norm: str, expected: str) -> None:
    model = written(LEFT.format(fused=fused, norm=norm))
    before = run(model)
    sweep(model)
    assert text(model) == text(written(DONE.format(fused=expected)))
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-5)


def test_beta_goes_where_the_norm_has_none() -> None:
    fused, norm = (
        f"{LN} <epsilon=0.01> (x, f, g_8, b_8, bias_8)",
        "LayerNormalization <epsilon=0.01> (h, k_8)",
    )
    model = written(LEFT.format(fused=fused, norm=norm))
    before = run(model)
    sweep(model)
    assert "b_8" not in model.graph.initializers
    assert [node.op_type for node in model.graph] == ["Relu", "SkipLayerNormalization", "Add"]
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "norm, why",
    [
        ("SimplifiedLayerNormalization <epsilon=0.02> (h, k_8)", "another ε"),
        ("SimplifiedLayerNormalization <epsilon=0.01> (f, k_8)", "not of its sum"),
        ("SimplifiedLayerNormalization <axis=1, epsilon=0.01> (h, k_8)", "another axis"),
        ("LayerNormalization <epsilon=0.01> (h, k_8)", "another norm"),
        ("SimplifiedLayerNormalization <epsilon=0.01> (h, unread)", "its own norm is read"),
        ("SimplifiedLayerNormalization <epsilon=0.01> (h, late)", "weights that come later"),
    ],
)
def test_it_stays_as_it_is(norm: str, why: str) -> None:
    body = LEFT.format(fused=f"{RMS} <epsilon=0.01> (x, f, g_8)", norm=f"{norm}")
    model = written(body.replace("n =", "late = Abs (f) n =") if "late" in norm else body)
    before = text(model)
    sweep(model)
    assert text(model) == before, why


def test_epsilon_is_the_runtimes_own_where_none_is_given() -> None:
    small = (1e-4 * np.sign(np.random.default_rng(0).normal(size=(1, 1, 8)))).astype(np.float32)
    for body in (f"y = {RMS} (x, x, g_8)", f"y = {LN} (x, x, g_8)", "y = LayerNormalization (x, g_8)"):
        model = written(body)
        given = written(body)
        for one in given.graph:
            one.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon_of(one))
        np.testing.assert_allclose(run(model, small), run(given, small), rtol=1e-6)


def pre_norm(*blocks: int) -> ir.Model:
    """FFNs with these weights one after another, fused as ONNX Runtime and its builders do it."""
    lines = [f"n0 = SimplifiedLayerNormalization <{EPSILON}, axis=-1, stash_type=1> (x, g{blocks[0]}_8)"]
    stream = "x"
    for place, (block, following) in enumerate(zip(blocks, [*blocks[1:], 3], strict=True)):
        normed = f"n{place + 1}" if following < 3 else "y"
        norm = f"{RMS} <{EPSILON}> ({stream}, f{place}, g{following}_8)"
        lines += [
            f"a{place} = MatMul (n{place}, up{block}_8x24) r{place} = Relu (a{place})",
            f"f{place} = MatMul (r{place}, down{block}_24x8)",
            f"{normed}, u{place}, v{place}, h{place} = {norm}",
        ]
        stream = f"h{place}"
    return written("\n".join(lines))


@pytest.mark.parametrize("index", range(3))
def test_a_dropped_block_leaves_the_graph_that_was_written_without_it(index: int) -> None:
    model = pre_norm(0, 1, 2)
    IrPass(DropFfn(blocks=(index,)))(model)
    assert text(model) == text(pre_norm(*[block for block in range(3) if block != index]))
