from __future__ import annotations

import pytest

from graphprune.errors import SelectionError
from graphprune.passes.repeat_layers import RepeatLayers
from tests.graphs import STREAM, ffn, norm, written
from tests.passes.written import answers, pruned, text


def layer(stream: str, out: str, weights: str = "") -> str:
    """A pre-norm FFN; its weights are named after `weights`, or after `out`."""
    name = weights or out
    inside = f"""{norm(stream, f"{out}n")} {ffn(f"{out}n", f"{out}f")} {out} = Add ({stream}, {out}f) """
    for end in ("n_gamma_8", "n_beta_8", "f_up_8x24", "f_down_24x8"):
        inside = inside.replace(f"{out}{end}", f"{name}{end}")
    return inside


THREE = layer("x", "p") + layer("p", "q") + layer("q", "r") + norm("r", "y")


@pytest.mark.parametrize(
    ("given", "after"),
    [
        (RepeatLayers("1"), [("q", ""), ("s", "q"), ("r", "")]),
        (RepeatLayers("1", times=3), [("q", ""), ("s", "q"), ("t", "q"), ("r", "")]),
        (RepeatLayers("1,2"), [("q", ""), ("s", "q"), ("r", ""), ("t", "r")]),
        (RepeatLayers("1,2", together=True), [("q", ""), ("r", ""), ("s", "q"), ("t", "r")]),
    ],
)
def test_layers_run_again_over_the_same_weights(given: RepeatLayers, after: list[tuple[str, str]]) -> None:
    body, stream = layer("x", "p"), "p"
    for out, weights in after:
        body += layer(stream, out, weights)
        stream = out
    model = pruned(THREE, given)
    assert text(model) == text(written(body + norm(stream, "y")))
    assert set(model.graph.initializers) == set(written(THREE).graph.initializers)


def test_what_it_says() -> None:
    assert answers(THREE, RepeatLayers("1")) == {"encoder": "run its layers as 0 1 1 2"}


def cached(stream: str, out: str, number: str) -> str:
    """Attention with a cache; its weights are those of every such layer."""
    return f"""
    {out}n = MatMul ({stream}, n_8x8) {out}q = MatMul ({stream}, q_8x8)
    present{number} = Concat <axis = 1> (past{number}, {out}n)
    {out}t = Transpose <perm = [0, 2, 1]> (present{number}) {out}s = MatMul ({out}q, {out}t)
    {out}p = Softmax <axis = -1> ({out}s) {out}c = MatMul ({out}p, present{number})
    {out}o = MatMul ({out}c, o_8x8) {out} = Add ({stream}, {out}o)
    """


def interface(*numbers: str) -> dict[str, str]:
    cache = "float[batch, past, 8]"
    pasts, presents = ([f"{cache} {word}{n}" for n in numbers] for word in ("past", "present"))
    return {"inputs": ", ".join([f"{STREAM} x", *pasts]), "outputs": ", ".join([f"{STREAM} y", *presents])}


def test_each_run_has_a_cache_of_its_own() -> None:
    body = cached("x", "a", "0") + "y = Relu (a)"
    after = cached("x", "a", "0") + cached("a", "b", "1") + "y = Relu (b)"
    model = pruned(body, RepeatLayers("0"), **interface("0"))
    expected = written(after, **interface("0", "1"))
    assert sorted(n.op_type for n in model.graph) == sorted(n.op_type for n in expected.graph)
    assert set(model.graph.initializers) == set(expected.graph.initializers)
    assert [v.name for v in model.graph.inputs] == [v.name for v in expected.graph.inputs]
    assert [v.name for v in model.graph.outputs] == [v.name for v in expected.graph.outputs]


def test_a_cache_whose_name_nobody_can_count_on_is_left() -> None:
    body = cached("x", "a", "") + "y = Relu (a)"
    assert answers(body, RepeatLayers("0"), **interface("")) == {
        "decoder": "(it cannot run layers twice: the names of its caches do not count: what follows 'past'?)"
    }


def test_a_layer_that_changes_the_shape_is_left() -> None:
    body = f"""w = MatMul (x, w_8x8) {ffn("x", "f")} h = Add (w, f) {ffn("h", "g")} y = Add (h, g)"""
    (said, *_) = answers(body, RepeatLayers("0")).values()
    assert said.startswith("(encoder.0.ffn cannot be run twice: the shortcut")


def test_once_is_not_again() -> None:
    with pytest.raises(SelectionError, match="at least 2 times"):
        answers(THREE, RepeatLayers("1", times=1))


def test_no_such_layer() -> None:
    with pytest.raises(SelectionError, match="does not exist"):
        answers(THREE, RepeatLayers("5"))
