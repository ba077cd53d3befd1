"""What evaluations say of choices that were not evaluated."""

from __future__ import annotations

import random

import numpy as np
import pytest

from graphprune.searching.evaluating import Quality
from graphprune.searching.exchange import exchange
from graphprune.searching.space import Picks
from graphprune.searching.surrogate import fit_surrogate
from tests.searching.fake import Formula, asker

LOSSES = {f"b{i}": 0.01 * (i + 1) for i in range(10)}


def some(formula: Formula, count: int) -> list[tuple[Picks, Quality]]:
    """So many random choices, evaluated."""
    space = asker(formula, dict.fromkeys(LOSSES, 1.0), "speedup=1.5").space
    rng = random.Random(0)
    drawn = {
        tuple(rng.choice(("keep", *space.actions[block])) for block in space.blocks): 0 for _ in range(count)
    }
    return [(picks, formula.quality(space.choice(picks))) for picks in drawn if space.allowed(picks)]


def test_what_adds_up_is_told_exactly() -> None:
    formula = Formula(LOSSES, taken=("drop", "linear"))
    trials = some(formula, 80)
    space = asker(formula, dict.fromkeys(LOSSES, 1.0), "speedup=1.5").space
    told = fit_surrogate(space, trials)
    assert told is not None
    for picks, quality in some(formula, 200)[80:]:
        assert told.worth(picks) == pytest.approx(quality.kept, abs=2e-3)


def test_it_is_nearer_to_the_truth_than_a_noisy_evaluation() -> None:
    formula = Formula(LOSSES, noise=0.1, taken=("drop", "linear"))
    trials = some(formula, 80)
    space = asker(formula, dict.fromkeys(LOSSES, 1.0), "speedup=1.5").space
    told = fit_surrogate(space, trials)
    assert told is not None
    truth = np.array([formula.kept(space.choice(picks)) for picks, _ in trials])
    evaluated = np.array([quality.kept for _, quality in trials])
    assert (
        np.square([told.worth(picks) for picks, _ in trials] - truth).sum()
        < 0.5 * np.square(evaluated - truth).sum()
    )


def test_too_few_evaluations_say_nothing_and_those_that_failed_do_not_count() -> None:
    formula = Formula(LOSSES)
    space = asker(formula, dict.fromkeys(LOSSES, 1.0), "speedup=1.5").space
    failed = [(picks, Quality(float("nan"), float("nan"))) for picks, _ in some(formula, 40)]
    assert fit_surrogate(space, []) is None
    assert fit_surrogate(space, failed) is None
    assert fit_surrogate(space, [*failed, *some(formula, 4)]) is None


def test_children_that_are_worth_an_evaluation_are_evaluated() -> None:
    """Of all that can be exchanged few are asked about, the best among them."""
    losses = {f"b{i}": 0.002 * i * i for i in range(16)}
    formula = Formula(losses)
    one = asker(formula, dict.fromkeys(losses, 1.0), "speedup=2")
    start = tuple("drop" if i % 2 else "keep" for i in range(16))
    best = exchange(one, start, random.Random(0))[-1]  # type: ignore[arg-type]
    assert one.space.choice(best.picks) == dict.fromkeys([f"b{i}" for i in range(8)], "drop")
    assert len(formula.asked) < 150
