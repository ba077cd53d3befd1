"""The sections about a search: read from what it wrote beside its model, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib")

import graphprune as gp
from graphprune.report.ancestry import FileOrigin, Origin, origin_of
from graphprune.report.plot_search import frontier_plot
from graphprune.report.searched import SearchedRun, read_searched
from graphprune.report.sections.healing import healing
from graphprune.report.sections.search import search as search_section
from graphprune.report.subject import Subject
from graphprune.searching.flow import search
from graphprune.settings import Settings
from tests import tiny
from tests.healing.test_calibration import random_data
from tests.report.test_plots import HOSTILE

ORIGIN = Origin((FileOrigin("model.onnx", "own", source_sha256="dense"),))
RUN: dict[str, Any] = {
    "format": 1, "source_sha256": "dense", "targets": ["speedup=1.5"], "cost": "latency",
    "judged": {"metric": "cosine", "better": "higher", "dense": 1.0, "fitted": 10, "judged": 5},
    "dense": {"latency": 2.0},
    "best": {"choice": {"a": "drop"}, "price": {"latency": 1.2}, "score": 0.9, "kept": 0.9, "error": 0.1},
    "steps": [
        {"phase": "greedy", "changed": {"a": "drop"}, "price": {"latency": 1.2}, "score": 0.9, "kept": 0.9,
         "tried": 4}
    ],
    "repairs": [{"block": "a", "action": "drop", "repair": "norm", "before": 0.5, "after": 0.1, "note": ""}],
    "choices": [
        {"choice": {"a": "drop"}, "price": {"latency": 1.2}, "score": 0.9, "kept": 0.9, "front": True},
        {"choice": {"b": "linear"}, "price": {"latency": 1.5}, "score": 0.8, "kept": 0.8, "front": False},
        {"choice": {}, "price": {"latency": 2.0}, "score": 1.0, "kept": 1.0, "front": True},
        {"choice": {"a": "mean"}, "price": {"latency": 1.0}, "score": None, "kept": None, "front": False},
    ],
    "reasons": [{"block": "a", "action": "drop", "instead": "keep", "kept": 0.1, "cost": 0.4}],
}  # fmt: skip


def subject(run: dict[str, Any] | None) -> Subject:
    """A subject that has nothing but a search."""
    found = None if run is None else SearchedRun.model_validate(run)
    empty = Subject(None, None, ORIGIN, None, (), Settings(), "", "")  # type: ignore[arg-type]
    return replace(empty, searched=found)


def test_a_search_is_shown() -> None:
    section = search_section(subject(RUN))
    assert section is not None
    for part in ("speedup=1.5", "4 choices", "Pareto set", "60.0%", "drop a", "greedy", "+40.00%", "<svg"):
        assert part in section.html
    healed = healing(subject(RUN))
    assert healed is not None and "norm" in healed.html and "0.1" in healed.html


def test_without_a_search_there_is_nothing_to_say() -> None:
    assert search_section(subject(None)) is None and healing(subject(None)) is None
    assert healing(subject({**RUN, "repairs": []})) is None


def test_names_are_escaped() -> None:
    hostile = json.loads(json.dumps(RUN).replace('"a"', json.dumps(HOSTILE)).replace("cosine", "<script>"))
    for section in (search_section(subject(hostile)), healing(subject(hostile))):
        assert section is not None and "<script" not in section.html


def test_the_plot_says_what_each_choice_is() -> None:
    plot = frontier_plot(SearchedRun.model_validate(RUN))
    assert "60.0% of the latency, 90.0% of the quality: drop a" in plot
    assert "75.0% of the latency, 80.0% of the quality: linear b" in plot
    assert "100.0% of the latency, 100.0% of the quality: dense" in plot


def test_a_search_is_read_where_it_made_the_model(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(json.dumps(RUN))
    found, note = read_searched(tmp_path, ORIGIN)
    assert found is not None and found.best.choice == {"a": "drop"} and not note
    other = Origin((FileOrigin("model.onnx", "own", source_sha256="another"),))
    assert read_searched(tmp_path, other) == (None, "")
    assert read_searched(tmp_path / "none", ORIGIN) == (None, "")


def test_what_a_search_really_writes_is_read(tmp_path: Path) -> None:
    path, out = tiny.save(tmp_path / "tiny.onnx"), tmp_path / "out.onnx"
    data = random_data(path, tmp_path, rows=40)
    written = search(
        path, out, data, targets=["parameters=0.8"], trials=10, settings=Settings(threads=1), actions=["drop"]
    )
    found, note = read_searched(out, origin_of(gp.load(out)))
    assert found is not None and not note
    assert found.best.choice == dict(written.best.choice)
    assert search_section(replace(subject(None), searched=found)) is not None


@settings(deadline=None, max_examples=50)  # a plot takes a while
@given(
    content=st.binary(max_size=300)
    | st.dictionaries(
        st.sampled_from([*RUN]),
        st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.just(RUN["choices"]),
    ).map(lambda changed: json.dumps({**RUN, **changed}).encode())
)
def test_any_file_is_read_or_noted(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "search.json").write_bytes(content)
    found, note = read_searched(folder, ORIGIN)
    assert found is None or not note
    if found is not None:
        assert frontier_plot(found).startswith("<svg")
