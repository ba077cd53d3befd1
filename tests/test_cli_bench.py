from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from graphprune.cli import run_line
from graphprune.cli_groups import Grid
from tests import tiny

QUICK = ("--rounds", 2, "--loads", 2, "--warmup", 0, "--no-footprint")
Line = Callable[..., int]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two models in the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    for name, layers in (("a.onnx", 2), ("b.onnx", 1)):
        tiny.save(tmp_path / name, layers=layers)
    return "a.onnx", "b.onnx"


def line(*arguments: object) -> int:
    return run_line(["bench", *map(str, arguments)])


def test_json_has_every_size_and_model(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert line(*models, "--batch", "1,2", "--sequence", "3, 5", *QUICK, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == 1 and found["baseline"] == "a.onnx"
    assert found["settings"]["threads"] == 1 and found["loads"] == 2
    assert [(one["batch"], one["sequence"], one["model"]) for one in found["timings"]] == [
        (batch, sequence, model) for batch in (1, 2) for sequence in (3, 5) for model in models
    ]
    assert [one["bytes"] for one in found["models"]] == [Path(one).stat().st_size for one in models]
    first, second = found["timings"][:2]
    assert first["ratio"] is None and second["ratio"] > 0
    assert found["left_out"] == found["notes"] == []


def test_the_csv_has_what_the_json_has(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert line(*models, *QUICK, "--csv", "out.csv", "--json") == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, timing, path in zip(rows, timings, models, strict=True):
        assert {key: row[key] for key in timing} == {
            key: "" if value is None else str(value) for key, value in timing.items()
        }
        assert row["bytes"] == str(Path(path).stat().st_size)
    assert sorted(path.name for path in Path().iterdir()) == ["a.onnx", "b.onnx", "out.csv"]


def test_tables(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One for every size, one for all; columns without figures stay out."""
    assert line(*models, "--sequence", "3,5", *QUICK) == 0
    shown = capsys.readouterr().out
    assert "batch 1, sequence 3\n" in shown and "batch 1, sequence 5\n" in shown
    assert shown.count("95% interval") == 2 and "takes 6 loads" in shown
    assert shown.count("MB on disk") == 1
    assert not any(name in shown for name in ("tokens/s", "peak", "GMAC/s", "load ms"))


def test_memory_and_the_machines_peak_have_columns(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert line(models[1], *QUICK[:-1], "--roofline") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("peak MB", "load ms", "GMAC/s", "of peak"))


@pytest.mark.parametrize(("name", "ratio_of"), [("1", "b.onnx"), ("2", "a.onnx"), ("./b.onnx", "a.onnx")])
def test_the_baseline_is_named_or_numbered(
    name: str, ratio_of: str, models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert line(*models, *QUICK, "--baseline", name, "--json") == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert [one["model"] for one in timings if one["ratio"] is not None] == [ratio_of]


def test_what_is_left_out_is_told(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("unused")
    assert line(models[0], "--batch", f"1,{1 << 60}", *QUICK) == 0
    shown = capsys.readouterr().out
    assert f"left out: a.onnx at batch {1 << 60}, sequence 128: inputs of this size" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,x"), "'1,x' is not like 1,8,32"),
        (("--sequence", "0"), "'0' is not like"),
        (("--batch", "-1"), "is not like"),
        (("--sequence", ""), "is not like"),
        (("--baseline", "3"), "'3' is none of the models"),
        (("--baseline", "0"), "none of the models"),
        (("--csv", "nowhere/out.csv"), "there is no folder"),
        (("--rounds", "1"), "rounds"),
        (("--npz", "x.npz", "--batch", "1,2"), "a size of their own"),
        (("--npz", "x.npz"), "not an .npz file"),
        (("--level", "most"), "no optimization level"),
    ],
)
def test_bad_options_end_with_exit_code_2(
    arguments: tuple[str, ...], message: str, models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert line(*models, *QUICK, *arguments) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown and "Traceback" not in shown
    assert sorted(path.name for path in Path().iterdir()) == ["a.onnx", "b.onnx"]


def test_a_csv_that_cannot_be_written_is_an_error_after_the_results(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    assert line(*models, *QUICK, "--csv", "folder") == 2
    captured = capsys.readouterr()
    assert "median ms" in captured.out and "cannot write folder" in captured.err


@given(st.text(st.characters(codec="utf-8"), max_size=12) | st.from_regex(r"[0-9, ]{1,9}", fullmatch=True))
def test_sizes_are_numbers_above_0_or_refused(text: str) -> None:
    try:
        sources = Grid(batch=text, sequence="4").sources(Path("none"))
    except typer.BadParameter:
        return
    batches = [one.batch for one in sources]
    assert batches and min(batches) > 0 and len(set(batches)) == len(batches)
