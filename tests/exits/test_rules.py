"""Rules by a loop over samples, the certificate by drawing, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphprune.errors import RunError
from graphprune.exits.criteria import CRITERIA
from graphprune.exits.rules import (
    ALWAYS,
    NEVER,
    Trial,
    as_deep_as,
    candidates,
    certified,
    fewest,
    left,
    spread,
    within_one_error,
)


def trial(samples: int = 4000, seed: int = 0, decay: float = 1.0) -> Trial:
    """Three exits that say truly how sure they are."""
    random = np.random.default_rng(seed)
    sure = np.sort(random.uniform(0.3, 1, (3, samples)), 0)
    right = random.uniform(size=(3, samples)) < sure
    return Trial((2, 4, 6), sure, right, right[2], decay)


@given(
    sure=arrays.arrays(np.float64, (4, 6), elements=st.floats(0, 1)),
    thresholds=st.lists(st.sampled_from([ALWAYS, 0.0, 0.3, 0.5, 1.0, NEVER]), min_size=3, max_size=3),
)
def test_samples_leave_at_the_first_exit_that_is_sure(sure: np.ndarray, thresholds: list[float]) -> None:
    expected = [
        next((e for e in range(3) if sure[e, sample] >= thresholds[e]), 3) for sample in range(sure.shape[1])
    ]
    assert left(sure, thresholds).tolist() == expected


def test_where_all_leave_at_the_only_exit() -> None:
    sure = np.array([[0.2, 0.9]])
    assert left(sure, ()).tolist() == [0, 0]
    point = Trial((3,), sure, sure > 0.5, sure > 0.5).point(0.5)
    assert (point.depth, point.right, point.lost) == (3, 0.5, 0)


def test_never_and_always_are_the_ends_of_every_curve() -> None:
    for criterion in CRITERIA:
        thresholds = candidates(criterion, 4)
        assert list(thresholds) == sorted(thresholds, reverse=True) and thresholds[0] >= NEVER
    curve = trial().curve(candidates("confidence", 3))
    assert (curve[0].depth, curve[0].lost, curve[0].gained) == (6, 0, 0)
    assert curve[-1].depth == 2 and curve[-1].depth_error == 0
    assert all(after.depth <= before.depth for before, after in pairwise(curve))
    assert spread(0.8, 3, 0.5) == (0.8, 0.4, 0.2)
    assert spread(NEVER, 2, 0.5) == (NEVER, NEVER) and spread(ALWAYS, 2, 0.5) == (ALWAYS, ALWAYS)


def test_a_point_by_hand() -> None:
    sure = np.array([[0.9, 0.2, 0.2, 0.8], [0.1, 0.7, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]])
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 1, 1]], bool)
    point = Trial((1, 2, 5), sure, right, right[2]).point(0.6)
    assert (point.depth, point.right, point.gained, point.lost) == ((1 + 2 + 5 + 1) / 4, 0.75, 0.0, 1)
    assert point.gained_error == pytest.approx(np.std([0, 1, 0, -1], ddof=1) / 2)


def test_within_one_error_of_the_best_point() -> None:
    curve = trial().curve(candidates("confidence", 3))
    found, best = within_one_error(curve), max(curve, key=lambda one: one.right)
    assert found.right >= best.right - best.gained_error
    assert all(one.right < best.right - best.gained_error for one in curve if one.depth < found.depth)


def test_a_certificate_is_the_last_that_passes_in_turn() -> None:
    scipy = pytest.importorskip("scipy.stats")
    curve = trial().curve(candidates("confidence", 3))
    for risk in (0.02, 0.1, 0.3):
        found = certified(curve, risk)
        place = curve.index(found)
        for number, one in enumerate(curve[: place + 2]):
            p = scipy.binomtest(one.lost, one.samples, risk, "less").pvalue
            assert (p <= 0.05) == (number <= place)
    with pytest.raises(RunError, match=f"at least {math.ceil(math.log(0.05) / math.log(0.99))}"):
        certified(trial(50).curve(candidates("confidence", 3)), 0.01)
    assert fewest(0.01) == 299


def test_a_certified_risk_is_kept_in_nineteen_draws_of_twenty() -> None:
    risk, broken = 0.05, 0
    true = trial(200_000, seed=99)
    for seed in range(100):
        found = certified(trial(400, seed).curve(candidates("confidence", 3)[::4]), risk)
        broken += true.point(found.threshold).lost / 200_000 > risk
    assert broken <= 10  # 5 are expected at most; more than 10 come once in a hundred


def test_a_depth_that_is_asked_for() -> None:
    curve = trial().curve(candidates("confidence", 3))
    found = as_deep_as(curve, 3.0)
    assert found.depth <= 3.0 and curve[curve.index(found) - 1].depth > 3.0
    with pytest.raises(RunError, match=r"the least is 2\.00 layers"):
        as_deep_as(curve, 1.5)
