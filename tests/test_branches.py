"""The parts of a branch: roles of linears, where biases enter, and activations (checked by running them)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from graphprune.architecture import Branch
from graphprune.recover import recover
from tests.graphs import STREAM, attention, ffn, norm, only_block, proto, written

BERT_LIKE = """
q0 = MatMul (x, q_8x8)
q = Add (q0, bq_8)
k0 = MatMul (x, k_8x8)
k = Add (bk_8, k0)
v0 = MatMul (x, v_8x8)
v = Add (v0, bv_8)
qr = Reshape (q, heads)
qt = Transpose <perm = [0, 2, 1, 3]> (qr)
kr = Reshape (k, heads)
kt = Transpose <perm = [0, 2, 3, 1]> (kr)
vr = Reshape (v, heads)
vt = Transpose <perm = [0, 2, 1, 3]> (vr)
s0 = MatMul (qt, kt)
s1 = Div (s0, root2)
p = Softmax <axis = -1> (s1)
c0 = MatMul (p, vt)
c1 = Transpose <perm = [0, 2, 1, 3]> (c0)
c = Reshape (c1, flat)
o0 = MatMul (c, o_8x8)
o = Add (o0, bo_8)
y = Add (x, o)
"""
HEADS = {"heads": np.int64([0, 0, 2, 4]), "flat": np.int64([0, 0, 8])}


def roles(branch: Branch) -> dict[str, str]:
    """Role by the name of the weight."""
    return {str(linear.weights[0].name): linear.role for linear in branch.linears}


def biases(branch: Branch) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    return {(str(b.value.name), b.role): (b.start, b.stop) for b in branch.biases}


def branch_of(body: str, **options: object) -> Branch:
    (branch,) = only_block(written(body, **options)).branches
    for bias in branch.biases:
        assert bias.node.inputs[bias.index] is bias.value
    return branch


def test_separate_projections() -> None:
    branch = branch_of(BERT_LIKE, constants=HEADS)
    assert branch.kind == "attention"
    assert roles(branch) == {"q_8x8": "q", "k_8x8": "k", "v_8x8": "v", "o_8x8": "o"}
    assert biases(branch) == {(f"b{role}_8", role): (None, None) for role in "qkvo"}


def packed(cut: str) -> str:
    body = "m = MatMul (x, qkv_8x24)\nf = Add (m, b_24)\n" + cut
    body += "t = Transpose <perm = [0, 2, 1]> (k)\ns = MatMul (q, t)\np = Softmax <axis = -1> (s)\n"
    return body + "c = MatMul (p, v)\no = MatMul (c, o_8x8)\ny = Add (x, o)"


SLICES = "q = Slice (f, n0, n8, last)\nk = Slice (f, n8, n16, last)\nv = Slice (f, n16, end, last)\n"
AT = {"n0": [0], "n8": [8], "n16": [16], "end": [2**63 - 1], "sizes": [8, 8, 8]}


@pytest.mark.parametrize(
    "cut",
    [
        "q, k, v = Split <axis = -1> (f, sizes)\n",
        "q, k, v = Split <axis = 2> (f)\n",
        "r = Reshape (f, whole)\nq, k, v = Split <axis = -1> (r, sizes)\n",
        SLICES,
    ],
    ids=["split", "even split", "reshape and split", "slices"],
)
def test_packed_projections(cut: str) -> None:
    branch = branch_of(packed(cut), constants=AT | {"whole": [0, 0, 24]})
    assert roles(branch) == {"qkv_8x24": "qkv", "o_8x8": "o"}
    assert biases(branch) == {("b_24", "q"): (0, 8), ("b_24", "k"): (8, 16), ("b_24", "v"): (16, 24)}


def test_interleaved_packing_has_one_bias() -> None:
    """GPT-NeoX packs q, k and v head by head: no range of the bias is q's alone."""
    cut = "r = Reshape (f, heads)\nqh, kh, vh = Split <axis = -1> (r, quarters)\n"
    cut += "".join(f"{n} = Reshape ({n}h, flat)\n" for n in "qkv")
    branch = branch_of(packed(cut), constants=HEADS | {"heads": [0, 0, 2, 12], "quarters": [4, 4, 4]})
    assert biases(branch) == {("b_24", "qkv"): (None, None)}


def test_norms_of_queries_and_keys() -> None:
    body = norm("x", "n") + attention("n", "a").replace("a_scores = MatMul (a_q, a_t)", "")
    body = body.replace("a_t = Transpose <perm = [0, 2, 1]> (a_k)", norm("a_q", "qn") + norm("a_k", "kn") +
                        "a_t = Transpose <perm = [0, 2, 1]> (kn)\na_scores = MatMul (qn, a_t)")  # fmt: skip
    block = only_block(written(body + "y = Add (x, a)"))
    assert [(n.role, n.output.name) for n in block.norms] == [("pre", "n"), ("q", "qn"), ("k", "kn")]
    assert [n.role for n in block.branches[0].norms] == ["q", "k"]


def test_cross_attention_takes_keys_and_values_from_elsewhere() -> None:
    body = attention("x", "a").replace("MatMul (x, a_k_8x8)", "MatMul (z, a_k_8x8)")
    body = body.replace("MatMul (x, a_v_8x8)", "MatMul (z, a_v_8x8)") + "y = Add (x, a)"
    branch = branch_of(body, inputs=f"{STREAM} x, float[batch, encoded, 8] z")
    assert branch.kind == "cross_attention"
    assert roles(branch) == {"a_q_8x8": "q", "a_k_8x8": "k", "a_v_8x8": "v", "a_o_8x8": "o"}


def test_fused_attention_holds_its_projections() -> None:
    body = "a = com.microsoft.Attention <num_heads = 2> (x, qkv_8x24, b_24)\no = MatMul (a, o_8x8)\n"
    body += "y, , , s = com.microsoft.SkipLayerNormalization (x, o, gamma_8, beta_8, bo_8)"
    branch = branch_of(body, outputs=f"{STREAM} y, {STREAM} s")
    assert roles(branch) == {"qkv_8x24": "qkv", "o_8x8": "o"}
    packed_ranges = {("b_24", "q"): (0, 8), ("b_24", "k"): (8, 16), ("b_24", "v"): (16, 24)}
    assert biases(branch) == packed_ranges | {("bo_8", "o"): (None, None)}


def test_multi_head_attention_adds_its_biases_itself() -> None:
    body = "q = MatMul (x, q_8x8)\nk = MatMul (x, k_8x8)\nv = MatMul (x, v_8x8)\n"
    body += "a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b_24)\n"
    branch = branch_of(body + "o = MatMul (a, o_8x8)\ny = Add (x, o)")
    assert roles(branch) == {"q_8x8": "q", "k_8x8": "k", "v_8x8": "v", "o_8x8": "o"}
    assert biases(branch) == {("b_24", "q"): (0, 8), ("b_24", "k"): (8, 16), ("b_24", "v"): (16, 24)}


def test_gemm_and_fused_activation_biases() -> None:
    body = (
        "r = Reshape (x, rows)\nu = Gemm <transB = 1> (r, up_24x8, bu_24)\ng = com.microsoft.FastGelu (u)\n"
    )
    body += "d = Gemm (g, down_24x8, bd_8)\nf = Reshape (d, back)\ny = Add (x, f)"
    branch = branch_of(body, constants={"rows": [-1, 8], "back": [1, -1, 8]})
    assert biases(branch) == {("bu_24", "up"): (None, None), ("bd_8", "down"): (None, None)}
    fused = "u = MatMul (x, up_8x24)\ng = com.microsoft.BiasGelu (u, bu_24)\n"
    branch = branch_of(fused + "d = MatMul (g, down_24x8)\ny = Add (x, d)")
    assert biases(branch) == {("bu_24", "up"): (None, None)}
    (activation,) = branch.activations
    assert activation.bias is not None and activation.bias.name == "bu_24"


def test_int8_linears_keep_their_roles() -> None:
    """The integers of a dynamic quantization and their scale are one value."""

    def linear(stream: str, out: str, shape: str) -> str:
        return f"""
        {out}_i, {out}_s, {out}_z = DynamicQuantizeLinear ({stream})
        {out}_m = MatMulInteger ({out}_i, {out}_w{shape}, {out}_z, zero)
        {out}_f = Cast <to = 1> ({out}_m)
        {out}_r = Mul ({out}_s, half)
        {out} = Mul ({out}_f, {out}_r)
        """

    random = np.random.default_rng(0)
    weights = {
        f"{n}_w{r}x{c}": random.integers(-9, 9, (r, c), np.int8) for n, r, c in (("u", 8, 24), ("d", 24, 8))
    }
    body = (
        linear("x", "u", "8x24")
        + "b = Add (u, bu_24)\ng = Relu (b)\n"
        + linear("g", "d", "24x8")
        + "y = Add (x, d)"
    )
    block = only_block(written(body, constants=weights | {"zero": np.int8(0)}))
    (branch,) = block.branches
    assert roles(branch) == {"u_w8x24": "up", "d_w24x8": "down"}
    assert biases(branch) == {("bu_24", "up"): (None, None)}
    assert block.parameters == 2 * 8 * 24 + 24
    (activation,) = branch.activations
    assert (activation.input.name, activation.output.name) == ("b", "g")


def test_parallel_branches_have_their_own_parts() -> None:
    body = norm("x", "n") + attention("n", "a") + ffn("n", "f") + "s = Add (a, f)\ny = Add (x, s)"
    by_kind = {branch.kind: branch for branch in only_block(written(body)).branches}
    assert set(roles(by_kind["attention"]).values()) == {"q", "k", "v", "o"}
    assert set(roles(by_kind["ffn"]).values()) == {"up", "down"}
    assert [a.output.name for a in by_kind["ffn"].activations] == ["f_act"]


UP = "u0 = MatMul (x, up_8x24)\nu = Add (u0, bu_24)\n"
DOWN = "d = MatMul (g, down_24x8)\ny = Add (x, d)"
ERF = "e0 = Div (u, root2)\ne1 = Erf (e0)\ne2 = Add (e1, one)\ne3 = Mul (u, e2)\ng = Mul (e3, half)\n"
TANH = "c3 = Pow (u, three)\nc4 = Mul (c3, cubic)\nc5 = Add (u, c4)\nc6 = Mul (c5, slope)\nc7 = Tanh (c6)\n"
TANH += "c8 = Add (c7, one)\nc9 = Mul (u, half)\ng = Mul (c9, c8)\n"
NUMBERS = {"three": np.float32(3), "cubic": np.float32(0.044715), "slope": np.float32((2 / np.pi) ** 0.5)}


def erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf as function

    return np.asarray(function(x))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


ACTIVATIONS = {
    "relu": ("g = Relu (u)\n", lambda x: np.maximum(x, 0)),
    "gelu-erf": (ERF, lambda x: x * (1 + erf(x / 2**0.5)) / 2),
    "gelu-tanh": (TANH, lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))),
    "silu": ("s = Sigmoid (u)\ng = Mul (u, s)\n", silu),
    "squared relu": ("r = Relu (u)\ng = Mul (r, r)\n", lambda x: np.maximum(x, 0) ** 2),
}


def exposed(model: onnx.ModelProto, *names: str) -> list[np.ndarray]:
    """The values of these names on a random input."""
    for name in names:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(2).normal(0, 2, (2, 3, 8)).astype(np.float32)
    return session.run(list(names), {"x": x})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    text, function = ACTIVATIONS[name]
    model = proto(UP + text + DOWN, constants=NUMBERS)
    (branch,) = only_block(ir.from_proto(model)).branches
    (activation,) = branch.activations
    assert (activation.input.name, activation.output.name, branch.gated) == ("u", "g", False)
    before, after = exposed(model, "u", "g")
    np.testing.assert_allclose(after, function(before), atol=1e-5)
    made = {node.outputs[0].name for node in activation.nodes}
    assert made == {line.split(" = ")[0] for line in text.strip().splitlines()}


GATED = {
    "swiglu": ("a = MatMul (x, gate_8x24)\nu = MatMul (x, up_8x24)\n"
               "s = Sigmoid (a)\nh = Mul (a, s)\ng = Mul (h, u)\n",
               ("a", "h"), {"gate_8x24": "gate", "up_8x24": "up", "down_24x8": "down"}),
    "packed": ("p = MatMul (x, both_8x48)\na, u = Split <axis = -1> (p, halves)\n"
               "s = Sigmoid (a)\nh = Mul (a, s)\ng = Mul (u, h)\n",
               ("a", "h"), {"both_8x48": "up_gate", "down_24x8": "down"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GATED)
def test_gated_ffns(name: str) -> None:
    text, ends, expected = GATED[name]
    model = proto(text + DOWN, constants={"halves": [24, 24]})
    (branch,) = only_block(ir.from_proto(model)).branches
    assert branch.gated and roles(branch) == expected
    (activation,) = branch.activations
    assert (activation.input.name, activation.output.name) == ends
    before, after = exposed(model, *ends)
    np.testing.assert_allclose(after, silu(before), atol=1e-5)


def test_a_norm_after_the_activation_is_not_part_of_it() -> None:
    text = UP + "r = Relu (u)\nm = LayerNormalization (r, gamma_24, beta_24)\n" + "g = Identity (m)\n"
    (branch,) = only_block(written(text + DOWN)).branches
    (activation,) = branch.activations
    assert (activation.input.name, activation.output.name) == ("u", "r")
    assert [n.role for n in branch.norms] == ["inner"]


def test_a_bilinear_ffn_has_no_activation() -> None:
    text = "a = MatMul (x, gate_8x24)\nu = MatMul (x, up_8x24)\ng = Mul (a, u)\n"
    (branch,) = only_block(written(text + DOWN)).branches
    assert branch.gated and branch.activations == ()


def test_one_linear_is_no_bottleneck() -> None:
    (block,) = recover(written("m = MatMul (x, w_8x8)\ny = Add (x, m)")).blocks
    assert block.branches[0].activations == () and not block.branches[0].gated
