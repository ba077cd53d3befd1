"""How far two forms of a model are apart, and how far they may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphprune import sameness
from graphprune.errors import CheckError, RunError
from graphprune.play import Source
from graphprune.sameness import gap
from tests import tiny

INF = float("inf")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (np.array([1.0, 4.0]), np.array([1.0, 3.0]), 0.25),
        (np.array([0.1, 0.2]), np.array([0.1, 0.3]), 0.1),
        (np.array([1.0, np.nan, np.inf]), np.array([1.0, np.nan, np.inf]), 0.0),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), INF),
        (np.array([1.0, np.inf]), np.array([1.0, -np.inf]), INF),
        (np.zeros((2, 3)), np.zeros((3, 2)), INF),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array([3, 7]), np.array([3, 7]), 0.0),
        (np.array(["a"], object), np.array(["b"], object), INF),
        ([np.ones(2), np.ones(3)], [np.ones(2), np.ones(3) * 1.5], 0.5),
        ([np.ones(2)], [np.ones(2), np.ones(3)], INF),
        ([{"cat": 0.5}], [{"cat": 0.5}], 0.0),
        ([{"cat": 0.5}], [{"cat": 0.6}], INF),
        (np.array([1.0]), None, INF),
    ],
)
def test_the_gap_of_two_outputs(one: object, other: object, apart: float) -> None:
    assert sameness._gap(one, other) == pytest.approx(apart)


def models(folder: Path) -> tuple[Path, Path]:
    return tiny.save(folder / "a.onnx"), tiny.save(folder / "b.onnx", seed=1)


def test_a_model_is_like_itself(tmp_path: Path) -> None:
    one, _ = models(tmp_path)
    assert gap(one, one, Source(), steps=0, level="all", lenient=False) == 0


def test_another_model_is_not(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"where 0\.0001 is allowed"):
        gap(*models(tmp_path), Source(), steps=0, level="disabled", lenient=False)


def test_what_optimizing_changes_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's own gap between levels is the measure, and half as much again."""
    found = iter((0.3, 0.2, 0.31, 0.2))
    monkeypatch.setattr(sameness, "_apart", lambda *_: next(found))
    one, other = models(tmp_path)
    assert gap(one, other, Source(), steps=0, level="all", lenient=False) == 0.3
    with pytest.raises(CheckError, match=r"0\.31 off the source's .*, where 0\.3 is allowed"):
        gap(one, other, Source(), steps=0, level="all", lenient=False)


def test_a_source_that_does_not_run_says_why(tmp_path: Path) -> None:
    one, other = models(tmp_path)
    wrong = Source({"x": np.zeros((1, 2, 3), np.float32)})
    assert "a.onnx" in str(gap(one, other, wrong, steps=0, level="all", lenient=True))
    with pytest.raises(RunError, match=r"a\.onnx"):
        gap(one, other, wrong, steps=0, level="all", lenient=False)
