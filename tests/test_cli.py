from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphprune import cli
from graphprune.cli import run_line
from tests import tiny


def line(*arguments: object) -> int:
    return run_line([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    ["export", "inspect", "passes", "prune", "run", "bench", "verify", "generate", "profile", "report"],
)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"graphprune {command}" in shown
    assert "--json" in shown


def test_no_arguments_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert line("--help") == 0
    assert "Exit codes" in capsys.readouterr().out
    assert line("--version") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{tmp}/none.onnx"], "none.onnx does not exist"),
        (["inspect", "{tmp}/bad.onnx"], "bad.onnx"),
        (
            ["prune", "{tmp}/model.onnx", "{tmp}/out.onnx", "--recipe", "{tmp}/none.yaml"],
            "none.yaml: cannot be",
        ),
        (["verify", "{tmp}/model.onnx", "{tmp}/bad.onnx"], "bad.onnx"),
        (["run", "{tmp}/model.onnx", "--npz", "{tmp}/bad.onnx"], "not an .npz file"),
        (["run", "{tmp}/model.onnx", "--text", "hello"], "no tokenizer.json"),
        (["run", "{tmp}/model.onnx", "--text-file", "{tmp}/bad.onnx"], "cannot be read as text"),
        (["verify", "{tmp}/model.onnx", "{tmp}/model.onnx", "--max-kl", "1"], "no output is called logits"),
        (["export", "{tmp}/nowhere", "{tmp}/out"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    tiny.save(tmp_path / "model.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xfenot onnx")
    before = sorted(tmp_path.iterdir())
    assert line(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["inspect"], ["inspect", "a", "b"], ["bench", "m", "--rounds", "x"], ["prune", "m"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert line(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_its_own_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: list[str]) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(cli, "build_app", broken)
    assert line("passes") == 70
    assert capsys.readouterr().err == (
        "internal error: ZeroDivisionError: oh no (please report this; --debug shows where it happened)\n"
    )
    assert line("--debug", "passes") == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_app", interrupted)
    assert line("passes") == 130


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, tiny.WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    model = tiny.save(tmp_path / "model.onnx")
    assert line("run", model, "--npz", tmp_path / "x.npz", "--save", tmp_path / "y.npz", "--json") == 0
    (call,) = json.loads(capsys.readouterr().out)["calls"]
    expected = tiny.reference(x)
    assert call["outputs"][0]["shape"] == [2, 4, tiny.WIDTH]
    assert call["outputs"][0]["mean"] == pytest.approx(expected.mean(), rel=1e-3)
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_allclose(saved["y"], expected, atol=1e-5)


def test_verify_sets_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (tiny.save(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1))
    assert line("verify", a, a, "--max-abs", 0) == 0
    assert "max |Δ|" in capsys.readouterr().out
    assert line("verify", a, b, "--max-abs", "1e-6", "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert not result["passed"] and "max_abs" in result["broken"][0]
    assert "limit broken: y: max_abs" in captured.err


def test_the_installed_program_completes() -> None:
    program = Path(sys.executable).with_name("graphprune")
    if not program.exists():
        pytest.skip("graphprune is not installed beside this interpreter")
    environment = os.environ | {
        "_GRAPHPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": "graphprune prune --dry",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert "--dry-run" in done.stdout
