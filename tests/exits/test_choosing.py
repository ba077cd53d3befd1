"""Which layer is the end, and what is told of it, by samples that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.exits.choosing import Wish, choose
from graphprune.exits.criteria import Scores
from graphprune.exits.heads import Linear
from graphprune.exits.rules import ALWAYS
from graphprune.exits.samples import Evidence, Samples

SHARES = (0.6, 0.8, 0.9, 0.75, 0.7, 0.7)  # right after layers 1 … 6


def samples(
    shares: tuple[float, ...] = SHARES, count: int = 3000, seed: int = 0, **more: np.ndarray
) -> Samples:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 4, count)
    scores = random.standard_normal((len(shares), count, 4)).astype(np.float32)
    for e, share in enumerate(shares):
        said = np.where(random.uniform(size=count) < share, truth, (truth + 1) % 4)
        scores[e, np.arange(count), said] += 6
    likeness = np.ones((len(shares) + 1, len(shares) + 1, count), np.float32)
    return Samples(
        Scores(tuple(range(1, len(shares) + 1)), scores, likeness), truth, np.arange(count), **more
    )


def evidence(shares: tuple[float, ...] = SHARES) -> Evidence:
    heads = {k: Linear(np.full((5, 4), float(k)), np.zeros(4)) for k in range(1, 7)}
    tuned = samples(shares)
    return Evidence(heads, tuned, tuned, samples(shares, seed=1))


def test_no_layer_runs_behind_the_best_one() -> None:
    rule = choose(evidence(), Wish((1, 4)), "ridge", "accuracy", 6)
    assert rule.at == rule.inner == (1, 3) and rule.thresholds[-1] == ALWAYS
    assert rule.held.best[0] == 3 and rule.held.best[1].value == pytest.approx(0.9, abs=0.02)
    assert rule.held.exits[-1].threshold is None and rule.held.point.depth <= 3
    values = rule.values()
    assert {key.partition("/")[0] for key in values} == {"1", "3", "6"}
    assert values["3/threshold"] == -1 and (values["6/weight"] == 6).all() and values["1/pool"] == "mean"


def test_of_layers_that_are_alike_the_last_is_the_end() -> None:
    rule = choose(evidence((0.6, 0.9, 0.9, 0.9, 0.7, 0.7)), Wish((1,)), "ridge", "accuracy", 6)
    assert rule.at == (1, 4)


def test_an_exit_behind_the_end_is_none() -> None:
    rule = choose(evidence((0.9, 0.5, 0.5, 0.5, 0.5, 0.5)), Wish((2, 4)), "ridge", "accuracy", 6)
    assert rule.at == (1,) and rule.thresholds == (ALWAYS,) and rule.held.point.depth == 1


def test_the_dense_model_has_no_end_but_the_last_layer() -> None:
    rule = choose(evidence(), Wish((3,)), "ridge", "agreement", 6)
    assert rule.at == (3, 6) and len(rule.thresholds) == 1


def test_perplexity_is_that_of_the_exits_where_tokens_left() -> None:
    count = 3000
    tokens = np.random.default_rng(3).integers(0, 4, count)
    found = samples(following=tokens)
    rule = choose(Evidence({}, found, found, found), Wish((3,), depth=4.0), "own", "agreement", 6)
    chosen = found.scores.scores[[2, 5]].astype(np.float64)
    costs = np.log(np.exp(chosen).sum(-1)) - chosen[:, np.arange(count), tokens]
    sure = rule.tuned.sure(found.scores.only([2, 5]))
    mean = np.where(sure[0] >= rule.thresholds[0], costs[0], costs[1]).mean()
    assert rule.held.perplexity is not None
    assert rule.held.perplexity == pytest.approx((np.exp(mean), np.exp(costs[1].mean())), rel=1e-6)
    assert len(rule.held.perplexities) == len(rule.held.curve)
    assert rule.values()["3/pool"] == "last"
