"""Streaming moments and closed-form fits, against numpy's least squares over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.fits import low_rank, narrowed, only_scale, ridge, scale_and_shift
from graphprune.healing.moments import Affine, Channels, Moments

Array = NDArray[np.float32]


def rows(n: int, inputs: int, outputs: int, seed: int = 0, mean: float = 0.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, inputs)) + mean
    y = x @ rng.standard_normal((inputs, outputs)) + 0.1 * rng.standard_normal((n, outputs)) + 3
    return x.astype(np.float32), y.astype(np.float32)


def gathered(x: Array, y: Array, size: int = 7) -> Moments:
    moments = Moments()
    for at in range(0, len(x), size):
        moments.add(x[at : at + size], y[at : at + size])
    return moments


@settings(max_examples=30, deadline=None)
@given(
    st.integers(20, 60),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 30),
    st.sampled_from([0, 5, 300]),
)
def test_a_ridge_of_no_strength_is_least_squares(
    n: int, inputs: int, outputs: int, size: int, mean: int
) -> None:
    x, y = rows(n, inputs, outputs, seed=n, mean=mean)
    ones = np.concatenate([x, np.ones((n, 1))], 1).astype(np.float64)
    best, *_ = np.linalg.lstsq(ones, y.astype(np.float64), rcond=None)
    found = ridge(gathered(x, y, size), strength=0)
    np.testing.assert_allclose(found.weight, best[:-1], atol=2e-3)
    expected = ((y - ones @ best) ** 2).sum()
    assert gathered(x, y, size).error(found) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_an_error_told_from_moments_is_that_over_the_rows() -> None:
    x, y = rows(50, 5, 3, mean=40)
    map = Affine(np.full((5, 3), 0.5), np.array([1.0, -2, 30]))
    expected = ((y.astype(np.float64) - x.astype(np.float64) @ map.weight - map.bias) ** 2).sum()
    assert gathered(x, y).error(map) == pytest.approx(expected, rel=1e-5)


def test_a_strong_ridge_stays_at_zero() -> None:
    x, y = rows(50, 4, 4)
    assert np.abs(ridge(gathered(x, y), strength=1e9).weight).max() < 1e-6
    weak, strong = (ridge(gathered(x, y), strength=s).weight for s in (1e-2, 1.0))
    assert np.linalg.norm(strong) < np.linalg.norm(weak)


def test_with_fewer_rows_than_inputs_the_fit_is_finite_and_near_what_it_is_drawn_to() -> None:
    x, y = rows(6, 40, 3)
    found = ridge(gathered(x, y), strength=1e-2)
    assert np.isfinite(found.weight).all()
    assert np.linalg.matrix_rank(found.weight) <= 5  # of six rows less their mean


def test_inputs_go_as_if_each_time_every_one_were_tried() -> None:
    x, y = rows(60, 9, 3)
    own = Affine(np.random.default_rng(5).normal(size=(9, y.shape[1])), np.zeros(y.shape[1]))
    found, map = narrowed(gathered(x, y), own, 4, strength=0.3)
    a, b = x.astype(np.float64) - x.mean(0), y.astype(np.float64) - y.mean(0)
    damp = 0.3 * (a**2).sum() / 9

    def fitted(some: list[int]) -> tuple[float, np.ndarray]:
        """The least of Σ‖b − aW‖² + damp ‖W − own‖² where only `some` rows of W may not be 0."""
        root = np.sqrt(damp)
        stacked = np.concatenate([a[:, some], root * np.eye(9)[:, some]])
        wanted = np.concatenate([b, root * own.weight])
        weight, *_ = np.linalg.lstsq(stacked, wanted, rcond=None)
        return float(((wanted - stacked @ weight) ** 2).sum()), weight

    left = list(range(9))
    while len(left) > 4:
        left = min(([*left[:i], *left[i + 1 :]] for i in range(len(left))), key=lambda some: fitted(some)[0])
    assert found.tolist() == left
    np.testing.assert_allclose(map.weight[left], fitted(left)[1], rtol=1e-4, atol=1e-5)
    assert not np.delete(map.weight, left, 0).any()
    np.testing.assert_allclose(map.bias, y.mean(0) - x.mean(0) @ map.weight, rtol=1e-4, atol=1e-4)


def test_inputs_that_are_all_alike_say_nothing_of_the_weight() -> None:
    x = np.full((10, 3), 2, np.float32)
    y = np.arange(20, dtype=np.float32).reshape(10, 2)
    found = ridge(gathered(x, y))
    np.testing.assert_array_equal(found.weight, np.zeros((3, 2)))
    np.testing.assert_allclose(found(x)[0], y.mean(0), rtol=1e-6)


def test_a_channel_with_a_large_mean_is_fitted_as_well_as_another() -> None:
    x, y = rows(400, 3, 2)
    far = x + np.array([0, 5000, 0], np.float32)
    near, moved = ridge(gathered(x, y, 64)), ridge(gathered(far, y, 64))
    np.testing.assert_allclose(moved.weight, near.weight, atol=5e-3)


def test_low_rank_is_the_full_fit_where_the_rank_is_full_and_worse_below() -> None:
    x, y = rows(80, 6, 6)
    moments = gathered(x, y)
    full = ridge(moments)
    errors = []
    for rank in (1, 3, 6):
        a, b = low_rank(moments, full, rank)
        assert a.shape == (6, rank)
        assert b.shape == (rank, 6)
        errors.append(moments.error(moments.through_mean(a @ b)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(moments.error(full), rel=1e-3)


def test_scale_and_shift_are_a_least_squares_line_for_each_channel() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)).astype(np.float32)
    y = (x * [2, -1, 0.5] + [1, 2, 3] + 0.1 * rng.standard_normal((60, 3))).astype(np.float32)
    channels = Channels()
    channels.add(x[:11], y[:11])
    channels.add(x[11:], y[11:])
    scale, shift = scale_and_shift(channels, np.ones(3), np.zeros(3))
    for i in range(3):
        slope, intercept = np.polyfit(x[:, i].astype(np.float64), y[:, i].astype(np.float64), 1)
        assert scale[i] == pytest.approx(slope, rel=1e-5)
        assert shift[i] == pytest.approx(intercept, rel=1e-5)
    expected = ((y - (x * scale + shift)) ** 2).sum()
    assert channels.error(scale, shift) == pytest.approx(expected, rel=1e-4)
    alone = only_scale(channels, np.ones(3))
    np.testing.assert_allclose(alone, (x * y).sum(0) / (x * x).sum(0), rtol=1e-4)


def test_a_channel_that_never_varies_keeps_its_scale() -> None:
    x = np.tile(np.array([[1.0, 2.0]], np.float32), (5, 1))
    x[:, 1] = range(5)
    channels = Channels()
    channels.add(x, x * 3)
    scale, shift = scale_and_shift(channels, np.array([7.0, 7.0]), np.zeros(2))
    assert scale.tolist() == pytest.approx([7, 3])
    assert shift.tolist() == pytest.approx([3 - 7, 0], abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x, y = rows(5, 2, 2)
    y[3, 1] = bad
    with pytest.raises(RunError, match="not finite"):
        gathered(x, y)
    with pytest.raises(RunError, match="not finite"):
        Channels().add(y, x)


def test_no_rows_are_refused() -> None:
    with pytest.raises(RunError, match="no rows"):
        ridge(Moments())
    with pytest.raises(RunError, match="no rows"):
        scale_and_shift(Channels(), np.ones(2), np.zeros(2))
