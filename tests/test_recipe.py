from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphprune import recipe
from graphprune.errors import GraphpruneError, RecipeError
from graphprune.recipe import IrStep, Recipe

IDENTITY = "onnx_ir.passes.common.IdentityEliminationPass"


@dataclass(frozen=True)
class DropThing:
    """Drop a thing."""

    name: ClassVar[str] = "drop_thing"
    blocks: str | tuple[int | str, ...]
    norm: Literal["keep", "drop"] = "keep"
    seed: int = 0
    deep: bool = False

    def plan(self, architecture: object) -> Iterator[object]:
        yield from ()


@dataclass(frozen=True)
class Reorder:
    """Another order."""

    name: ClassVar[str] = "reorder"
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.order)) != len(self.order):
            raise ValueError("an order names each layer once")

    def plan(self, architecture: object) -> Iterator[object]:
        yield from ()


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "discover", lambda: {"drop_thing": DropThing, "reorder": Reorder})


def load(tmp_path: Path, text: str, name: str = "r.yaml") -> Recipe:
    path = tmp_path / name
    path.write_text(text)
    return recipe.load(path)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    expected = Recipe(
        before=(IrStep(IDENTITY),),
        passes=(DropThing((3, 5)), DropThing("2-4", norm="drop", deep=True), Reorder((1, 0))),
    )
    text = f"""
passes:
  - ir_pass: {IDENTITY}
  - drop_thing: [3, 5]
  - drop_thing: {{blocks: 2-4, norm: drop, deep: true}}
  - reorder: [1, 0]
"""
    assert load(tmp_path, text) == expected
    assert load(tmp_path, json.dumps(yaml.safe_load(text), indent="\t"), "r.json") == expected
    assert recipe.parse(json.loads(json.dumps(expected.to_json()))) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, DropThing((3,))),
        ("3,5", DropThing("3,5")),
        ([3, "encoder.1"], DropThing((3, "encoder.1"))),
        ({"blocks": "all", "seed": "7", "deep": "true"}, DropThing("all", seed=7, deep=True)),
    ],
)
def test_options_are_read_kindly(given: object, expected: DropThing) -> None:
    assert recipe.from_options({"drop_thing": given}) == Recipe((expected,))


def test_a_text_with_commas_is_a_sequence_where_one_is_wanted() -> None:
    assert recipe.from_options({"reorder": "2, 0,1"}) == Recipe((Reorder((2, 0, 1)),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping with the key 'passes'"),
        ("- drop_thing: 3", ":1: a recipe is a mapping"),
        ("passes: []", ":1: passes: the list of passes is empty"),
        (
            "passes:\n  - drop_thing: 3\n  - drop_it: 4",
            ":3: passes[1]: there is no pass 'drop_it': the passes are",
        ),
        (
            "passes:\n  - drop_thing: {blocks: 1,\n      nrom: keep}",
            ":3: passes[0].drop_thing.nrom: no such option",
        ),
        (
            "passes:\n  - drop_thing: {blocks: 1,\n      norm: no}",
            ":3: passes[0].drop_thing.norm: False does not",
        ),
        ("passes:\n  - drop_thing: {seed: 1}", ":2: passes[0].drop_thing: drop_thing needs blocks"),
        ("passes:\n  - reorder: [1, 1]", ":2: passes[0].reorder: an order names each layer once"),
        ("passes:\n  - 3", ":2: passes[0]: a step is one pass"),
        ("passes:\n  - ir_pass: os.system", ":2: passes[0]: ir_pass 'os.system' is not an onnx_ir pass"),
        ("passes:\n  - ir_pass: nowhere.Pass", "cannot be imported"),
        (f"passes:\n  - ir_pass: {IDENTITY}\n    options: {{x: 1}}", "does not take these options"),
        (
            f"passes:\n  - drop_thing: 1\n  - ir_pass: {IDENTITY}\n  - drop_thing: 2",
            ":3: passes[1]: an ir_pass stands before or after all pruning passes",
        ),
        ("passes: [", ":1: not valid YAML"),
        ("passes:\n\t- x", ":2: not valid YAML"),
        ("&a [*a]", "a recipe is a mapping"),
        ("passes: &a [*a]", "a step is one pass"),
    ],
)
def test_errors_are_one_line_with_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, text)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "r.yaml"))
    assert "\n" not in str(raised.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"passes: \xff")
    with pytest.raises(RecipeError, match="not a text in UTF-8"):
        recipe.load(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match="No such file"):
        recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="not valid JSON: Expecting"):
        load(tmp_path, "{", "r.json")


def test_an_ir_step_builds_the_pass() -> None:
    assert isinstance(IrStep(IDENTITY).build(), ir.passes.PassBase)


def test_recipes_add_up() -> None:
    one = Recipe((DropThing("1"),), before=(IrStep(IDENTITY),))
    two = Recipe((DropThing("2"),), after=(IrStep(IDENTITY),))
    assert (one + two).steps == (IrStep(IDENTITY), DropThing("1"), DropThing("2"), IrStep(IDENTITY))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["all", "2-4", "drop", "keep", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["blocks", "norm", "seed", "order", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
STEPS = st.dictionaries(
    st.sampled_from(["drop_thing", "reorder", "ir_pass", "options", "y"]), VALUES, max_size=2
)


@given(st.fixed_dictionaries({"passes": st.lists(STEPS | VALUES, max_size=3) | VALUES}) | VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_recipe_is_read_or_refused(data: object) -> None:
    try:
        read = recipe.parse(data)
    except GraphpruneError as error:
        assert isinstance(error, RecipeError) and "\n" not in str(error)
    else:
        assert recipe.parse(read.to_json()) == read


@given(st.text(max_size=60) | st.text("passe:drop_thing[]{}-, \n\t&*!|>'\"#%@0123", max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    for name in ("r.yaml", "r.json"):
        (tmp_path / name).write_text(text, encoding="utf-8", errors="replace")
        try:
            recipe.load(tmp_path / name)
        except GraphpruneError as error:
            assert "\n" not in str(error)
