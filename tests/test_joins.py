"""What is a join, and what only looks like one."""

from __future__ import annotations

import pytest

from graphprune.recover import recover
from tests.graphs import STREAM, attention, ffn, norm, only_block, summary, written

IMAGE = "float[batch, 8, 16, 16]"
CONV = "Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


def image(body: str, **options: object) -> str:
    return summary(written(body, inputs=f"{IMAGE} x", outputs=f"{IMAGE} y", **options))


def test_pre_norm_blocks() -> None:
    body = norm("x", "n") + attention("n", "a") + "h = Add (x, a)\n"
    body += norm("h", "m") + ffn("m", "f") + "y = Add (f, h)"
    assert summary(written(body)) == "attention:pre ffn:pre"


def test_post_norm_blocks() -> None:
    body = attention("x", "a") + "h = Add (x, a)\n" + norm("h", "n") + ffn("n", "f") + "g = Add (f, n)\n"
    body += norm("g", "y")
    assert summary(written(body)) == "attention:post ffn:post"


@pytest.mark.parametrize(
    "join",
    ["y = Sum (x, f)", "s = Mul (f, half)\ny = Add (x, s)", "s = Mul (f, scale_8)\ny = Add (s, x)"],
    ids=["sum", "half-step", "layer-scale"],
)
def test_scaled_branches_and_sums(join: str) -> None:
    block = only_block(written(norm("x", "n") + ffn("n", "f") + join))
    assert (block.kind, block.placement, block.stream_in.name) == ("ffn", "pre", "x")
    assert block.stream_out.name == "y"


def test_half_step_blocks_of_a_conformer() -> None:
    def half(stream: str, out: str) -> str:
        return (
            norm(stream, f"{out}_n")
            + ffn(f"{out}_n", f"{out}_f")
            + (f"{out}_h = Mul ({out}_f, half)\n{out} = Add ({stream}, {out}_h)\n")
        )

    body = (
        half("x", "one_") + norm("one_", "n") + attention("n", "a") + "h = Add (one_, a)\n" + half("h", "y")
    )
    assert summary(written(body)) == "ffn:pre attention:pre ffn:pre"


PARALLEL = norm("x", "n") + attention("n", "a") + ffn("n", "f")


@pytest.mark.parametrize(
    "joins",
    [
        "s = Add (a, f)\ny = Add (x, s)",
        "s = Add (x, a)\ny = Add (s, f)",
        "s = Add (x, f)\ny = Add (a, s)",
        "y = Sum (x, a, f)",
        "s = Add (x, a)\nq = QuantizeLinear (s, one)\nd = DequantizeLinear (q, one)\ny = Add (d, f)",
    ],
    ids=["x+(a+f)", "(x+a)+f", "a+(x+f)", "sum", "quantized-between"],
)
def test_parallel_blocks(joins: str) -> None:
    block = only_block(written(PARALLEL + joins))
    assert (block.kind, block.placement) == ("parallel", "pre")
    assert sorted(branch.kind for branch in block.branches) == ["attention", "ffn"]
    assert sorted(v.name or "" for b in block.branches for v in b.terms) == ["a", "f"]
    assert len(block.sums) == (1 if joins.startswith("y = Sum") else 2)


def test_two_blocks_are_not_parallel() -> None:
    """The second branch reads what the first join puts out."""
    body = attention("x", "a") + "h = Add (x, a)\n" + ffn("h", "f") + "y = Add (h, f)"
    assert summary(written(body)) == "attention:none ffn:none"


def test_masks_and_position_biases_are_no_joins() -> None:
    body = """
    q = MatMul (x, q_8x8)
    k = MatMul (x, k_8x8)
    v = MatMul (x, v_8x8)
    t = Transpose <perm = [0, 2, 1]> (k)
    raw = MatMul (q, t)
    biased = Add (raw, bias)
    scores = Add (biased, mask)
    p = Softmax <axis = -1> (scores)
    c = MatMul (p, v)
    o = MatMul (c, o_8x8)
    y = Add (x, o)
    """
    inputs = f"{STREAM} x, float[batch, 1, sequence] mask, float[1, sequence, sequence] bias"
    assert summary(written(body, inputs=inputs)) == "attention:none"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "squeeze-and-excite gate: x + x·g",
            "p = GlobalAveragePool (x)\ng = Conv (p, g_8x8x1x1)\ns = Sigmoid (g)\n"
            "m = Mul (x, s)\ny = Add (x, m)",
        ),
        (
            "global response normalization: x + γ·(x·N(x)) + β",
            "g = ReduceL2 <axes = [2, 3]> (x)\nm = ReduceMean <axes = [1]> (g)\ne = Add (m, tiny)\n"
            "d = Div (g, e)\nn = Mul (x, d)\ns = Mul (n, gamma_1x8x1x1)\n"
            "b = Add (s, beta_1x8x1x1)\ny = Add (b, x)",
        ),
        (
            "feature pyramid: a lateral convolution and the upsampled level above it",
            f"a = {CONV} (x, a_8x8x3x3)\np = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)\n"
            "l = Conv (a, l_8x8x1x1)\nr = Conv (p, r_8x8x1x1)\n"
            "u = Resize <mode = \"nearest\"> (r, , sizes_4)\ny = Add (l, u)",
        ),
        (
            "dense connections: Concat, not Add",
            f"a = {CONV} (x, a_8x8x3x3)\nc = Concat <axis = 1> (x, a)\nb = {CONV} (c, b_8x16x3x3)\n"
            "d = Concat <axis = 1> (c, b)\ny = Conv (d, y_8x24x1x1)",
        ),
        ("a sum with itself", "y = Add (x, x)"),
        (
            "two images side by side",
            f"a = {CONV} (x, a_8x8x3x3)\nb = Relu (x)\nc = Add (a, beta_1x8x1x1)\ny = Max (b, c)",
        ),
    ],
)  # fmt: skip
def test_false_joins(name: str, body: str) -> None:
    found = summary(written(body, inputs=f"{IMAGE} x", outputs=f"{IMAGE} y", opset=13))
    assert [b for b in found.split() if not b.endswith("!")] == [], name


def test_gates_of_an_ffn_are_no_joins() -> None:
    body = """
    g = MatMul (x, g_8x24)
    u = MatMul (x, u_8x24)
    s = Sigmoid (g)
    i = Mul (g, s)
    z = Mul (i, u)
    d = MatMul (z, d_24x8)
    y = Add (x, d)
    """
    block = only_block(written(body))
    assert (block.kind, block.branches[0].gated) == ("ffn", True)


def test_a_long_skip_is_no_block() -> None:
    """U-Net adds what went in to what came out: the blocks within are the blocks."""
    body = ffn("x", "a") + "h = Add (x, a)\n" + ffn("h", "b") + "i = Add (h, b)\n"
    body += "p = MatMul (i, p_8x8)\ny = Add (x, p)"
    architecture = recover(written(body))
    assert [block.stream_out.name for block in architecture.blocks] == ["h", "i"]
    (declined,) = architecture.declined
    assert "long skip around 2 blocks" in declined.reason
    assert [node.outputs[0].name for node in declined.nodes] == ["y"]


def test_a_residual_inside_a_branch_belongs_to_it() -> None:
    body = (
        "u = MatMul (x, u_8x8)\nf = MatMul (u, f_8x8)\ns = Add (u, f)\nd = MatMul (s, d_8x8)\ny = Add (x, d)"
    )
    assert [block.stream_out.name for block in recover(written(body)).blocks] == ["y"]


def test_a_branch_that_is_read_elsewhere_is_declined() -> None:
    body = "[up] u = MatMul (x, u_8x24)\nr = Relu (u)\nd = MatMul (r, d_24x8)\n[add] y = Add (x, d)\n"
    body += "[spy] z = ReduceSum <keepdims = 0> (r)"
    (declined,) = recover(written(body, outputs=f"{STREAM} y, float z")).declined
    assert "'add'" in declined.reason and "'spy'" in declined.reason


def test_a_softmax_that_pools_is_no_attention() -> None:
    body = """
    s = MatMul (x, s_8x1)
    p = Softmax <axis = 1> (s)
    w = Mul (x, p)
    u = MatMul (w, u_8x8)
    y = Add (x, u)
    """
    assert summary(written(body)) == "ffn:none"


def test_a_projection_shortcut_is_listed_and_not_droppable() -> None:
    body = f"""
    a = {CONV} (x, a_8x8x3x3)
    r = Relu (a)
    b = {CONV} (r, b_8x8x3x3)
    p = Conv (x, p_8x8x1x1)
    [join] s = Add (b, p)
    y = Relu (s)
    """
    block = only_block(written(body, inputs=f"{IMAGE} x", outputs=f"{IMAGE} y"))
    assert (block.kind, block.droppable) == ("conv", False)
    assert "'join'" in block.reason and "projection" in block.reason


def test_a_stream_may_start_at_an_input_or_be_cut_to_its_last_token() -> None:
    cut = "t = Slice (x, from, to, axis)\n"
    body = cut + norm("x", "n") + attention("n", "a") + "b = Slice (a, from, to, axis)\ny = Add (t, b)"
    constants = {"from": [-1], "to": [9999], "axis": [1]}
    assert summary(written(body, constants=constants)) == "attention:pre!".removesuffix("!")


def test_weights_as_graph_inputs() -> None:
    inputs = f"{STREAM} x, float[8, 24] up, float[24, 8] down, float[24] bias"
    body = "u = MatMul (x, up)\nb = Add (u, bias)\nr = Relu (b)\nd = MatMul (r, down)\ny = Add (x, d)"
    block = only_block(written(body, inputs=inputs))
    assert block.kind == "ffn"
    assert [bias.value.name for bias in block.branches[0].biases] == ["bias"]


def test_weights_behind_transposes_and_constants() -> None:
    body = """
    c = Constant <value = float[8, 24] {WEIGHTS}> ()
    u = MatMul (x, c)
    r = Relu (u)
    t = Transpose (w_8x24)
    d = MatMul (r, t)
    y = Add (x, d)
    """.replace("WEIGHTS", ", ".join(["0.1"] * 192))
    block = only_block(written(body))
    assert (block.kind, block.parameters) == ("ffn", 384)


def test_nodes_out_of_order_are_read_all_the_same() -> None:
    model = written(norm("x", "n") + ffn("n", "f") + "y = Add (x, f)")
    nodes = list(model.graph)
    model.graph.remove(nodes[-1])
    model.graph.insert_before(nodes[0], nodes[-1])
    assert summary(model) == "ffn:pre"


def test_dead_nodes_do_not_read() -> None:
    """Optimizers leave nodes behind whose results nobody uses."""
    assert (
        summary(written(ffn("x", "f") + "dead = Mul (f_act, half)\ngone = Neg (dead)\ny = Add (x, f)"))
        == "ffn:none"
    )
