"""Caches leave the signature of graphs, of If branches, and of the bodies of a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.adapter import IrPass
from graphprune.passes.drop_attention import DropAttention
from graphprune.passes.drop_layers import DropLayers
from graphprune.recover import recover
from tests.graphs import STREAM, written
from tests.passes.agreement import open_session
from tools.zoo import entries
from tools.zoo_feeds import make_feeds

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
CACHE = "float[batch, past, 8]"


def layer(stream: str, out: str, past: str, present: str) -> str:
    """Attention with a cache, its names after `out`, its weights those of the graph around it."""
    return f"""
    {out}q = MatMul ({stream}, {out}q_8x8) {out}n = MatMul ({stream}, {out}n_8x8)
    {present} = Concat <axis = 1> ({past}, {out}n) {out}t = Transpose <perm = [0, 2, 1]> ({present})
    {out}s = MatMul ({out}q, {out}t) {out}p = Softmax <axis = -1> ({out}s)
    {out}c = MatMul ({out}p, {present}) {out}o = MatMul ({out}c, {out}o_8x8) {out} = Add ({stream}, {out}o)
    """


def three() -> ir.Model:
    """Three layers with caches."""
    pasts, presents = ([f"{CACHE} {name}{i}" for i in range(3)] for name in ("past", "present"))
    body = layer("x", "a", "past0", "present0") + layer("a", "b", "past1", "present1")
    body += layer("b", "c", "past2", "present2") + "y = Relu (c)"
    return written(
        body, inputs=", ".join([f"{STREAM} x", *pasts]), outputs=", ".join([f"{STREAM} y", *presents])
    )


def names(values: list[ir.Value] | tuple[ir.Value, ...]) -> list[str | None]:
    return [value.name for value in values]


@pytest.mark.parametrize(("gone", "left"), [("0", "bc"), ("1", "ac"), ("2", "ab"), ("0,2", "b")])
def test_the_others_are_numbered_anew(gone: str, left: str) -> None:
    model = three()
    IrPass(DropLayers(gone))(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    count = len(left)
    assert names(model.graph.inputs) == ["x", *(f"past{i}" for i in range(count))]
    assert names(model.graph.outputs) == ["y", *(f"present{i}" for i in range(count))]
    concats = [node for node in model.graph if node.op_type == "Concat"]
    weights = [node.inputs[1].producer().inputs[1].name for node in concats]  # type: ignore[union-attr]
    assert weights == [f"{name}n_8x8" for name in left]
    assert [names([n.inputs[0], n.outputs[0]]) for n in concats] == [  # type: ignore[list-item]
        [f"past{i}", f"present{i}"] for i in range(count)
    ]


def test_a_cache_that_others_read_stays_without_a_stand_in() -> None:
    body = layer("x", "a", "past0", "present0") + """
    f0 = MatMul (a, up_8x24) f1 = Relu (f0) f2 = MatMul (f1, down_24x8) b = Add (a, f2)
    s = Shape (past0) l = Gather (s, one_axis) g = Cast <to = 1> (l) y = Mul (b, g)
    """  # fmt: skip
    model = written(
        body, inputs=f"{STREAM} x, {CACHE} past0", outputs=f"{STREAM} y, {CACHE} present0",
        constants={"one_axis": np.int64(1)},
    )  # fmt: skip
    IrPass(DropAttention("0"))(model)
    assert (names(model.graph.inputs), names(model.graph.outputs)) == (["x", "past0"], ["y", "present0"])


def test_both_branches_of_an_if_lose_the_same_outputs(tmp_path: Path) -> None:
    entry = next(entry for entry in entries("gpt2", "bart", fast=True) if entry.family.name == "bart")
    file = next(file for file in entry.files() if file.stem == "decoder_model_merged")
    out = gp.prune(gp.load(file), drop_layers="1").save(tmp_path / "merged.onnx")
    model = gp.load(out).files[0].model
    (branching,) = [node for node in model.graph if node.op_type == "If"]
    counts = {len(branching.attributes[name].as_graph().outputs) for name in ("then_branch", "else_branch")}
    assert counts == {len(branching.outputs)} == {len(model.graph.outputs)}
    session = open_session(out)
    assert not any(".2." in value.name for value in (*session.get_inputs(), *session.get_outputs()))
    for past in (0, 3):
        values = session.run(None, make_feeds(session, past=past))
        assert all(np.isfinite(value).all() for value in values)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
def test_the_bodies_of_a_search_change_together(tmp_path: Path) -> None:
    source = SHARED / "gpt2_greedy_two_subgraphs.onnx"
    out = gp.prune(gp.load(source), drop_layers="1,3").save(tmp_path / "greedy.onnx")
    before, after = (recover(gp.load(path).files[0].model) for path in (source, out))
    assert [len(stack.layers) for stack in before.stacks] == [5, 5]
    assert [len(stack.layers) for stack in after.stacks] == [3, 3]
    for old, new in zip(before.stacks, after.stacks, strict=True):
        kept = [n for n in names(list(old.graph.outputs)) if n and not n.endswith(("3", "4"))]
        assert names(list(new.graph.outputs)) == kept
        assert len(old.graph.inputs) - len(new.graph.inputs) in {0, 2}
