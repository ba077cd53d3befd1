from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphprune.cli import run_line
from tests import tiny


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny.save(tmp_path / "tiny.onnx"))


def test_commands_share_their_options(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "verify", "bench", "profile", "generate"):
        assert run_line([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--provider" in shown and "--io-binding" in shown and "--cache" in shown, command
        assert ("--npz" in shown) == (command != "generate")


def test_settings_reach_the_runtime(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch", "3", "--sequence", "4", "--threads", "1", "--memory", "lean", "--level", "basic"]
    assert run_line(["run", model, *options, "--cache", str(tmp_path / "kept"), "--json"]) == 0
    shapes = [one["shape"] for one in json.loads(capsys.readouterr().out)["calls"][0]["outputs"]]
    assert shapes[0][:2] == [3, 4]
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--provider", "nonsense"], "there is no provider 'nonsense'"),
        (["--provider", ""], "one or more providers"),
        (["--level", "most"], "no optimization level 'most'"),
        (["--memory", "none"], "fast or lean"),
        (["--provider-option", "device_id=1"], "is not like cuda.device_id=0"),
        (["--provider-option", "cuda.device_id=1"], "'cuda', which is not asked for"),
        (["--npz", "a.npz", "--text", "b"], "texts or arrays, not both"),
        (["--batch", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_line(
    model: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(["run", model, *options]) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.replace("│", " ").split()) and "Traceback" not in shown
