"""What a file says of where it comes from is read, checked, and never trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune.report.ancestry import Origin, not_the_source, origin_of, plan_again
from tests import tiny


def saying(path: Path, **said: str) -> Path:
    model = onnx.load(path)
    for key, value in said.items():
        model.metadata_props.add(key=f"graphprune.{key}", value=value)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("dense") / "dense.onnx")


def test_a_pruned_file_tells_its_recipe_and_its_source(dense: Path, tmp_path: Path) -> None:
    pruned = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "pruned.onnx", run=False)
    origin = origin_of(gp.load(pruned))
    assert origin.recipe == {"for": "plain", "passes": [{"drop_ffn": {"blocks": [1], "post_norm": "keep"}}]}
    assert not origin.notes and not origin.earlier
    assert not_the_source(origin, origin_of(gp.load(dense))) == ""
    plan, notes = plan_again(gp.load(dense), origin)
    assert plan is not None and not notes
    assert [block.id.rpartition(".")[2] for block in plan.removed] == ["ffn"]


def test_another_source_is_told_by_its_hash(dense: Path, tmp_path: Path) -> None:
    pruned = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "pruned.onnx", run=False)
    other = tiny.save(tmp_path / "other.onnx", seed=1)
    doubt = not_the_source(origin_of(gp.load(pruned)), origin_of(gp.load(other)))
    assert "pruned.onnx was made from dense.onnx" in doubt and "SHA-256" in doubt
    assert "does not say" in not_the_source(origin_of(gp.load(other)), origin_of(gp.load(dense)))


def test_earlier_runs_are_counted(dense: Path, tmp_path: Path) -> None:
    once = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "once.onnx", run=False)
    twice = gp.prune(gp.load(once), drop_ffn=[0]).save(tmp_path / "twice.onnx", run=False)
    assert origin_of(gp.load(twice)).earlier == 1
    assert "once.onnx" in not_the_source(origin_of(gp.load(twice)), origin_of(gp.load(dense)))


def test_nothing_is_imported_that_a_file_names(dense: Path, tmp_path: Path) -> None:
    trap = tmp_path / "graphprune_trap.py"
    trap.write_text("raise SystemExit('imported')")
    steps = [{"ir_pass": "graphprune_trap.Pass"}, {"drop_ffn": {"blocks": "1"}}]
    origin = Origin((), {"passes": steps})
    sys.path.insert(0, str(tmp_path))
    try:
        plan, notes = plan_again(gp.load(dense), origin)
    finally:
        sys.path.remove(str(tmp_path))
    assert plan is not None and len(plan.removed) == 1
    assert any("graphprune_trap.Pass" in note for note in notes)
    assert "graphprune_trap" not in sys.modules


@pytest.mark.parametrize(
    "recipe",
    ["", "{", "[]", "null", '"text"', '{"passes": 3}', '{"passes": [{"drop_ffn": "99"}]}', "[" * 100_000,
     '{"passes": [{"no_such_pass": 1}]}', '{"passes":' + "[" * 500 + "]" * 500 + "}"],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_told_and_planned_without(
    dense: Path, tmp_path: Path, recipe: str
) -> None:
    path = saying(tiny.save(tmp_path / "model.onnx"), recipe=recipe, history=recipe)
    origin = origin_of(gp.load(path))
    plan, notes = plan_again(gp.load(dense), origin)
    assert plan is None
    assert not recipe or origin.notes or notes or not isinstance(json.loads(recipe)["passes"], list)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["passes", "drop_ffn", "blocks", "ir_pass", "for"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(recipe=st.dictionaries(st.sampled_from(["passes", "for", "x"]), values, max_size=3))
def test_no_recipe_breaks_a_report(dense: Path, recipe: dict[str, Any]) -> None:
    plan, notes = plan_again(gp.load(dense), Origin((), recipe))
    assert plan is None or plan.outcomes is not None
    assert all(isinstance(note, str) for note in notes)
