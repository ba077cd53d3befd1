from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from graphprune.architecture import BlockKind
from graphprune.errors import SelectionError
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.reorder_layers import ReorderLayers
from tests.graphs import attention, ffn, norm, written
from tests.passes.written import answers, pruned, text
from tests.tiny import architecture


def layer(stream: str, out: str) -> str:
    """A pre-norm layer, its names after `out`."""
    return f"""
    {norm(stream, f"{out}m")} {attention(f"{out}m", f"{out}a")} {out}h = Add ({stream}, {out}a)
    {norm(f"{out}h", f"{out}n")} {ffn(f"{out}n", f"{out}f")} {out} = Add ({out}h, {out}f)
    """


def post_layer(stream: str, out: str) -> str:
    """A post-norm layer."""
    return f"""
    {attention(stream, f"{out}a")} {out}s = Add ({stream}, {out}a) {norm(f"{out}s", f"{out}h")}
    {ffn(f"{out}h", f"{out}f")} {out}t = Add ({out}h, {out}f) {norm(f"{out}t", out)}
    """


END = norm("{}", "y")
THREE = layer("x", "p") + layer("p", "q") + layer("q", "r") + norm("r", "y")


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ("0", layer("x", "q") + layer("q", "r") + norm("r", "y")),
        ("1", layer("x", "p") + layer("p", "r") + norm("r", "y")),
        ("last:1", layer("x", "p") + layer("p", "q") + norm("q", "y")),
        ("0-1", layer("x", "r") + norm("r", "y")),
        ("all-but:1", layer("x", "q") + norm("q", "y")),
    ],
)
def test_the_stream_goes_past(layers: str, left: str) -> None:
    assert text(pruned(THREE, DropLayers(layers))) == text(written(left))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_post_norms_go_with_their_layer(number: int) -> None:
    names = ["p", "q", "y"]
    body = post_layer("x", "p") + post_layer("p", "q") + post_layer("q", "y")
    first, second = names[:number] + names[number + 1 :]
    left = post_layer("x", first) + post_layer(first, second)
    if second != "y":  # the output keeps its name
        left = left.replace(f"{second} = Layer", "y = Layer")
    assert text(pruned(body, DropLayers(str(number)))) == text(written(left))


def test_what_it_says() -> None:
    assert answers(THREE, DropLayers("1")) == {"encoder.1": "drop the layer: 15 nodes, 672 parameters"}


def test_no_such_layer() -> None:
    with pytest.raises(SelectionError, match="layer 3 does not exist: the model has layers 0-2"):
        answers(THREE, DropLayers("3"))


def test_not_all_of_them() -> None:
    with pytest.raises(SelectionError, match="leave at least one"):
        pruned(THREE, DropLayers("all"))


def test_a_layer_that_changes_the_shape_is_left() -> None:
    body = f"""w = MatMul (x, w_8x8) {ffn("x", "f")} h = Add (w, f) {ffn("h", "g")} y = Add (h, g)"""
    said = answers(body, DropLayers("0"))
    assert [*said] == ["encoder.0"]
    assert said["encoder.0"].startswith("(encoder.0.ffn: the shortcut into node")


@pytest.mark.parametrize(("keep", "gone"), [(1, ["1", "2"]), (2, ["1"])])
def test_how_many_to_keep(keep: int, gone: list[str]) -> None:
    assert [*answers(THREE, DropLayers(keep=keep))] == [f"encoder.{number}" for number in gone]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes either layers .* or how many to keep"),
        ({"layers": "0", "keep": 1}, "takes either layers"),
        ({"layers": "0", "stack": "encoder"}, "takes either layers"),
        ({"keep": 3}, "3 layers cannot be kept of the 3 of 'encoder'"),
        ({"keep": -1}, "-1 layers cannot be kept"),
        ({"keep": 1, "stack": "decoder"}, "no stack is called 'decoder': the model has encoder"),
    ],
)
def test_what_cannot_be_kept(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        answers(THREE, DropLayers(**options))


def test_one_stack_of_several_keeps_some() -> None:
    layers: list[list[BlockKind]] = [["attention", "ffn"]] * 4
    both = architecture([("encoder", layers), ("decoder", layers), ("decoder", layers)])
    targets = [one.target for one in DropLayers(keep=2, stack="decoder").plan(both)]
    assert targets == ["decoder.1", "decoder.2"] * 2
    with pytest.raises(SelectionError, match="a stack has to be named: the model has encoder, decoder"):
        list(DropLayers(keep=2).plan(both))
    apart = replace(both, stacks=both.stacks[:1], numbering=both.stacks)  # a file of the bundle without it
    assert not list(DropLayers(keep=2, stack="decoder").plan(apart))
    assert not list(ReorderLayers("3,2,1,0", stack="decoder").plan(apart))
