"""What caches are called when layers go: slots, shared numbers, keys that stay keys."""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.adapter import IrPass
from graphprune.architecture import Loader
from graphprune.keeping import LAST, PAIRS
from graphprune.outcomes import ask, edits_in_order
from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.repeat_layers import RepeatLayers
from graphprune.prunepass import Edit, PrunePass, Skipped
from graphprune.recover import recover
from graphprune.surgery import sweep
from graphprune.surgery.signature import _counted
from graphprune.survey import SurveyedFile
from tests.graphs import STREAM, written

CACHE = "float[batch, past, 8]"


def attention(
    stream: str, out: str, w: str, key: str, value: str, *, source: str = "", turned: bool = False
) -> str:
    """Attention whose keys and values go on from `past_<key>`; of `source` they are read as they are."""
    keys = f"{out}k = MatMul ({stream}, {w}k_8x8) present_{key} = Concat <axis = 1> (past_{key}, {out}k)"
    values = (
        f"{out}v = MatMul ({stream}, {w}v_8x8) present_{value} = Concat <axis = 1> (past_{value}, {out}v)"
    )
    first, second = (values, keys) if turned else (keys, values)
    k, v = (f"past_{key}", f"past_{value}") if source else (f"present_{key}", f"present_{value}")
    return f"""
    {out}q = MatMul ({stream}, {w}q_8x8) {"" if source else f"{first} {second}"}
    {out}t = Transpose <perm = [0, 2, 1]> ({k}) {out}s = MatMul ({out}q, {out}t)
    {out}p = Softmax <axis = -1> ({out}s) {out}c = MatMul ({out}p, {v})
    {out}o = MatMul ({out}c, {w}o_8x8) {out} = Add ({stream}, {out}o)
    """


def decoder(count: int = 3, *, turned: int = -1, flat: bool = False) -> ir.Model:
    """Layers of self-attention; the keys and values of layer `turned` are computed the other way round."""
    body, stream, names = "", "x", []
    for n in range(count):
        key, value = (str(2 * n), str(2 * n + 1)) if flat else (f"{n}_key", f"{n}_value")
        body += attention(stream, f"a{n}", f"w{n}", key, value, turned=n == turned)
        stream, names = f"a{n}", [*names, key, value]
    return as_model(body, stream, names, names)


def with_cross(count: int = 3) -> ir.Model:
    """Layers of self- and cross-attention, the latter's keys and values known from the past."""
    body, stream, own, all_names = "", "x", [], []
    for n in range(count):
        mine, other = [f"{n}_decoder_key", f"{n}_decoder_value"], [f"{n}_encoder_key", f"{n}_encoder_value"]
        body += attention(stream, f"a{n}", f"w{n}", *mine)  # type: ignore[arg-type]
        body += attention(f"a{n}", f"c{n}", f"u{n}", *other, source="e")  # type: ignore[misc]
        stream, own, all_names = f"c{n}", [*own, *mine], [*all_names, *mine, *other]
    return as_model(body, stream, all_names, own)


def with_ffn(count: int = 3, more: int = 1) -> ir.Model:
    """Layers of self-attention and an FFN, and `more` of an FFN alone."""
    body, stream, names = "", "x", []
    for n in range(count + more):
        if n < count:
            body += attention(stream, f"a{n}", f"w{n}", f"{n}_key", f"{n}_value")
            stream, names = f"a{n}", [*names, f"{n}_key", f"{n}_value"]
        body += f"f{n}m = MatMul ({stream}, f{n}up_8x24) f{n}r = Relu (f{n}m) "
        body += f"f{n}d = MatMul (f{n}r, f{n}down_24x8) f{n} = Add ({stream}, f{n}d) "
        stream = f"f{n}"
    return as_model(body, stream, names, names)


def as_model(body: str, stream: str, pasts: list[str], presents: list[str]) -> ir.Model:
    return written(
        f"{body} y = Relu ({stream})",
        inputs=", ".join([f"{STREAM} x", *(f"{CACHE} past_{name}" for name in pasts)]),
        outputs=", ".join([f"{STREAM} y", *(f"{CACHE} present_{name}" for name in presents)]),
    )


def signature(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return [v.name for v in model.graph.inputs[1:]], [v.name for v in model.graph.outputs[1:]]


def drop(model: ir.Model, *passes: PrunePass, loader: Loader) -> dict[str, str]:
    """Apply passes for a loader; what they say of the caches, and of what they leave alone."""
    files = [SurveyedFile("model", replace(recover(model), loader=loader))]
    outcomes = ask(passes, files)
    for edit in edits_in_order(outcomes, files):
        edit.apply()
    sweep(model)
    answers = [outcome.answer for outcome in outcomes]
    return {a.target: a.reason if isinstance(a, Skipped) else a.summary.partition("; ")[2] for a in answers}


def test_keys_stay_keys_where_a_layer_computes_its_values_first() -> None:
    for turned in range(3):
        model = decoder(turned=turned)
        IrPass(DropLayers("0"))(model)
        assert signature(model)[1] == [f"present_{n}_{part}" for n in (0, 1) for part in ("key", "value")]
        for concat in (node for node in model.graph if node.op_type == "Concat"):
            past, new = concat.inputs
            assert past is not None and new is not None
            weight = new.producer().inputs[1].name  # type: ignore[union-attr]
            assert ("k_8x8" in str(weight)) == str(past.name).endswith("key")
            assert str(concat.outputs[0].name).replace("present", "past") == past.name


def test_stacks_of_one_graph_share_the_numbers() -> None:
    def parts(*numbers: int) -> list[str]:
        return [f"{n}_{part}" for n in numbers for part in ("key", "value")]

    def two_stacks() -> ir.Model:
        body, stream = "", "x"
        for n in range(4):
            body += attention(stream, f"a{n}", f"w{n}", f"{n}_key", f"{n}_value")
            stream = f"a{n}"
            if n == 1:
                body, stream = f"{body} twice = Concat <axis = 1> (a1, a1)", "twice"
        return as_model(body, stream, parts(0, 1, 2, 3), parts(0, 1, 2, 3))

    assert len(recover(two_stacks()).stacks) == 2
    for one, left in ((DropLayers("0"), 3), (DropLayers("0,3"), 2), (RepeatLayers("1"), 5)):
        model = two_stacks()
        IrPass(one)(model)
        expected = parts(*range(left))
        assert signature(model) == ([f"past_{n}" for n in expected], [f"present_{n}" for n in expected])


def test_names_that_count_tensors() -> None:
    model = decoder(flat=True)
    IrPass(DropLayers("1"))(model)
    assert signature(model) == ([f"past_{n}" for n in range(4)], [f"present_{n}" for n in range(4)])
    again = decoder(flat=True)
    IrPass(RepeatLayers("1"))(again)
    assert signature(again) == ([f"past_{n}" for n in range(8)], [f"present_{n}" for n in range(8)])


def test_what_is_pruned_again_in_memory_is_numbered_anew() -> None:
    model = decoder(4)
    for _ in range(2):
        IrPass(DropLayers("0"))(model)
    assert signature(model)[0] == [f"past_{n}_{part}" for n in (0, 1) for part in ("key", "value")]


def test_the_two_attentions_of_a_layer_share_its_number() -> None:
    model = with_cross()
    said = drop(model, DropAttention("1"), loader="plain")
    assert said == {"decoder.1.attention": "removes 4 cache inputs and outputs, renumbers the rest"}
    cross = [[f"past_{n}_encoder_{part}" for part in ("key", "value")] for n in range(3)]
    own = [[f"past_{n}_decoder_{part}" for part in ("key", "value")] for n in range(3)]
    assert signature(model)[0] == [*own[0], *cross[0], *cross[1], *own[2], *cross[2]]


def test_a_layer_with_one_attention_left_keeps_a_number_when_others_go() -> None:
    model = with_cross()
    drop(model, DropAttention("1"), loader="plain")
    one, two = recover(model).stacks[0].layers[0].blocks[:2]
    assert (one.kind, two.kind) == ("attention", "cross_attention")
    for block in (one.id, two.id):  # the whole first layer, named block by block: layers are read anew here
        which = "cross" if block.endswith("cross_attention") else "self"
        drop(model, DropAttention((block,), which=which), loader="plain")  # type: ignore[arg-type]
    cross = [[f"past_{n}_encoder_{part}" for part in ("key", "value")] for n in range(2)]
    own = [f"past_1_decoder_{part}" for part in ("key", "value")]
    assert signature(model)[0] == [*cross[0], *own, *cross[1]]


@pytest.mark.parametrize("which", ["self", "cross"])
def test_optimum_keeps_the_cache_of_half_a_layer(which: str) -> None:
    model = with_cross()
    before = signature(model)
    said = drop(model, DropAttention("1", which=which), loader="optimum")  # type: ignore[arg-type]
    assert list(said.values()) == [f"keeps its KV cache: {PAIRS}"]
    assert signature(model) == before


@pytest.mark.parametrize("which", ["self", "cross"])
def test_a_cache_that_an_earlier_run_kept_follows_its_layer(which: str) -> None:
    for gone in range(3):
        model = with_cross()
        drop(model, DropAttention("1", which=which), loader="optimum")  # type: ignore[arg-type]
        IrPass(DropLayers(str(gone)))(model)
        found = signature(model)
        assert found == tuple(signature(with_cross(2)))
        assert recover(model).stacks[0].layers
    again = with_cross()
    drop(again, DropAttention("1", which=which), loader="optimum")  # type: ignore[arg-type]
    IrPass(RepeatLayers("1"))(again)
    assert signature(again) == signature(with_cross(4))


def test_optimum_loses_both_caches_of_a_layer() -> None:
    model = with_cross()
    said = drop(model, DropAttention("1", which="both"), loader="optimum")
    assert all("removes" in text for text in said.values())
    assert len(signature(model)[0]) == 8


@pytest.mark.parametrize("loader", ["optimum", "genai", "plain"])
def test_the_last_cache_stays(loader: Loader) -> None:
    model = with_ffn(more=0)
    said = drop(model, DropAttention("all"), loader=loader)
    assert said["decoder.2.attention"] == f"keeps its KV cache: {LAST}"
    assert signature(model) == (["past_0_key", "past_0_value"], ["present_0_key", "present_0_value"])


LAST_STAYS = f"its KV cache has to stay: {LAST}"


@pytest.mark.parametrize("loader", ["optimum", "genai", "plain"])
@pytest.mark.parametrize(
    ("passes", "kept"),
    [
        ((DropAttention("0"), DropLayers("1-2")), "decoder.0.attention"),
        ((DropLayers("1-2"), DropAttention("0")), "decoder.0.attention"),
        ((DropAttention("0-1"), DropLayers("2")), "decoder.1.attention"),
        ((DropAttention("0"), DropAttention("1"), DropAttention("2")), "decoder.2.attention"),
        ((DropLayers("0"), DropAttention("0-1"), DropLayers("2")), "decoder.1.attention"),
    ],
)
def test_the_last_cache_of_a_whole_recipe_stays(
    passes: tuple[PrunePass, ...], kept: str, loader: Loader
) -> None:
    """Each layer has an FFN too, so none of these empties the stack."""
    model = with_ffn()
    said = drop(model, *passes, loader=loader)
    assert [target for target, what in said.items() if LAST in what] == [kept]
    assert signature(model) == (["past_0_key", "past_0_value"], ["present_0_key", "present_0_value"])
    concat = next(node for node in model.graph if node.op_type == "Concat")
    weight = concat.inputs[1].producer().inputs[1].name  # type: ignore[union-attr]
    assert weight == f"w{kept.split('.')[1]}k_8x8"


def test_the_layer_with_the_last_cache_stays() -> None:
    """Layers of FFNs are left, and no edit could leave the cache behind."""
    said = drop(model := with_ffn(), DropLayers("0-2"), loader="plain")
    assert said == {"decoder.0": "", "decoder.1": "", "decoder.2": LAST_STAYS}
    assert signature(model)[0] == ["past_0_key", "past_0_value"]
    said = drop(model := with_ffn(), DropLayers("0-2"), DropAttention("2"), loader="plain")
    assert said["decoder.2.attention"] == f"keeps its KV cache: {LAST}"
    assert not [node for node in model.graph if node.op_type == "Softmax"]
    assert signature(model)[0] == ["past_0_key", "past_0_value"]


def test_optimum_pairs_caches_over_the_whole_recipe() -> None:
    model = with_cross()
    said = drop(model, DropAttention("1"), DropAttention("1", which="cross"), loader="optimum")
    assert all("removes" in text for text in said.values())
    assert signature(model) == signature(with_cross(2))


def test_names_that_do_not_count_are_left() -> None:
    model = decoder()
    for value, name in zip(model.graph.inputs[1:], ["a1", "b9", "c7", "d3", "e8", "f2"], strict=True):
        value.name = name
    (answer,) = RepeatLayers("1").plan(recover(model))
    assert not isinstance(answer, Edit) and "do not count" in answer.reason
    IrPass(DropLayers("1"))(model)
    assert signature(model)[0] == ["a1", "b9", "e8", "f2"]


@given(st.text("ab_.", max_size=4), st.integers(0, 5), st.integers(1, 4), st.integers(0, 9), st.data())
def test_even_counting_goes_on(word: str, start: int, step: int, slot: int, data: st.DataObject) -> None:
    names = [f"{word}x{start + step * n}.key2" for n in range(10)]
    known = data.draw(st.sets(st.integers(0, 9), min_size=2))
    assert _counted({n: names[n] for n in sorted(known)}, slot) == names[slot]


@given(st.dictionaries(st.integers(0, 9), st.text(max_size=9), min_size=1), st.integers(0, 20))
def test_any_names_are_read(known: dict[int, str], slot: int) -> None:
    assert _counted(dict(sorted(known.items())), slot) is None or any(name for name in known.values())
