"""The section about early exits: read from what the command wrote beside its model, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib")

import graphprune as gp
from graphprune.report.ancestry import FileOrigin, Origin, origin_of
from graphprune.report.exited import ExitsRun, read_exits
from graphprune.report.plot_exits import curve_plot, histogram_plot
from graphprune.report.sections.exits import exits
from graphprune.report.subject import Subject
from graphprune.settings import Settings
from tests.exits.test_asked import digits
from tests.report.test_plots import HOSTILE
from tools.zoo_trained import trained

ORIGIN = Origin((FileOrigin("model.onnx", "own", source_sha256="dense"),))


def share(value: float) -> dict[str, float]:
    return {"value": value, "error": 0.01}


def point(threshold: float, depth: float, right: float) -> dict[str, float]:
    errors = {"depth_error": 0.05, "right_error": 0.01, "gained": 0.005, "gained_error": 0.002}
    return {"threshold": threshold, "depth": depth, "right": right, **errors}


RUN: dict[str, Any] = {
    "format": 1, "source_sha256": "dense", "data": "train.tsv", "layers": 6, "head": "ridge",
    "criterion": "confidence", "batch_mode": "per-sample", "goal": "accuracy", "chosen": "by one error",
    "fitted": 1000, "calibrated": 900,
    "held": {
        "samples": 200, "point": point(0.7, 2.6, 0.83), "best": [5, share(0.82)], "agreement": None,
        "perplexity": None, "curve": [point(2.0, 6, 0.82), point(0.7, 2.6, 0.83), point(-1.0, 2, 0.79)],
        "exits": [
            {"layers": 2, "threshold": 0.7, "left": 150, "alone": share(0.79), "here": share(0.9)},
            {"layers": 6, "threshold": None, "left": 50, "alone": share(0.81), "here": None},
        ],
        "examples": [{"layers": 2, "text": "a fine film", "answer": "1", "right": True}],
    },
}  # fmt: skip


def subject(run: dict[str, Any] | None) -> Subject:
    """A subject that has nothing but exits."""
    found = None if run is None else ExitsRun.model_validate(run)
    empty = Subject(None, None, ORIGIN, None, (), Settings(), "", "")  # type: ignore[arg-type]
    return replace(empty, exits=found)


def test_exits_are_shown() -> None:
    section = exits(subject(RUN))
    assert section is not None and exits(subject(None)) is None
    text = " ".join(section.html.split())
    for part in (
        "2.60 of 6 layers", "accuracy is 83.00% ± 1.00%", "after 5, has 82.00% ± 1.00%", "+0.50% ± 0.20%",
        "a fine film", "75.0%", "the rest", "90.00% ± 1.00%", "<svg",
    ):  # fmt: skip
        assert part in text, part


def test_plots_are_xml_and_say_what_is_drawn() -> None:
    run = ExitsRun.model_validate(RUN)
    curve, histogram = curve_plot(run), histogram_plot(run)
    assert "threshold 0.7: 2.60 of 6 layers, 83.00% right" in curve
    assert "after layer 2: 75.0%" in histogram
    for one in (curve, histogram):
        ElementTree.fromstring(one)


def test_texts_are_escaped() -> None:
    hostile = json.loads(
        json.dumps(RUN).replace('"a fine film"', json.dumps(HOSTILE)).replace("ridge", "<script>")
    )
    section = exits(subject(hostile))
    assert section is not None and "<script" not in section.html


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    model = trained("vit")
    gp.fit_exits(model, digits(tmp_path), at=(2, 4), settings=Settings(threads=1)).save(tmp_path / "out")
    found, note = read_exits(tmp_path / "out", origin_of(gp.load(tmp_path / "out")))
    assert found is not None and not note and [one.layers for one in found.held.exits] == [2, 4, 6]
    section = exits(replace(subject(None), exits=found))
    assert section is not None and "translator heads" in section.html
    assert read_exits(tmp_path / "out", ORIGIN) == (None, "")


@settings(deadline=None)
@given(
    key=st.sampled_from(["layers", "held", "goal", "fitted", "source_sha256", "data"]),
    value=st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda one: st.lists(one)),
)
def test_a_file_of_a_stranger_is_a_note_at_worst(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "exits.json").write_text(json.dumps({**RUN, key: value}))
    found, note = read_exits(folder, ORIGIN)
    if found is not None:
        section = exits(replace(subject(None), exits=found))
        assert section is not None
    elif note:
        assert "exits.json cannot be read as what exits wrote" in note
