"""Choosing tokens, against transformers' own warpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from graphprune.errors import RunError
from graphprune.sampling import Sampling, draw, keep_top_k, keep_top_p, penalize

SCORES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(-20, 20, width=32),
)


@given(SCORES, st.integers(1, 15))
def test_top_k_equals_transformers(scores: np.ndarray, k: int) -> None:
    wanted = TopKLogitsWarper(k)(None, torch.from_numpy(scores))
    np.testing.assert_array_equal(keep_top_k(scores, k), wanted)


@given(SCORES, st.floats(0.01, 0.999))
def test_top_p_equals_transformers(scores: np.ndarray, p: float) -> None:
    found, wanted = keep_top_p(scores, p), TopPLogitsWarper(p)(None, torch.from_numpy(scores)).numpy()
    ordered = -np.sort(-scores.astype(np.float64), axis=-1)
    shares = np.cumsum(np.exp(ordered - ordered[:, :1]), axis=-1)
    shares /= shares[:, -1:]
    clear = (np.abs(shares - p) > 1e-5).all(axis=-1) & (np.diff(ordered, axis=-1) < 0).all(axis=-1)
    np.testing.assert_array_equal(found[clear], wanted[clear])  # ties may be broken either way
    assert (np.isfinite(found).sum(axis=-1) >= 1).all()


@given(SCORES, st.floats(0.2, 5), st.data())
def test_the_repetition_penalty_equals_transformers(
    scores: np.ndarray, penalty: float, data: st.DataObject
) -> None:
    rows, vocabulary = scores.shape
    texts = data.draw(arrays(np.int64, (rows, 4), elements=st.integers(0, vocabulary - 1)))
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(texts), torch.from_numpy(scores))
    np.testing.assert_allclose(penalize(scores, texts.tolist(), penalty), wanted, rtol=1e-6)


@given(SCORES, st.floats(0.1, 3), st.integers(1, 6), st.floats(0.1, 0.99))
def test_what_is_drawn_is_left_by_all_of_them_in_order(
    scores: np.ndarray, temperature: float, k: int, p: float
) -> None:
    warped = torch.from_numpy(scores)
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(k),
        TopPLogitsWarper(min(p + 1e-3, 1.0)),
    ):
        warped = warper(None, warped)
    sampling = Sampling(temperature, k, p, seed=3)
    for _ in range(3):
        tokens = sampling.choose(scores, [], sampling.generators(len(scores)))
        chosen = warped.numpy()[np.arange(len(scores)), tokens]
        ties = np.array([(row == row[token]).sum() > 1 for row, token in zip(scores, tokens, strict=True)])
        assert (np.isfinite(chosen) | ties).all()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores = np.array([np.log(0.5), np.log(0.3), -np.inf, np.log(0.2)], np.float32)
    random = np.random.default_rng(0)
    counts = np.bincount([draw(scores, random) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0, 0.2], atol=0.03)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    scores = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    sampling = Sampling(temperature=1.0, seed=5)
    together = sampling.choose(scores, [], sampling.generators(3))
    assert sampling.choose(scores[:1], [], sampling.generators(1)) == together[:1]
    assert sampling.choose(scores, [], sampling.generators(3)) == together
    other = Sampling(temperature=1.0, seed=6)
    assert other.choose(scores, [], other.generators(3)) != together


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1, "temperature": 1.0},
        {"top_p": 0.0, "temperature": 1.0},
        {"top_p": 1.1, "temperature": 1.0},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"top_k": 3},
        {"top_p": 0.5},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RunError, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]
