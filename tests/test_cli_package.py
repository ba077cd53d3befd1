"""`graphprune package` as a user sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from graphprune.cli import run_line
from tests import small, tiny


def line(*arguments: object) -> int:
    return run_line([str(argument) for argument in arguments])


def test_tables_say_what_was_gained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tiny.save(tmp_path / "model.onnx"), tmp_path / "model.ort"
    assert line("package", model, out, "--target", "ort", "--fix", "batch=1") == 0
    shown = capsys.readouterr().out
    for text in ("bytes on the disk", "ms to load", "NNAPI", "CoreML MLProgram", "XNNPACK"):
        assert text in shown
    assert "open: sequence (--fix gives them sizes)" in shown
    assert "operators: model.required_operators.config" in shown
    assert f"wrote and checked {out}: its outputs differ by 0 of the largest at most" in shown
    if sys.platform == "linux":
        assert "MB at most, to load and run" in shown


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = small.write_folder(tmp_path / "small"), tmp_path / "out"
    given = ("--target", "ort", "--no-measure", "--types", "--level", "basic", "--json")
    assert line("package", source, out, *given) == 0
    found = json.loads(capsys.readouterr().out)
    (file,) = found.pop("files")
    assert found == {
        "target": "ort",
        "level": "basic",
        "style": "fixed",
        "platform": "any",
        "out": str(out),
        "config": "required_operators_and_types.config",
        "operators": 3,
        "bytes_before": sum((source / name).stat().st_size for name in ("model.onnx", "weights.bin")),
        "bytes_after": (out / "model.ort").stat().st_size,
        "open_axes": ["batch", "sequence"],
        "gap": 0.0,
        "uncompared": "",
        "before": None,
        "after": None,
    }
    assert (file["name"], file["source"], file["unchecked"]) == ("model.ort", "model.onnx", "")
    assert [one["provider"] for one in file["partitions"]] == [
        *("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram", "XNNPACK")
    ]
    assert set(file["partitions"][0]) == {
        *("provider", "nodes", "supported", "partitions", "sizes", "unsupported", "open_shapes"),
        *("verdict", "if_fixed"),
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--target", "tensorrt"), "there is no target 'tensorrt'; there is ort"),
        ((), "--target"),
        (("--target", "ort", "--fix", "rows=1"), "there is no axis rows to fix; open are batch, sequence"),
        (("--target", "ort", "--fix", "rows"), "'rows' fixes no size"),
        (("--target", "ort", "--level", "most"), "there is no optimization level 'most'"),
        (
            ("--target", "ort", "--platform", "x86"),
            "there is no platform 'x86': choose one of any, arm, native",
        ),
        (("--target", "ort", "--text", "a"), "no tokenizer.json"),
    ],
)
def test_bad_options_end_with_code_2(
    options: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    assert line("package", model, tmp_path / "model.ort", *options) == 2
    assert problem in capsys.readouterr().err
    assert small.names(tmp_path) == {"model.onnx"}


def test_packages_run_and_verify_and_say_what_they_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny.save(tmp_path / "model.onnx"), tmp_path / "model.ort"
    assert line("package", model, out, "--target", "ort", "--no-measure", "--batch", 2) == 0
    assert line("run", out) == 0
    capsys.readouterr()
    assert line("verify", model, out, "--max-abs", 1e-5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    for command in ("inspect", "profile"):
        assert line(command, out) == 2
        assert "is in ONNX Runtime's own format" in capsys.readouterr().err
