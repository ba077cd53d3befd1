from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import GraphpruneError, LoadError, SaveError
from graphprune.searching.evaluating import Quality
from graphprune.searching.space import Space
from graphprune.searching.trials import Trials, open_trials

SPACE = Space(("a", "b"), {"a": ("drop", "linear"), "b": ("drop",)})
DROPPED, BOTH = ("drop", "keep"), ("linear", "drop")


def stored(path: Path | None, *, resume: bool = False, model: str = "x") -> Trials:
    return open_trials(SPACE, path, {"model": model, "seed": 0}, resume=resume)


def fill(trials: Trials) -> None:
    trials.add("all", DROPPED, {"latency": 0.5, "size": 7.0}, "latency", Quality(0.8, 0.95, 0.1))
    trials.add(
        "all", BOTH, {"latency": 0.3, "size": 5.0}, "latency", Quality(math.nan, math.nan, reason="no")
    )


def test_what_was_stored_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    fill(stored(path))
    again = stored(path, resume=True)
    assert again.find("all", DROPPED) == Quality(0.8, 0.95, 0.1)
    broken = again.find("all", BOTH)
    assert broken is not None and math.isnan(broken.kept) and broken.reason == "no"
    assert again.find("small", DROPPED) is None and again.find("all", ("keep", "keep")) is None
    assert [one.price for one in again.of("all")] == [
        {"latency": 0.5, "size": 7.0},
        {"latency": 0.3, "size": 5.0},
    ]


def test_a_choice_is_stored_once(tmp_path: Path) -> None:
    trials = stored(tmp_path / "trials")
    fill(trials)
    fill(trials)
    assert len(trials.of("all")) == len(stored(tmp_path / "trials", resume=True).of("all")) == 2


def test_facts_are_remembered(tmp_path: Path) -> None:
    assert stored(tmp_path / "trials").remember("costs", lambda: {"a": 1.5}) == {"a": 1.5}
    again = stored(tmp_path / "trials", resume=True)
    assert again.remember("costs", lambda: pytest.fail("made again")) == {"a": 1.5}


def test_optuna_reads_the_file(tmp_path: Path) -> None:
    """What its dashboard and its plots take: parameters, values, the Pareto set."""
    fill(stored(tmp_path / "trials"))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "trials"))
    study = optuna.load_study(study_name="all", storage=optuna.storages.JournalStorage(backend))
    (best,) = study.best_trials
    assert best.params == {"a": "drop", "b": "keep"} and best.values == [0.5, 0.95]
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL"]


def test_trials_that_are_there_are_not_lost(tmp_path: Path) -> None:
    fill(stored(tmp_path / "trials"))
    with pytest.raises(SaveError, match="holds the trials of a search: go on with it by --resume"):
        stored(tmp_path / "trials")


def test_a_search_that_found_nothing_is_begun_anew(tmp_path: Path) -> None:
    stored(tmp_path / "trials").remember("costs", lambda: 1)
    assert stored(tmp_path / "trials", model="y").remember("costs", lambda: 2) == 2


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for content in (b"no end", b"one line\n and half", b"{}", b'{"op": 1}\n'):
        path.write_bytes(content)
        for resume in (True, False):
            with pytest.raises(LoadError, match="is no file of a search"):
                stored(path, resume=resume)
        assert path.read_bytes() == content


def test_another_search_is_told(tmp_path: Path) -> None:
    fill(stored(tmp_path / "trials"))
    with pytest.raises(LoadError, match="holds another search: its model is x, not y"):
        stored(tmp_path / "trials", resume=True, model="y")


def test_a_line_that_a_kill_left_half_written_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    fill(stored(path))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    again = stored(path, resume=True)
    again.add("all", ("keep", "drop"), {"latency": 0.6}, "latency", Quality(0.7, 0.9))
    assert path.read_bytes().startswith(whole)
    assert len(stored(path, resume=True).of("all")) == 3


def test_half_of_a_trial_is_as_good_as_none(tmp_path: Path) -> None:
    """Killed between any two lines."""
    fill(stored(tmp_path / "whole"))
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        path = tmp_path / f"first-{count}"
        path.write_bytes(b"".join(lines[:count]))
        again = stored(path, resume=True)
        fill(again)
        assert [one.picks for one in again.of("all")] == [DROPPED, BOTH]


def test_a_lock_that_a_kill_left_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.searching.trials._GRACE", 3)
    path = tmp_path / "trials"
    fill(stored(path))
    path.with_name("trials.lock").touch()
    stored(path, resume=True).add("all", ("keep", "drop"), {"latency": 0.6}, "latency", Quality(0.7, 0.9))
    assert not path.with_name("trials.lock").exists()


def test_without_a_file_trials_are_in_memory() -> None:
    trials = stored(None)
    fill(trials)
    assert len(trials.of("all")) == 2


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "trials"
    path.write_bytes(content)
    try:
        stored(path, resume=True)
    except GraphpruneError as error:
        assert str(path) in str(error)
