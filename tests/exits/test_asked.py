"""Exits from data to a written model, which does what the samples said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune as gp
from graphprune.cli import run_line
from graphprune.data.dataset import Data, read_data
from graphprune.errors import RunError, SelectionError
from graphprune.exits.asked import Exits, fit_exits
from graphprune.exits.criteria import CRITERIA, Scores, features, likeness_of
from graphprune.exits.rules import left
from graphprune.exits.watching import open_watch, pooled
from graphprune.inputs import make_inputs
from graphprune.play import Source
from graphprune.session import open_sessions
from tools.zoo import Entry, families
from tools.zoo_trained import trained

ONE = gp.Settings(threads=1)
ROWS = 240


def digits(folder: Path, rows: int = ROWS, labels: bool = True) -> Data:
    """Digits of scikit-learn, as models/digits.py has them."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn comes with the extra dev")
    found = datasets.load_digits()
    images = (found.images[:rows, None] / 8 - 1).astype(np.float32)
    extra = {"labels": found.target[:rows].astype(np.int64)} if labels else {}
    np.savez(folder / "digits.npz", pixel_values=images, **extra)
    return read_data(folder / "digits.npz", label="labels" if labels else None)


def simulated(exits: Exits, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """After how many layers each image leaves, and its scores, from streams and the file's values alone."""
    rule, values = exits.rule, exits.rule.values()
    watch = open_watch(exits.path, rule.inner, ONE)
    seen = watch.see(Source({"pixel_values": images}, len(images)))
    streams = {k: pooled(stream, seen.mask, rule.pool) for k, stream in seen.streams.items()}
    at = (*rule.inner, rule.layers)
    scores = np.stack([_scores(values, k, watch, seen, streams[k]) for k in at])
    told = Scores(at, scores.astype(np.float32), likeness_of(list(streams.values())))
    sure = np.stack([_sure(rule.criterion, values, told, e) for e in range(len(at))])
    leaves = left(sure, [float(values[f"{k}/threshold"]) for k in rule.inner])
    return np.array(at)[leaves], scores[leaves, np.arange(len(images))]


def _scores(values: Mapping[str, Any], k: int, watch: Any, seen: Any, vector: np.ndarray) -> np.ndarray:
    if f"{k}/weight" in values:
        return vector @ values[f"{k}/weight"] + values[f"{k}/bias"]
    stream = seen.streams[k]
    if f"{k}/translator" in values:
        stream = stream @ values[f"{k}/translator"] + values[f"{k}/translator_bias"]
    return watch.scores(seen, stream)


def _sure(criterion: str, values: Mapping[str, Any], told: Scores, e: int) -> np.ndarray:
    if criterion == "saturation":
        return told.cosines[e]
    if criterion == "patience":
        same = [told.answers[f] == told.answers[e] for f in range(e + 1)]
        return np.array(
            [
                next((n for n, ok in enumerate(reversed(row)) if not ok), e + 1)
                for row in zip(*same, strict=True)
            ]
        )
    found = features(told.scores[e], float(values.get(f"{told.at[e]}/temperature", 1)))
    if criterion == "rule":
        weights = values.get(f"{told.at[e]}/rule", np.zeros(4))
        return 1 / (1 + np.exp(-(found @ weights[:3] + weights[3])))
    return found[:, ("confidence", "margin", "entropy").index(criterion)]


EACH = [(criterion, head) for criterion in CRITERIA for head in ("ridge", "translator", "own")]
FAST = [
    ("confidence", "ridge"), ("margin", "own"), ("entropy", "translator"), ("saturation", "own"),
    ("patience", "ridge"), ("rule", "translator"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("criterion", "head"),
    [pytest.param(*one, marks=() if one in FAST else pytest.mark.matrix) for one in EACH],
)
def test_the_written_model_does_what_the_samples_said(criterion: Any, head: Any, tmp_path: Path) -> None:
    data = digits(tmp_path)
    depth = 5.0 if criterion == "patience" else 2.9
    exits = fit_exits(
        trained("vit"), data, at=(2, 3, 4), head=head, criterion=criterion, depth=depth, settings=ONE
    )
    (session,) = open_sessions(exits.save(tmp_path / "out"), ONE)
    images = np.load(tmp_path / "digits.npz")["pixel_values"][:64]
    found = session.run({"pixel_values": images})
    layers, scores = simulated(exits, images)
    assert len(set(layers.tolist())) > 1
    assert found["exit_layer"].tolist() == layers.tolist()
    np.testing.assert_allclose(found["logits"], scores, atol=2e-4)


@pytest.mark.parametrize(
    ("head", "criterion"),
    [("ridge", "confidence"), ("logistic", "rule"), ("translator", "margin"), ("own", "entropy"),
     ("ridge", "saturation"), ("own", "saturation"), ("ridge", "patience")],
)  # fmt: skip
def test_what_is_told_of_held_out_samples_is_what_the_model_does(
    head: Any, criterion: Any, tmp_path: Path
) -> None:
    data = digits(tmp_path)
    depth = 5.2 if criterion in ("saturation", "patience") else None
    exits = fit_exits(
        trained("vit"), data, at=(2, 4, 5), head=head, criterion=criterion, depth=depth, settings=ONE
    )
    (session,) = open_sessions(exits.save(tmp_path / "out"), ONE)
    _, held = data.split(0.8, 0)
    images = np.load(tmp_path / "digits.npz")["pixel_values"][held.chosen]
    found = session.run({"pixel_values": images})
    judged = exits.rule.held
    right = found["logits"].argmax(1) == held.labels
    assert judged.samples == len(held.chosen)
    assert judged.point.right == pytest.approx(right.mean(), abs=1e-9)
    assert judged.point.depth == pytest.approx(found["exit_layer"].mean(), abs=1e-9)
    counts = {one.layers: one.left for one in judged.exits if one.left}
    assert counts == {k: int((found["exit_layer"] == k).sum()) for k in set(found["exit_layer"].tolist())}
    assert sum(one.left for one in judged.exits) == judged.samples


def test_labels_that_are_names_are_numbered_alike(tmp_path: Path) -> None:
    data = digits(tmp_path)
    names = np.array([f"digit {label}" for label in data.labels])  # type: ignore[union-attr]
    plain = fit_exits(trained("vit"), data, at=(2,), head="ridge", settings=ONE)
    named = fit_exits(trained("vit"), replace(data, labels=names), at=(2,), head="ridge", settings=ONE)
    assert named.rule.held.point == plain.rule.held.point
    fewer = replace(data, labels=np.where(names == "digit 3", "digit 4", names))
    with pytest.raises(SelectionError, match="no example to fit to has the label 'digit 3'"):
        fit_exits(
            trained("vit"), fewer, test=replace(data, labels=names), at=(2,), head="ridge", settings=ONE
        )


def test_without_labels_the_dense_model_is_right(tmp_path: Path) -> None:
    exits = fit_exits(trained("vit"), digits(tmp_path, labels=False), at=(3,), settings=ONE)
    rule = exits.rule
    assert (rule.goal, rule.head, rule.at) == ("agreement", "own", (3, 6))
    assert rule.held.exits[-1].alone.value == 1 and rule.held.best == (6, rule.held.exits[-1].alone)
    assert rule.told.lost == 0 and rule.held.agreement is not None
    assert rule.held.agreement.value == rule.held.point.right


def test_a_risk_is_shown_on_samples_that_nothing_was_fitted_to(tmp_path: Path) -> None:
    data = digits(tmp_path, rows=800, labels=False)
    exits = fit_exits(trained("vit"), data, at=(3, 4), risk=0.05, settings=ONE)
    assert exits.rule.told.lost <= 0.05 * exits.rule.calibrated
    assert exits.rule.calibrated == 320 and "Learn then Test" in exits.rule.chosen
    with pytest.raises(RunError, match="cannot be shown with 320 samples: give at least 2995"):
        fit_exits(trained("vit"), data, at=(3, 4), risk=0.001, settings=ONE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "mlp"}, "no head 'mlp': take one of ridge"),
        ({"criterion": "luck"}, "no criterion 'luck'"),
        ({"pool": "max"}, "no pool 'max'"),
        ({"batch_mode": "some"}, "no batch mode 'some'"),
        ({"risk": 1.0}, "a risk of 1 is no probability"),
        ({"risk": float("nan")}, "a risk of nan is no probability"),
        ({"decay": 0.0}, "a decay of 0"),
        ({"depth": -1.0}, "a depth is a number of layers above 0"),
        ({"depth": 3.0, "risk": 0.1}, "in place of a risk"),
        ({"at": (6,)}, "no exit after 6 layers"),
        ({"at": (0,), "head": "ridge"}, "no exit after 0 layers"),
    ],
)
def test_wishes_that_cannot_be(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=said):
        fit_exits(trained("vit"), digits(tmp_path), **options, settings=ONE)


def test_the_command_tells_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits(tmp_path)
    command = [
        "exits", str(trained("vit")), str(tmp_path / "out"), "--data", str(tmp_path / "digits.npz"),
        "--label", "labels", "--at", "2,4", "--head", "ridge", "--threads", "1",
    ]  # fmt: skip
    assert run_line(command) == 0
    shown = capsys.readouterr().out
    assert "ridge heads on 192 samples, thresholds of confidence on 192, judged on 48 others" in shown
    assert shown.count("after layer") == 3 and "average depth" in shown and "wrote and checked" in shown
    assert run_line([*command, "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "out" / "exits.json").read_text())
    assert told["held"] == written["held"] and written["source_sha256"] and told["at"][0] == 2
    assert set(np.load(tmp_path / "out" / "exits.npz").files) >= {"2/weight", "2/threshold", "6/weight"}


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--at", "two"], "'two' is no number of layers"),
        (["--at", "9"], "there is no exit after 9 layers"),
        (["--head", "ridge"], "fitted to classes, and model.onnx puts none out"),
        (["--head", "own"], "no head of its own"),
    ],
)
def test_errors_are_one_line(
    extra: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    np.savez(tmp_path / "x.npz", **make_inputs(bert / "model.onnx", batch=20, sequence=6))  # type: ignore[arg-type]
    command = ["exits", str(bert), "--dry-run", "--data", str(tmp_path / "x.npz")]
    assert run_line([*command, *extra]) == 2
    shown = capsys.readouterr()
    assert said in " ".join((shown.err + shown.out).split())
    assert run_line(["exits", str(bert)]) == 2
