"""Criteria by numpy, and the learned rule by what it is fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.exits.criteria import CRITERIA, SAYS, Scores, Tuned, features, likeness_of, tune


def alike(cosines: np.ndarray) -> np.ndarray:
    """Likeness of which nothing but the cosines of neighbours counts."""
    exits, samples = cosines.shape
    found = np.full((exits + 1, exits + 1, samples), np.nan, np.float32)
    found[np.arange(1, exits + 1), np.arange(exits)] = cosines
    return found


def scores(exits: int = 3, samples: int = 200, classes: int = 4) -> tuple[Scores, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, samples)
    found = random.standard_normal((exits, samples, classes)).astype(np.float32)
    found[:, np.arange(samples), truth] += np.linspace(0.5, 2, exits)[:, None]
    return Scores((2, 4, 6)[:exits], found, alike(random.uniform(-1, 1, (exits, samples)))), truth


def test_features_are_what_they_are_called() -> None:
    found = features(np.log([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]]) * 2.0, 2.0)
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(3)
    np.testing.assert_allclose(found, [[0.5, 0.2, 1 - entropy], [1 / 3, 0, 0]], atol=1e-12)


def test_certain_scores_are_finite() -> None:
    assert features(np.array([[1e6, 0.0], [-np.inf, 0.0]]), 0.01).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_cosines_are_of_neighbours() -> None:
    streams = [np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), np.array([[-2.0, -2.0]]), np.zeros((1, 2))]
    whole = Scores((1, 2, 3), np.zeros((3, 1, 2), np.float32), likeness_of(streams))
    np.testing.assert_allclose(whole.cosines[:, 0], [np.sqrt(0.5), -1, 0], atol=1e-7)
    np.testing.assert_allclose(whole.only([1]).cosines[:, 0], [-np.sqrt(0.5)], atol=1e-7)
    np.testing.assert_allclose(whole.only([0, 2]).cosines[:, 0], [np.sqrt(0.5), 0], atol=1e-7)


def test_patience_counts_exits_that_say_the_same() -> None:
    answers = np.array([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 1, 0], [1, 2, 1, 0]])
    found = Tuned("patience", (1.0,) * 4).sure(
        Scores((1, 2, 3, 4), np.eye(3)[answers].astype(np.float32), alike(answers * 0.0))
    )
    assert found.T.tolist() == [[1, 2, 3, 1], [1, 2, 1, 2], [1, 1, 2, 3], [1, 1, 1, 2]]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exits_that_are_surer_are_right_more_often(criterion: str) -> None:
    given, truth = scores(samples=4000)
    right = given.answers == truth
    given = Scores(given.at, given.scores, alike(np.where(right, 0.8, 0.7) + 0.1 * given.cosines))
    sure = tune(criterion, given, truth).sure(given)  # type: ignore[arg-type]
    assert SAYS[criterion] and sure.shape == right.shape  # type: ignore[index]
    for one, correct in zip(sure[1:], right[1:], strict=True):
        high = one > np.median(one) if criterion != "patience" else one > 1
        assert correct[high].mean() > correct[~high].mean() + 0.05


def test_with_two_classes_three_criteria_are_one_rule() -> None:
    given, truth = scores(classes=2)
    orders = [
        np.argsort(tune(criterion, given, truth).sure(given)[1], kind="stable").tolist()  # type: ignore[arg-type]
        for criterion in ("confidence", "margin", "entropy")
    ]
    assert orders[0] == orders[1] == orders[2]


def test_the_rule_says_how_often_an_exit_is_right() -> None:
    given, truth = scores(samples=8000)
    sure, right = tune("rule", given, truth).sure(given), given.answers == truth
    for one, correct in zip(sure, right, strict=True):
        assert one.mean() == pytest.approx(correct.mean(), abs=0.01)
        for half in (one < np.median(one), one >= np.median(one)):
            assert one[half].mean() == pytest.approx(correct[half].mean(), abs=0.03)


def test_a_rule_for_an_exit_that_is_never_right_or_always() -> None:
    given, _ = scores()
    answers = given.answers[0]
    assert (tune("rule", given.only([0]), answers).sure(given.only([0])) > 0.99).all()
    assert (tune("rule", given.only([0]), (answers + 1) % 4).sure(given.only([0])) < 0.01).all()
