"""Every op that keeps a KV cache: its attention goes, layers turn and repeat, cached steps stay right.

The oracle is the same graph in ONNX Runtime with the attention's output projection set to zero;
for layers in another order, the same text written in that order.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune.adapter import IrPass
from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.reorder_layers import ReorderLayers
from graphprune.passes.repeat_layers import RepeatLayers
from graphprune.prunepass import PrunePass
from graphprune.recover import recover
from tests.graphs import proto

HEADS, SIZE, PAST, NEW = 2, 8, 3, 1
STREAM = "float[batch, sequence, 16]"
Layer = Callable[[str, str, int, str], str]  # stream, result, number of its caches, name of its weights


def projected(stream: str, w: str, out: str, *, width: int = 16) -> str:
    return f"""
    {out}q = MatMul ({stream}, {w}q_16x16) {out}k = MatMul ({stream}, {w}k_16x{width})
    {out}v = MatMul ({stream}, {w}v_16x{width})
    """


def added(stream: str, w: str, out: str) -> str:
    return f"{out}o = MatMul ({out}c, {w}o_16x16) {out} = Add ({stream}, {out}o)\n"


def multi_head(stream: str, out: str, n: int, w: str) -> str:
    return f"""{projected(stream, w, out)} {out}c, present_{n}_key, present_{n}_value =
    com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1>
    ({out}q, {out}k, {out}v, "", "", "", past_{n}_key, past_{n}_value) {added(stream, w, out)}"""


def masked(stream: str, out: str, n: int, w: str) -> str:
    return f"""{projected(stream, w, out)} {out}c, present_{n}_key, present_{n}_value =
    com.microsoft.DecoderMaskedMultiHeadAttention <num_heads = 2, past_present_share_buffer = 1>
    ({out}q, {out}k, {out}v, "", "", past_{n}_key, past_{n}_value, used) {added(stream, w, out)}"""


def grouped(stream: str, out: str, n: int, w: str) -> str:
    return f"""{projected(stream, w, out, width=8)} {out}c, present_{n}_key, present_{n}_value =
    com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1, local_window_size = 3>
    ({out}q, {out}k, {out}v, past_{n}_key, past_{n}_value, seqlens, total) {added(stream, w, out)}"""


def standard(stream: str, out: str, n: int, w: str) -> str:
    return f"""{projected(stream, w, out)} {out}c, present_{n}_key, present_{n}_value =
    Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1>
    ({out}q, {out}k, {out}v, "", past_{n}_key, past_{n}_value) {added(stream, w, out)}"""


def packed(stream: str, out: str, n: int, w: str) -> str:
    return f"""{out}c, present_{n} = com.microsoft.Attention <num_heads = 2, unidirectional = 1>
    ({stream}, {w}_16x48, {w}_48, "", past_{n}) {added(stream, w, out)}"""


def stacked(stream: str, out: str, n: int, w: str) -> str:
    heads = "Reshape ({0}{1}, heads) {0}{1}h = Transpose <perm = [0, 2, 1, 3]> ({0}{1}r)"
    split = "".join(f"{out}{x}r = {heads.format(out, x)} " for x in "qkv")
    return f"""{projected(stream, w, out)} {split}
    {out}pk = Gather <axis = 0> (past_{n}, zero) {out}pv = Gather <axis = 0> (past_{n}, one_i)
    {out}ak = Concat <axis = 2> ({out}pk, {out}kh) {out}av = Concat <axis = 2> ({out}pv, {out}vh)
    {out}uk = Unsqueeze ({out}ak, axis) {out}uv = Unsqueeze ({out}av, axis)
    present_{n} = Concat <axis = 0> ({out}uk, {out}uv)
    {out}t = Transpose <perm = [0, 1, 3, 2]> ({out}ak) {out}s = MatMul ({out}qh, {out}t)
    {out}p = Softmax <axis = -1> ({out}s) {out}w = MatMul ({out}p, {out}av)
    {out}b = Transpose <perm = [0, 2, 1, 3]> ({out}w) {out}c = Reshape ({out}b, back)
    {added(stream, w, out)}"""


# The kind of layer, the shape of one cache, whether keys and values are apart, and the opset.
FORMS: dict[str, tuple[Layer, str, bool, int]] = {
    "MultiHeadAttention": (multi_head, "float[batch, 2, {0}, 8]", True, 17),
    "DecoderMaskedMultiHeadAttention": (masked, "float[batch, 2, 4, 8]", True, 17),
    "GroupQueryAttention": (grouped, "float[batch, 1, {0}, 8]", True, 17),
    "Attention-23": (standard, "float[batch, 2, {0}, 8]", True, 23),
    "Attention-24": (standard, "float[batch, 2, {0}, 8]", True, 24),
    "Attention-past": (packed, "float[2, batch, 2, {0}, 8]", False, 17),
    "stacked": (stacked, "float[2, batch, 2, {0}, 8]", False, 17),
}
LENGTHS = """
total_l = Shape (mask) total_g = Gather (total_l, one_i) total = Cast <to = 6> (total_g)
sums = ReduceSum <keepdims = 0> (mask, axis_1) less = Sub (sums, one_i) seqlens = Cast <to = 6> (less)
"""
CONSTANTS = {
    "heads": np.int64([0, 0, HEADS, SIZE]), "back": np.int64([0, 0, 16]), "zero": np.int64(0),
    "one_i": np.int64(1), "used": np.int32([PAST]), "axis": np.int64([0]), "axis_1": np.int64([1]),
}  # fmt: skip


def decoder(form: str, layers: str, dead: str = "") -> onnx.ModelProto:
    """A decoder of these layers, by the names of their weights; layers in `dead` attend for nothing."""
    layer, cache, apart, opset = FORMS[form]
    names = [f"{n}{part}" for n in range(len(layers)) for part in (("_key", "_value") if apart else ("",))]
    body = LENGTHS if form == "GroupQueryAttention" else ""
    stream = "x"
    for n, weights in enumerate(layers):
        body += layer(stream, f"{weights}{n}_", n, weights)
        stream = f"{weights}{n}_"
    inputs = [f"{STREAM} x", *(["int64[batch, total] mask"] if form == "GroupQueryAttention" else [])]
    inputs += [f"{cache.format('past')} past_{name}" for name in names]
    outputs = [f"{STREAM} y", *(f"{cache.format('all')} present_{name}" for name in names)]
    model = proto(
        body + f"y = Relu ({stream})", inputs=", ".join(inputs), outputs=", ".join(outputs), opset=opset,
        constants=CONSTANTS | weights_of(layers),
    )  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.name in {f"{name}o_16x16" for name in dead}:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((16, 16), np.float32), tensor.name))
    return model


def weights_of(layers: str) -> dict[str, np.ndarray]:
    """The same weights for the same name in every model."""
    found = {}
    for name in sorted(set(layers)):
        random = np.random.default_rng(ord(name))
        for end in ("q_16x16", "k_16x16", "v_16x16", "k_16x8", "v_16x8", "o_16x16", "_16x48", "_48"):
            shape = [int(size) for size in end.rpartition("_")[2].split("x")]
            found[f"{name}{end}"] = random.normal(0, 0.3, shape).astype(np.float32)
    return found


def run(model: onnx.ModelProto, pasts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs after these pasts; skips where ONNX Runtime has no such op."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        pytest.skip(f"not in this ONNX Runtime: {str(error)[:100]}")
    x = np.random.default_rng(5).normal(size=(2, NEW, 16)).astype(np.float32)
    feeds: dict[str, np.ndarray] = {"x": x, "mask": np.ones((2, PAST + NEW), np.int64)} | pasts
    wanted = [value.name for value in session.get_inputs()]
    outputs = session.run(None, {name: feeds[name] for name in wanted})
    return dict(zip((v.name for v in session.get_outputs()), outputs, strict=True))


def pasts_of(form: str, layers: str) -> dict[str, np.ndarray]:
    """A past for every layer, the same for the same number."""
    cache, apart = FORMS[form][1:3]
    shape = [{"batch": 2, "{0}": PAST}.get(d, d) for d in cache.split("[")[1].rstrip("]").split(", ")]
    random = np.random.default_rng(9)
    ends = ("_key", "_value") if apart else ("",)
    return {
        f"past_{n}{end}": random.normal(size=[int(size) for size in shape]).astype(np.float32)
        for n in range(len(layers))
        for end in ends
    }


def pruned(model: onnx.ModelProto, one: PrunePass) -> onnx.ModelProto:
    """The model after a pass, a valid one."""
    graph = ir.from_proto(model)
    assert [len(layer.blocks) for layer in recover(graph).stacks[0].layers] == [1, 1, 1]
    IrPass(one)(graph)
    return ir.to_proto(graph)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], back: Callable[[str], str]) -> None:
    """The outputs found are those wanted, `back` being their names there."""
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[back(name)], atol=1e-5, err_msg=name)


def shifted(names: dict[int, int]) -> Callable[[str], str]:
    """Names of caches with the numbers that they had before."""

    def back(name: str) -> str:
        return re.sub(r"\d+", lambda number: str(names[int(number[0])]), name)

    return back


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("gone", "left"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
@pytest.mark.parametrize("kind", [DropAttention, DropLayers])
def test_attention_goes_with_its_cache(form: str, gone: int, left: tuple[int, ...], kind: type) -> None:
    model = decoder(form, "abc")
    pasts = pasts_of(form, "abc")
    wanted = run(decoder(form, "abc", dead="abc"[gone]), pasts)
    back = shifted(dict(enumerate(left)))
    result = pruned(model, kind(str(gone)))
    assert not any(v.name.startswith("past_2") for v in result.graph.input)
    kept = {value.name: pasts[back(value.name)] for value in result.graph.input if "past" in value.name}
    same(run(result, kept), wanted, back)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("one", "layers"),
    [
        (ReorderLayers("2,0,1"), "cab"),
        (RepeatLayers("0"), "aabc"),
        (RepeatLayers("1-2", together=True), "abcbc"),
    ],
)
def test_caches_follow_the_running_order(form: str, one: PrunePass, layers: str) -> None:
    wanted = decoder(form, layers)
    result = pruned(decoder(form, "abc"), one)
    for found, expected in (
        (result.graph.input, wanted.graph.input),
        (result.graph.output, wanted.graph.output),
    ):
        assert [value.name for value in found] == [value.name for value in expected]
    pasts = pasts_of(form, layers)
    same(run(result, pasts), run(wanted, pasts), str)
