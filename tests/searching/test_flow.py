"""`search` from a model and data to what it writes; on the command line, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.data.dataset import Data
from graphprune.data.judging import open_judge
from graphprune.errors import CheckError, GraphpruneError, LoadError, RunError, SaveError, SelectionError
from graphprune.searching.costs import Costs
from graphprune.searching.flow import search
from graphprune.searching.found import Search
from graphprune.searching.pricing import Pricing
from graphprune.searching.timed import Timed, TimedSize
from graphprune.session import open_session
from graphprune.settings import Settings
from tests import tiny
from tests.healing.test_calibration import random_data

ONE = Settings(threads=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx", layers=2)


@pytest.fixture
def data(path: Path, tmp_path: Path) -> Data:
    return random_data(path, tmp_path, rows=30)


def found(path: Path, out: Path | None, data: Data, *targets: str, **how: object) -> Search:
    return search(path, out, data, targets=targets, settings=ONE, **{"trials": 16, **how})  # type: ignore[arg-type]


def own_score(path: Path, dense: Path, data: Data) -> float:
    """What a written model is worth, by its own outputs."""
    batches = data.batches(dense, 16)

    def outputs(model: Path) -> list[dict[str, np.ndarray]]:
        session = open_session(model, model.name, ONE)
        return [session.run({n: batch.source.arrays[n] for n in session.inputs}) for batch in batches]

    return open_judge(data, batches, outputs(dense)).score(outputs(path))


def test_what_is_written_is_as_good_and_as_small_as_is_said(path: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = found(path, out, data, "parameters=0.6")
    before, after = gp.load(path), gp.load(out)
    parameters = [sum(gp.plan(one, gp.Recipe()).before.parameters for one in [b]) for b in (before, after)]
    assert parameters[1] <= 0.6 * parameters[0]
    judged, _ = data.split(0.4, 0)
    assert own_score(out, path, judged) == pytest.approx(result.best.quality.score, abs=1e-4)
    assert result.judged.healed and result.best.choice and 0 < result.best.quality.kept <= 1
    assert result.best.price["parameters"] == pytest.approx(parameters[1], rel=0.05)


def test_what_is_written_beside_the_model(path: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = found(path, out, data, "parameters=0.7")
    there = {file.name for file in tmp_path.iterdir()} - {"tiny.onnx", "data.npz"}
    assert there == {"out.onnx", "out.healed.npz", "out.search.json", ".out.onnx.search"}
    report = json.loads((tmp_path / "out.search.json").read_text())
    assert report["best"]["choice"] == dict(result.best.choice)
    assert report["targets"] == ["parameters=0.7"] and report["format"] == 1
    fronts = [(one["price"]["parameters"], one["kept"]) for one in report["pareto"]]
    assert fronts == sorted(fronts) and [kept for _, kept in fronts] == sorted(kept for _, kept in fronts)
    assert {one["block"] for one in report["reasons"]} <= set(result.best.choice) | {
        f"encoder.{layer}.{kind}" for layer in range(3) for kind in ("attention", "ffn")
    }
    recipe = json.loads(gp.load(out).files[0].model.metadata_props["graphprune.recipe"])
    values = [step["values"] for one in recipe["passes"] for step in one.values() if "values" in step]
    assert set(values) == {str(tmp_path / "out.healed.npz")}


def test_the_recipe_that_is_written_makes_the_model_again(path: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found(path, out, data, "parameters=0.7")
    recipe = json.loads(gp.load(out).files[0].model.metadata_props["graphprune.recipe"])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    gp.prune(gp.load(path), recipe=tmp_path / "recipe.json").save(tmp_path / "again.onnx")
    x = next(iter(data.batches(path, 8))).source.arrays
    first, second = (open_session(one, one.name, ONE).run(dict(x)) for one in (out, tmp_path / "again.onnx"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_same_answer_twice(path: Path, data: Data, tmp_path: Path) -> None:
    one, two = (found(path, None, data, "parameters=0.6", seed=3).to_json() for _ in range(2))
    assert one == two


def test_a_speedup_is_measured_on_the_model_itself(path: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    try:
        result = found(path, out, data, "speedup=1.05", actions=["drop"])
    except CheckError as error:  # a model this small is mostly overhead
        assert "speed-up" in str(error) or "latency" in str(error)
        assert not out.exists()
        return
    assert result.timed is not None and result.timed.speedup >= 1.05 - 1e-9
    assert [one.phase for one in result.timed.sizes] == ["run"]


def test_a_model_slower_than_its_blocks_promised_is_searched_on_from(
    path: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are made up: each block a sixth, and models take a fifth more than the sum of their blocks."""
    tiny.save(path)  # three layers
    blocks = {f"encoder.{layer}.{kind}": 1.0 for layer in range(3) for kind in ("attention", "ffn")}
    costs = Costs(6.0, {"drop": blocks, "linear": {block: cost - 0.1 for block, cost in blocks.items()}})
    timed: list[float] = []

    def slower(dense: Path, model: Path, *_: object) -> Timed:
        gone = {one.id for file in gp.inspect(gp.load(dense)) for one in file.architecture.blocks}
        gone -= {one.id for file in gp.inspect(gp.load(model)) for one in file.architecture.blocks}
        timed.append(min(1.0, 1.2 * costs.of(dict.fromkeys(gone, "drop")) / 6))
        return Timed((TimedSize(1, 32, "run", 6.0, 6 * timed[-1], timed[-1]),))

    monkeypatch.setattr("graphprune.searching.flow.price_model", lambda *_: Pricing({"latency": costs}))
    monkeypatch.setattr("graphprune.searching.hunt.time_both", slower)
    result = found(path, None, data, "speedup=1.5", actions=["drop"])
    assert timed[0] > 1 / 1.5 >= timed[-1] and result.timed is not None
    assert result.timed.speedup == pytest.approx(1 / timed[-1])
    assert len(result.best.choice) == 3  # 4/6 would do by the blocks, and 4/6 · 1.2 is too slow
    assert "66.7% of the latency has 80.0% of it when measured: searched on" in result.notes[0]
    with pytest.raises(CheckError, match=r"speed-up of 4\.00"):
        found(path, None, data, "speedup=4", actions=["drop"], blocks="1-2")


def test_a_floor_alone(path: Path, data: Data) -> None:
    result = found(path, None, data, "quality=0.8", "parameters=0.99")
    assert result.best.quality.kept >= 0.8


def test_an_unreachable_target_writes_nothing(path: Path, data: Data, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"the target is .* of the parameters, the most that can be had is"):
        found(path, tmp_path / "out.onnx", data, "parameters=0.01")
    assert not list(tmp_path.glob("out*"))


def test_unhealed_where_healing_declines(
    path: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunError("several stacks")

    monkeypatch.setattr("graphprune.healing.calibration.open_calibration", refuse)
    out = tmp_path / "out.onnx"
    result = found(path, out, data, "parameters=0.7")
    assert result.notes == ("nothing is healed, choices are judged as they are: several stacks",)
    assert not result.judged.healed and not result.repairs
    judged, _ = data.split(0.4, 0)
    assert own_score(out, path, judged) == pytest.approx(result.best.quality.score, abs=1e-4)
    assert not (tmp_path / "out.healed.npz").exists()


def test_bad_input_is_told_before_the_work(path: Path, data: Data, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").touch()
    cases: list[tuple[type[GraphpruneError], str, dict[str, object]]] = [
        (RunError, "'speed=2' is no target", {"targets": ["speed=2"]}),
        (RunError, "there is no target", {"targets": []}),
        (SelectionError, "'cut' is no action: choose among drop, mean, linear", {"actions": ["cut"]}),
        (SelectionError, "encoder.9.ffn", {"blocks": "encoder.9.ffn"}),
        (SaveError, "exists: name another target", {"out": tmp_path / "there.onnx"}),
        (LoadError, "does not exist", {"model": tmp_path / "none.onnx"}),
    ]
    for error, message, changed in cases:
        given = {"model": path, "out": None, "data": data, "targets": ["parameters=0.7"], "settings": ONE}
        with pytest.raises(error, match=message):
            search(**{**given, **changed})  # type: ignore[arg-type]


def test_trials_of_another_search_are_not_mixed_in(path: Path, data: Data, tmp_path: Path) -> None:
    found(path, None, data, "parameters=0.7", storage=tmp_path / "trials")
    with pytest.raises(SaveError, match="--resume"):
        found(path, None, data, "parameters=0.7", storage=tmp_path / "trials")
    with pytest.raises(LoadError, match="its seed is 0, not 1"):
        found(path, None, data, "parameters=0.7", storage=tmp_path / "trials", seed=1, resume=True)


def test_another_target_uses_the_same_trials(path: Path, data: Data, tmp_path: Path) -> None:
    first = found(path, None, data, "parameters=0.7", storage=tmp_path / "trials")
    again = found(path, None, data, "parameters=0.7", storage=tmp_path / "trials", resume=True)
    assert again.trials == first.trials and again.best.choice == first.best.choice
    further = found(path, None, data, "parameters=0.5", storage=tmp_path / "trials", resume=True)
    assert further.best.price["parameters"] <= 0.5 * further.dense["parameters"]


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [
        "search", str(path), str(out), "--data", str(path.parent / "data.npz"), "--metric", "cosine",
        "--target", "parameters=0.5", "--trials", "60", "--json", *more,
    ]  # fmt: skip


def test_a_search_that_was_killed_ends_as_one_that_was_not(path: Path, data: Data, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from graphprune.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        program + command(path, tmp_path / "whole.onnx"), capture_output=True, check=True, env=environment
    )
    trials = tmp_path / ".broken.onnx.search"
    killed = subprocess.Popen(
        program + command(path, tmp_path / "broken.onnx"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (trials.exists() and trials.read_bytes().count(b"\n") > 40):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "broken.onnx").exists()
    before = trials.read_bytes().count(b"\n")
    resumed = subprocess.run(
        program + command(path, tmp_path / "broken.onnx", "--resume"),
        capture_output=True, check=True, env=environment,
    )  # fmt: skip
    one, two = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert {**one, "out": ""} == {**two, "out": ""}
    assert trials.read_bytes().count(b"\n") > before > 40


def test_two_processes_find_the_same(path: Path, data: Data, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    one, two = (found(path, None, data, "parameters=0.7", trials=20, jobs=jobs) for jobs in (1, 2))
    assert one.best.choice == two.best.choice
    assert one.best.quality.score == pytest.approx(two.best.quality.score, abs=1e-5)


def test_a_cluster_of_which_a_worker_is_killed_finds_the_same(path: Path, data: Data, tmp_path: Path) -> None:
    distributed = pytest.importorskip("dask.distributed")
    alone = found(path, None, data, "parameters=0.7", trials=20)
    told: list[str] = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:

        def kill(what: str) -> None:
            """One worker, soon after choices are evaluated for the second time."""
            if what.endswith("small"):
                told.append(what)
                if len(told) == 2:
                    pid = next(iter(cluster.workers.values())).pid
                    Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()

        scheduler = cluster.scheduler_address
        spread = found(
            path, None, data, "parameters=0.7", trials=20, scheduler=scheduler, on_step=kill,
            storage=tmp_path / "trials",
        )  # fmt: skip
    assert len(told) >= 2
    assert spread.best.choice == alone.best.choice and spread.trials == alone.trials
    assert spread.best.quality.score == pytest.approx(alone.best.quality.score, abs=1e-5)


def test_a_folder_is_searched_and_what_lies_beside_comes_along(tmp_path: Path, data: Data) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    tiny.save(folder / "model.onnx")
    (folder / "config.json").write_text('{"num_hidden_layers": 3}')
    (folder / "notes.txt").write_text("as it was")
    found(folder, out, data, "parameters=0.8")
    there = {file.name for file in out.iterdir()}
    assert there == {"model.onnx", "config.json", "notes.txt", "healed.npz", "search.json", ".search"}
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(SaveError, match="exists"):
        found(folder, out, data, "parameters=0.6", resume=True)
    further = found(folder, out, data, "parameters=0.6", resume=True, overwrite=True)
    assert json.loads((out / "search.json").read_text())["targets"] == ["parameters=0.6"]
    assert (out / ".search").is_file() and further.best.price["parameters"] <= 0.6 * further.dense[
        "parameters"
    ]


def test_several_models_are_refused(tmp_path: Path, data: Data) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "two").mkdir(exist_ok=True)
        tiny.save(tmp_path / "two" / name)
    with pytest.raises(GraphpruneError, match=r"a\.onnx"):
        found(tmp_path / "two", None, data, "parameters=0.8")


def test_the_command_shows_what_was_found(
    path: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [one for one in command(path, tmp_path / "out.onnx", "--dry-run") if one != "--json"]
    assert run_line(arguments) == 0
    shown = capsys.readouterr().out
    for part in ("steps", "greedy", "healing did", "Pareto set", "chosen", "one change more", "dry run"):
        assert part in shown
    assert not (tmp_path / "out.onnx").exists()


def test_the_command_ends_with_1_where_the_target_is_out_of_reach(
    path: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(path, tmp_path / "out.onnx")
    arguments[arguments.index("parameters=0.5")] = "parameters=0.01"
    assert run_line(arguments) == 1
    assert "the most that can be had" in capsys.readouterr().err


def test_the_command_wants_a_place_and_a_target(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line(["search", str(path), "--target", "speedup=2"]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert run_line(["search", str(path), "out"]) == 2
    assert "--target" in capsys.readouterr().err
