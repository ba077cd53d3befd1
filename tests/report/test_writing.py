"""Making and writing a report: whole or not at all, with a note for what cannot be measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.errors import LoadError, MissingExtraError, RunError, SaveError
from graphprune.report import gather
from graphprune.report.gather import _names
from tests import tiny

QUICK: dict[str, Any] = dict(rounds=2, source=gp.Source(sequence=4), cells=())


def refuse(*_: object, **__: object) -> None:
    raise RunError("the probe says no")


@pytest.fixture
def unrunnable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be run or timed."""
    for name in (
        "profiler.profile",
        "influence.block_influence",
        "timing.bench",
        "compare.verify",
        "roofline.limit_of",
    ):
        monkeypatch.setattr(f"graphprune.{name}", refuse)


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tiny.save(tmp_path / "model.onnx"), tmp_path / "out.html"
    options = ["--rounds", "2", "--sizes", "2x4", "--sequence", "4", "--json"]
    assert run_line(["report", str(model), "--out", str(out), *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "bytes": out.stat().st_size}
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "<title>model.onnx" in text
    assert "2\u00a0×\u00a04" in text and "batch 1 × length 4" in text


@pytest.mark.parametrize("sizes", ["8", "8x", "0x4", "1x32,", "axb", "1x-3"])
def test_sizes_that_are_none_are_refused(
    tmp_path: Path, sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    assert run_line(["report", str(model), "--out", str(tmp_path / "out.html"), "--sizes", sizes]) == 2
    assert "is not like 8x128" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


def test_what_cannot_be_measured_is_noted_on_the_page(tmp_path: Path, unrunnable: None) -> None:
    dense = tiny.save(tmp_path / "dense.onnx")
    model = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "model.onnx", run=False)
    steps: list[str] = []
    out = gp.write_report(model, tmp_path / "out.html", dense=dense, on_step=steps.append, **QUICK)
    text = out.read_text(encoding="utf-8")
    for what in ("the time of the blocks of model.onnx", "importance", "latency and memory", "agreement"):
        assert f"Not measured: {what}. the probe says no" in text
        assert any(what in step for step in steps)
    assert "<del" in text and 'id="latency"' not in text and 'id="metric-time"' not in text


def test_a_dense_model_that_is_not_the_source_is_told(tmp_path: Path, unrunnable: None) -> None:
    dense, other = tiny.save(tmp_path / "dense.onnx"), tiny.save(tmp_path / "other.onnx", seed=1)
    model = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "model.onnx", run=False)
    text = gp.write_report(model, tmp_path / "a.html", dense=other, **QUICK).read_text(encoding="utf-8")
    assert "other.onnx may not be what model.onnx was made from" in text
    text = gp.write_report(model, tmp_path / "b.html", dense=dense, **QUICK).read_text(encoding="utf-8")
    assert "may not be" not in text


def test_the_page_of_a_pruned_model_alone_has_its_recipe(tmp_path: Path, unrunnable: None) -> None:
    dense = tiny.save(tmp_path / "dense.onnx")
    model = gp.prune(gp.load(dense), drop_ffn=[1]).save(tmp_path / "model.onnx", run=False)
    text = gp.write_report(model, tmp_path / "out.html", **QUICK).read_text(encoding="utf-8")
    assert "drop_ffn" in text and "graphprune prune DENSE" in text
    assert "What it holds" in text and "<del" not in text


def test_an_existing_file_is_replaced_whole_or_kept(
    tmp_path: Path, unrunnable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tiny.save(tmp_path / "model.onnx"), tmp_path / "out.html"
    out.write_text("before")
    gp.write_report(model, out, **QUICK)
    whole = out.read_text(encoding="utf-8")
    assert whole.startswith("<!doctype html>")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(SaveError, match="disk full; nothing was written"):
        gp.write_report(model, out, **QUICK)
    assert out.read_text(encoding="utf-8") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.html"]


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data", "notes"])
def test_a_page_replaces_nothing_but_pages(name: str, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    other = tmp_path / name
    if other != model:
        other.write_bytes(b"weights")
    before = other.read_bytes()
    with pytest.raises(SaveError, match=r"exists and is no \.html file: name another one"):
        gp.write_report(model, other, **QUICK)
    assert other.read_bytes() == before


def test_a_target_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save(tmp_path / "model.onnx")
    monkeypatch.setattr(gather, "gather", refuse)
    with pytest.raises(SaveError, match="no such folder"):
        gp.write_report(model, tmp_path / "nowhere" / "out.html", **QUICK)
    with pytest.raises(SaveError, match="is a folder"):
        gp.write_report(model, tmp_path, **QUICK)


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        gp.write_report(tmp_path / "none.onnx", tmp_path / "out.html", **QUICK)
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name}.*pip install 'graphprune\[report\]'"):
        gp.write_report(tiny.save(tmp_path / "model.onnx"), tmp_path / "out.html", **QUICK)


def test_models_are_called_by_what_tells_them_apart() -> None:
    assert _names(Path("/a/model.onnx"), None) == ["model.onnx"]
    assert _names(Path("/a/model.onnx"), Path("/b/model.onnx")) == ["b/model.onnx", "a/model.onnx"]
    assert _names(Path("/a/x"), Path("/b/y")) == ["y", "x"]


def test_images_have_no_length(tmp_path: Path, unrunnable: None) -> None:
    from tools import zoo

    folder = next(zoo.entries("vit")).folder()
    text = gp.write_report(folder, tmp_path / "out.html", **QUICK).read_text(encoding="utf-8")
    assert "random inputs of batch 1." in text
