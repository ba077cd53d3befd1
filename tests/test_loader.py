"""Who will load the result: asked for, written in a recipe, or told from the bundle's folder."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.errors import RecipeError
from graphprune.keeping import PAIRS
from graphprune.recipe import Recipe, parse
from tests.surgery.test_signature import with_cross

STEPS = {"passes": [{"drop_attention": "1"}]}


def folder(path: Path, *configs: str) -> Path:
    """A decoder of three layers with self- and cross-caches, and these configs beside it."""
    path.mkdir()
    ir.save(with_cross(), path / "decoder.onnx")
    for name in configs:
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize(
    ("configs", "loader"),
    [
        ((), "plain"),
        (("config.json",), "optimum"),
        (("genai_config.json",), "genai"),
        (("config.json", "genai_config.json"), "genai"),
    ],
)
def test_it_is_told_from_the_folder(tmp_path: Path, configs: tuple[str, ...], loader: str) -> None:
    bundle = gp.load(folder(tmp_path / "model", *configs))
    assert gp.plan(bundle, parse(STEPS)).loader == loader
    assert {file.architecture.loader for file in gp.inspect(bundle)} == {loader}


def test_a_single_file_is_plain(tmp_path: Path) -> None:
    bundle = gp.load(folder(tmp_path / "model", "config.json") / "decoder.onnx")
    assert gp.plan(bundle, parse(STEPS)).loader == "plain"


def test_who_asks_is_heard_before_the_recipe_and_that_before_the_folder(tmp_path: Path) -> None:
    bundle = gp.load(folder(tmp_path / "model", "config.json"))
    recipe = parse({"for": "genai", **STEPS})
    assert gp.plan(bundle, recipe).loader == "genai"
    assert gp.plan(bundle, recipe, loader="plain").loader == "plain"
    assert gp.prune(bundle, recipe=recipe, loader="plain").plan.loader == "plain"


def test_it_decides_about_the_cache(tmp_path: Path) -> None:
    bundle = gp.load(folder(tmp_path / "model"))
    inputs = {
        loader: len(gp.prune(bundle, drop_attention="1", loader=loader).bundle.files[0].model.graph.inputs)
        for loader in ("optimum", "genai", "plain")
    }
    assert inputs == {"optimum": 13, "genai": 11, "plain": 11}


def test_recipes_keep_it() -> None:
    assert parse(parse({"for": "plain", **STEPS}).to_json()) == parse({"for": "plain", **STEPS})
    assert "for" not in parse(STEPS).to_json()
    assert (parse({"for": "plain", **STEPS}) + Recipe()).loader == "plain"
    assert (parse({"for": "plain", **STEPS}) + Recipe(loader="genai")).loader == "genai"


@pytest.mark.parametrize("name", ["onnx", "", None, 3, ["plain"]])
def test_no_such_loader(name: object) -> None:
    with pytest.raises(RecipeError, match=r"recipe: for: there is no loader .* optimum, genai, plain"):
        parse({"for": name, **STEPS})


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(folder(tmp_path / "model", "config.json"))
    line = ["prune", model, "--drop-attention", "1", "--dry-run"]
    assert run_line([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["for"] == "optimum"
    assert PAIRS in said["outcomes"][0]["what"]
    assert run_line([*line, "--for", "plain"]) == 0
    assert "caches as plain reads them" in capsys.readouterr().out
    assert run_line([*line, "--for", "torch"]) == 2
    assert "--for: there is no loader 'torch'" in capsys.readouterr().err
