"""Bundles that lost the attention of some layers, and no layer, in the loader that they were made for.

optimum's model classes generate from them what torch does with these attentions' output set to
zero: token for token and logit for logit, with IO binding and without. Other loaders would be
misled by what is made for `plain`, which is shown here too.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import graphprune as gp
from graphprune.recipe import parse
from tests.loaders.generating import Continuation, batch, dense, generate, in_optimum
from tests.loaders.test_optimum import MATTERS, TOLERANCE, laid_out
from tests.oracle import Oracle
from tools import zoo_loaders
from tools.zoo_loaders import Layout
from tools.zoo_truth import Family

# Layers that lose it, by what: `self`, `cross` or `both`.
CUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "first": (("self", "0"),),
    "some": (("self", "1,3"),),
    "last": (("self", "-1"),),
    "all": (("self", "all"),),
    "cross": (("cross", "0,2"),),
    "both": (("both", "0,2"),),
    "mixed": (("self", "0,1"), ("cross", "1,3")),
}
CROSS = ("cross", "both", "mixed")
FAST: dict[str, tuple[str, ...]] = {  # cut and layout
    "gpt2": ("first-past", "all-past"),
    "llama": ("some-past",),
    "t5": ("first-past", "mixed-merged"),
    "bart": ("cross-past", "both-merged"),
    "whisper": ("last-merged",),
}


def cases() -> Iterator[object]:
    """Families, cuts, layouts with caches."""
    for family in zoo_loaders.generating().values():
        for cut in CUTS:
            for layout in ("past", "merged"):
                if cut in CROSS and zoo_loaders.causal(family):
                    continue
                name = f"{cut}-{layout}"
                marks = () if name in FAST.get(family.name, ()) else (pytest.mark.matrix,)
                yield pytest.param(family, cut, layout, id=f"{family.name}-{name}", marks=marks)


def steps(cut: str) -> list[dict[str, Any]]:
    """The recipe."""
    return [{"drop_attention": {"blocks": _within(layers), "which": which}} for which, layers in CUTS[cut]]


def _within(layers: str) -> str:
    return ",".join(f"decoder.{layer}" for layer in layers.split(","))


@functools.lru_cache(maxsize=4)
def expected(name: str, cut: str) -> Continuation:
    """What torch generates where the output projections of these attentions are zero."""
    family = zoo_loaders.generating()[name]
    model = _caching(dense(name), family)
    layers = next(stack for stack in family.stacks if stack.name == "decoder").layers
    modules = model.get_submodule(layers[0].path.rpartition(".")[0])
    for which, selected in CUTS[cut]:
        kinds = {"self": {"attention"}, "cross": {"cross_attention"}}.get(
            which, {"attention", "cross_attention"}
        )
        for part in (p for block in layers[0].blocks for p in block.parts if p.kind in kinds):
            for module in _selected(modules, selected):
                _silence(module.get_submodule(part.output))
    return generate(model, batch(family))


def _selected(modules: Any, text: str) -> list[Any]:
    if text == "all":
        return list(modules)
    return [modules[int(number)] for number in text.split(",")]


@torch.no_grad()
def _silence(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


@pytest.mark.parametrize(("family", "cut", "layout"), list(cases()))
def test_optimum_generates_what_torch_does(family: Family, cut: str, layout: Layout, tmp_path: Path) -> None:
    bundle = gp.load(laid_out(family, layout, tmp_path / "dense"))
    recipe = parse({"passes": steps(cut)})
    pruned = gp.prune(bundle, recipe=recipe)
    assert pruned.plan.loader == "optimum"
    folder = pruned.save(tmp_path / "pruned")
    wanted = expected(family.name, cut)
    assert wanted.distance(expected_dense(family.name)) > MATTERS
    for how, loaded in in_optimum(folder, family, layout):
        found = generate(loaded, batch(family))
        assert found.distance(wanted) <= TOLERANCE, how
        assert np.array_equal(found.tokens, wanted.tokens), how


@functools.lru_cache(maxsize=2)
def expected_dense(name: str) -> Continuation:
    """What the unpruned torch model generates."""
    family = zoo_loaders.generating()[name]
    return generate(_caching(dense(name), family), batch(family))


def _caching(model: Any, family: Family) -> Any:
    model = copy.deepcopy(model)
    if not zoo_loaders.causal(family):  # else transformers 4.57 makes T5 a cache of the encoder's depth
        model.generation_config.cache_implementation = "dynamic_full"
    return model


def pruned_gpt2(tmp_path: Path) -> tuple[Family, Path]:
    """GPT-2 without the attention of its first layer, renumbered."""
    family = zoo_loaders.generating()["gpt2"]
    bundle = gp.load(laid_out(family, "past", tmp_path / "dense"))
    return family, gp.prune(bundle, drop_attention="0").save(tmp_path / "pruned")


def agrees(family: Family, cut: str, folder: Path, layout: Layout) -> bool:
    """Whether optimum generates from a folder what torch does."""
    wanted = expected(family.name, cut)
    try:
        found = [generate(loaded, batch(family)) for _, loaded in in_optimum(folder, family, layout)]
    except Exception:  # whatever optimum or ONNX Runtime meets with
        return False
    return all(one.distance(wanted) <= TOLERANCE for one in found)


def test_optimum_reads_gaps_in_a_decoder(tmp_path: Path) -> None:
    family, folder = pruned_gpt2(tmp_path)
    model = onnx.load(folder / "model.onnx")
    names = {v.name for v in (*model.graph.input, *model.graph.output) if re.search(r"\.\d+\.", v.name)}
    gapped = {name: re.sub(r"\d+", lambda number: str(int(number[0]) + 1), name) for name in names}
    for value in (*model.graph.input, *model.graph.output):
        value.name = gapped.get(value.name, value.name)
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [gapped.get(name, name) for name in values]
    onnx.save(model, folder / "model.onnx")
    assert agrees(family, "first", folder, "past")


def test_optimum_reads_caches_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.outcomes.caches_kept", lambda _, edits: dict.fromkeys(edits, "as a test"))
    family, folder = pruned_gpt2(tmp_path)
    names = [value.name for value in onnx.load(folder / "model.onnx").graph.input]
    assert len([name for name in names if name.startswith("past_key_values")]) == 2 * zoo_loaders.LAYERS
    assert agrees(family, "first", folder, "past")


def test_optimum_misreads_what_is_made_for_plain(tmp_path: Path) -> None:
    family = zoo_loaders.generating()["t5"]
    bundle = gp.load(laid_out(family, "past", tmp_path / "dense"))
    folders = {
        loader: gp.prune(bundle, recipe=parse({"for": loader, "passes": steps("first")})).save(
            tmp_path / loader
        )
        for loader in ("optimum", "plain")
    }
    assert agrees(family, "first", folders["optimum"], "past")
    assert not agrees(family, "first", folders["plain"], "past")


@pytest.mark.parametrize(
    ("name", "layout", "order"),
    [
        ("gpt2", "past", (0, 1, 1, 2, 3, 3, 4, 5)),
        pytest.param("gemma3-window", "past", (0, 1, 1, 2, 3, 3, 4, 5), marks=pytest.mark.matrix),
        pytest.param("bart", "past", (0, 1, 1, 2, 3, 3, 4), marks=pytest.mark.matrix),
        pytest.param("bart", "merged", (0, 1, 1, 2, 3, 3, 4), marks=pytest.mark.matrix),
        pytest.param("gpt2", "merged", (0, 1, 1, 2, 3, 3, 4, 5), marks=pytest.mark.matrix),
    ],
)
def test_optimum_runs_layers_twice(name: str, layout: Layout, order: tuple[int, ...], tmp_path: Path) -> None:
    family = zoo_loaders.generating()[name]
    bundle = gp.load(laid_out(family, layout, tmp_path / "dense"))
    folder = gp.prune(bundle, repeat_layers="decoder.1,decoder.3").save(tmp_path / "pruned")
    oracle = Oracle(zoo_loaders.entry(family, layout))
    oracle.order("decoder", order)
    wanted = generate(_caching(oracle.model, family), batch(family))
    for how, loaded in in_optimum(folder, family, layout):
        found = generate(loaded, batch(family))
        assert found.distance(wanted) <= TOLERANCE, how
        assert np.array_equal(found.tokens, wanted.tokens), how
