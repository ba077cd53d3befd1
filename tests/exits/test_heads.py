"""Heads: what scikit-learn fits, scores that a head has not seen, temperatures by a grid."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import RunError
from graphprune.exits.heads import fit_head, fit_logistic, folds_of, log_probabilities, loss, temperature


def data(rows: int = 300, width: int = 7, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, width)) * np.linspace(0.1, 5, width) + 3
    y = (x @ random.standard_normal((width, classes)) + random.gumbel(size=(rows, classes)) * 3).argmax(1)
    return x, y


def test_ridge_is_the_regression_of_one_hot_classes() -> None:
    x, y = data()
    head = fit_head("ridge", x, y, 3, folds_of(len(y))).head
    centred, wanted = x - x.mean(0), np.eye(3)[y] - np.eye(3)[y].mean(0)
    gram = centred.T @ centred
    near = []
    for strength in (10.0, 1.0, 0.1):
        weight = np.linalg.solve(gram + strength * np.trace(gram) / 7 * np.eye(7), centred.T @ wanted)
        near.append(np.abs(head.weight - weight).max())
    assert min(near) < 1e-5
    np.testing.assert_allclose(head(x).mean(0), np.eye(3)[y].mean(0), atol=1e-5)


def test_logistic_is_that_of_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.linear_model", reason="scikit-learn comes with the extra dev")
    x, y = data()
    scaled = (x - x.mean(0)) / x.std(0)
    other = learn.LogisticRegression(C=1 / (0.05 * len(y)), tol=1e-8, max_iter=1000).fit(scaled, y)
    found = np.exp(log_probabilities(fit_logistic(x, y, 3, 0.05)(x)))
    np.testing.assert_allclose(found, other.predict_proba(scaled), atol=2e-3)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_scores_of_a_fold_do_not_depend_on_its_own_classes(kind: str) -> None:
    x, y = data()
    folds = folds_of(len(y))
    before = fit_head(kind, x, y, 3, folds).unseen  # type: ignore[arg-type]
    other = np.where(folds == 3, (y + 1) % 3, y)
    after = fit_head(kind, x, other, 3, folds).unseen  # type: ignore[arg-type]
    np.testing.assert_allclose(after[folds == 3], before[folds == 3], atol=1e-6)
    assert np.abs(after[folds == 2] - before[folds == 2]).max() > 1e-3


def test_folds_are_of_one_size_and_drawn_by_the_seed() -> None:
    assert np.bincount(folds_of(13)).tolist() == [3, 3, 3, 2, 2]
    assert (folds_of(99, 1) == folds_of(99, 1)).all() and (folds_of(99, 1) != folds_of(99, 2)).any()


def test_the_temperature_is_the_best_of_a_grid() -> None:
    random = np.random.default_rng(1)
    scores = random.standard_normal((4000, 4)) * 3
    y = (scores / 2.5 + random.gumbel(size=scores.shape)).argmax(1)
    grid = np.exp(np.linspace(-2, 3, 501))
    costs = [-log_probabilities(scores / t)[np.arange(4000), y].mean() for t in grid]
    assert temperature(scores, y) == pytest.approx(grid[int(np.argmin(costs))], rel=0.02)
    assert loss(scores, y) == pytest.approx(min(costs), abs=1e-5)
    assert loss(scores * 7, y) == pytest.approx(loss(scores, y), abs=1e-5)


def test_one_class_is_refused() -> None:
    with pytest.raises(RunError, match="all of one class"):
        fit_head("ridge", np.ones((9, 2)), np.zeros(9, np.int64), 2, folds_of(9))


def test_a_feature_that_does_not_vary_says_nothing() -> None:
    x, y = data()
    still = np.hstack([x, np.full((len(x), 1), 7.0)])
    found = fit_logistic(still, y, 3, 0.05)
    np.testing.assert_allclose(found(still), fit_logistic(x, y, 3, 0.05)(x), atol=1e-3)
    assert np.isfinite(found.weight).all() and np.abs(found.weight[-1]).max() < 1e-6
