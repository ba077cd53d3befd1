"""`heal` from the model and selections to a file; and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.data.dataset import read_data
from graphprune.errors import SelectionError
from graphprune.healing.asked import choice_of, heal
from graphprune.session import open_sessions
from graphprune.survey import inspect
from tests import tiny
from tests.healing.test_calibration import ONE, random_data

ATTENTION, FFN = "encoder.1.attention", "encoder.1.ffn"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx")


@pytest.fixture
def data(path: Path, tmp_path: Path) -> Path:
    random_data(path, tmp_path, rows=64)
    return tmp_path / "data.npz"


def test_selections_name_layers_blocks_and_kinds(path: Path) -> None:
    architectures = [file.architecture for file in inspect(gp.load(path))]
    choice = choice_of(architectures, {"drop": ["ffn:1-2"], "linear": ["0"], "mean": [ATTENTION]})
    assert choice == {
        "encoder.0.attention": "linear", "encoder.0.ffn": "linear", ATTENTION: "mean",
        FFN: "drop", "encoder.2.ffn": "drop",
    }  # fmt: skip


def test_selections_that_make_no_sense(path: Path) -> None:
    architectures = [file.architecture for file in inspect(gp.load(path))]
    with pytest.raises(SelectionError, match="no block is named"):
        choice_of(architectures, {"drop": []})
    with pytest.raises(SelectionError, match=f"{FFN} is named for drop and for mean"):
        choice_of(architectures, {"drop": ["ffn:1"], "mean": [FFN]})
    with pytest.raises(SelectionError, match="layer 9 does not exist"):
        choice_of(architectures, {"drop": ["9"]})
    with pytest.raises(SelectionError, match="no block of kind conv"):
        choice_of(architectures, {"drop": ["conv:1"]})


def test_the_healed_model_is_nearer_to_the_dense_one_than_the_pruned_one(
    path: Path, data: Path, tmp_path: Path
) -> None:
    healed = heal(path, read_data(data), drop=FFN, settings=ONE)
    out = healed.save(tmp_path / "healed.onnx")
    assert (tmp_path / "healed.healed.npz").is_file()
    gp.prune(gp.load(path), drop_ffn=[1]).save(tmp_path / "pruned.onnx")
    fresh = np.random.default_rng(9).standard_normal((5, 6, tiny.WIDTH)).astype(np.float32)
    dense, found, pruned = (
        open_sessions(one, ONE)[0].run({"x": fresh})["y"] for one in (path, out, tmp_path / "pruned.onnx")
    )
    assert np.square(found - dense).sum() < 0.9 * np.square(pruned - dense).sum()
    assert healed.metric == "cosine" and healed.dense == 1
    assert 0 < healed.healing.error < 1


def test_the_command(path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "heal",
        str(path),
        str(tmp_path / "out.onnx"),
        "--data",
        str(data),
        "--drop",
        "ffn:1",
        "--threads",
        "1",
    ]
    assert run_line(line) == 0
    shown = capsys.readouterr().out
    assert "wrote and checked" in shown and FFN in shown and "output" in shown
    assert run_line([*line, "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["choice"] == {FFN: "drop"}
    assert told["out"] == str(tmp_path / "out.onnx")
    assert told["after"]["parameters"] < told["before"]["parameters"]
    assert [step["block"] for step in told["steps"]][:2] == [ATTENTION, FFN]


def test_a_healed_model_can_be_made_again_from_its_recipe(path: Path, data: Path, tmp_path: Path) -> None:
    out = heal(path, read_data(data), linear=FFN, settings=ONE).save(tmp_path / "healed.onnx")
    history = json.loads(gp.load(out).files[0].model.metadata_props["graphprune.recipe"])
    (tmp_path / "recipe.json").write_text(json.dumps(history))
    again = gp.prune(gp.load(path), recipe=tmp_path / "recipe.json").save(tmp_path / "again.onnx")
    x = np.ones((1, 3, tiny.WIDTH), np.float32)
    one, two = (open_sessions(file, ONE)[0].run({"x": x})["y"] for file in (out, again))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no block is named"),
        (["--drop", "encoder.7.ffn"], "encoder.7.ffn"),
        (["--drop", "0"], "no tokenizer"),
        (["--drop", "1", "--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line(
    path: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(["heal", str(path), str(tmp_path / "out.onnx"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "out.onnx").exists()
