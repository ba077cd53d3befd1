from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from graphprune import intervals
from graphprune.intervals import MIN_LOADS, ratio_interval


def test_the_interval_holds_the_true_ratio_and_gives_the_same_twice() -> None:
    random = np.random.default_rng(0)
    drift = random.lognormal(0, 0.5, (10, 40))  # meets both models of a round alike
    base, times = (drift * random.normal(ms, 0.1, (10, 40)) for ms in (10, 7))
    ratio, low, high = ratio_interval(times, base)
    assert low is not None and high is not None
    assert low < 0.7 < high and low <= ratio <= high and high - low < 0.02
    assert (ratio, low, high) == ratio_interval(times, base)


def test_one_load_that_was_disturbed_moves_little() -> None:
    random = np.random.default_rng(1)
    base, times = random.normal(10, 0.1, (2, 10, 5))
    undisturbed = ratio_interval(times, base)[0]
    times[3] *= 50
    assert ratio_interval(times, base)[0] == pytest.approx(undisturbed, abs=0.01)


@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("loads", [MIN_LOADS, 10])
@pytest.mark.parametrize("placed", [0.0, 0.02], ids=["rounds scatter", "loads scatter, too"])
def test_a_model_against_itself(
    placed: float, loads: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 is in the interval as often as it says, also where a load stays faster or slower than another."""
    monkeypatch.setattr(intervals, "_RESAMPLES", 500)
    random = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        pair = random.normal(0, placed, (2, loads, 1)) + random.standard_t(3, (2, loads, rounds)) * 0.01
        _, low, high = ratio_interval(*np.exp(pair))
        assert low is not None and high is not None
        held += low <= 1 <= high
    assert held >= 0.93 * 400  # 0.95, less two standard deviations of what 400 show


def test_few_loads_carry_no_interval() -> None:
    times = np.ones((MIN_LOADS - 1, 9))
    assert ratio_interval(2 * times, times) == (2.0, None, None)


def test_many_rounds_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    base, times = np.random.default_rng(3).normal(10, 0.1, (2, 10, 50))
    whole = ratio_interval(times, base)
    monkeypatch.setattr(intervals, "_DRAWN", 7 * times.size)
    assert ratio_interval(times, base) == pytest.approx(whole, abs=1e-3)


def test_the_percentiles_lie_as_far_out_as_students_t() -> None:
    for loads in (6, 10, 40):
        width = -norm.ppf(intervals._tail(loads)) * np.sqrt((loads - 1) / loads)
        assert width == pytest.approx(t.ppf(0.975, loads - 1))
