"""Classifiers of the pooled stream, without backpropagation: ridge, and logistic by SciPy's L-BFGS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.fits import ridges
from graphprune.healing.moments import Moments

Wide = NDArray[np.float64]
Ids = NDArray[np.int64]

Head = Literal["ridge", "logistic", "own", "translator"]
HEADS: tuple[Head, ...] = get_args(Head)

# λ beside the mean loss on features of unit variance; for ridge, shares of the mean eigenvalue.
_LOGISTIC = (0.2, 0.02, 0.002)
_RIDGE = (10.0, 1.0, 0.1)
FOLDS = 5
# How many scores one temperature is fitted to, at most: every so many samples of large vocabularies.
_NUMBERS = 1 << 23


@dataclass(frozen=True, eq=False)
class Linear:
    """Scores `x @ weight + bias` of classes: [width, classes] and [classes]."""

    weight: Wide
    bias: Wide

    def __call__(self, x: Wide) -> Wide:
        """The scores of [rows, width], float64 [rows, classes]."""
        return x @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head fitted to all rows, and the scores [rows, classes] that each fold got from the other folds."""

    head: Linear
    unseen: Wide


def fit_head(kind: Head, x: Wide, y: Ids, classes: int, folds: Ids) -> Fitted:
    """Fit a classifier to rows [n, width] with classes [n]; `folds` [n] says to which fold a row belongs.

    Of several strengths of regularization, the one that does best on the first fold is taken. Raises
    `RunError` where a fold leaves fewer than two classes to the others.
    """
    for fold in range(int(folds.max()) + 1):
        if len(np.unique(y[folds != fold])) < 2:
            raise RunError("the labels to fit to are all of one class: give examples of at least two")
    first = folds == 0
    tried = [loss(head(x[first]), y[first]) for head in _heads(kind, x[~first], y[~first], classes)]
    best = int(np.argmin(tried))
    unseen = np.empty((len(x), classes))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        unseen[out] = _nth(_heads(kind, x[~out], y[~out], classes), best)(x[out])
    return Fitted(_nth(_heads(kind, x, y, classes), best), unseen)


def folds_of(rows: int, seed: int = 0) -> Ids:
    """A fold for every row, drawn by `seed`: all of one size, give or take one."""
    return np.random.default_rng(seed).permutation(np.arange(rows) % min(FOLDS, rows)).astype(np.int64)


def log_probabilities(scores: NDArray[Any]) -> Wide:
    """Logarithms of the softmax of scores [..., classes], float64."""
    from scipy.special import log_softmax

    found: Wide = log_softmax(scores.astype(np.float64), axis=-1)
    return found


def loss(scores: NDArray[Any], y: Ids) -> float:
    """The cross entropy of scores [n, classes] at their best temperature: only what they tell counts."""
    return _at_temperature(scores, y)[1]


def temperature(scores: NDArray[Any], y: Ids) -> float:
    """The T for which softmax(scores / T) fits classes [n] best (Guo et al., 2017, arXiv:1706.04599)."""
    return _at_temperature(scores, y)[0]


def _at_temperature(scores: NDArray[Any], y: Ids) -> tuple[float, float]:
    from scipy.optimize import minimize_scalar

    step = 1 + (scores.size - 1) // _NUMBERS
    wide, y = scores[::step].astype(np.float64), y[::step]
    rows = np.arange(len(y))

    def entropy(power: float) -> float:
        return -float(log_probabilities(wide / np.exp(power))[rows, y].mean())

    found = minimize_scalar(entropy, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x)), float(found.fun)


def fit_logistic(x: Wide, y: Ids, classes: int, strength: float, begin: Wide | None = None) -> Linear:
    """Multinomial logistic regression: mean cross entropy + strength/2 · ‖W‖² on features of unit variance.

    `begin` [(width + 1) · classes] is where the search begins; the cost is convex, so any place will do.
    """
    return next(_logistic(x, y, classes, (strength,), begin))


def _heads(kind: Head, x: Wide, y: Ids, classes: int) -> Iterator[Linear]:
    """Heads of one strength after another, the strongest first."""
    if kind == "logistic":
        return _logistic(x, y, classes, _LOGISTIC)
    moments = Moments()
    moments.add(x.astype(np.float32), np.eye(classes, dtype=np.float32)[y])
    return (
        Linear(one.weight.astype(np.float64), one.bias.astype(np.float64)) for one in ridges(moments, _RIDGE)
    )


def _logistic(
    x: Wide, y: Ids, classes: int, strengths: tuple[float, ...], begin: Wide | None = None
) -> Iterator[Linear]:
    from scipy.optimize import minimize

    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-9 * max(float(np.abs(x).max(initial=0.0)), 1e-30), spread, 1.0)
    scaled, wanted = (x - mean) / spread, np.eye(classes)[y]
    place = np.zeros((x.shape[1] + 1) * classes) if begin is None else begin
    for strength in strengths:
        found = minimize(
            _cost, place, (scaled, wanted, strength), "L-BFGS-B", jac=True, options={"maxiter": 200}
        )
        place = found.x
        whole = place.reshape(-1, classes)
        weight = whole[:-1] / spread[:, None]
        yield Linear(weight, whole[-1] - mean @ weight)


def _cost(place: Wide, x: Wide, wanted: Wide, strength: float) -> tuple[float, Wide]:
    """The cost of weights and bias in one vector, and its slope."""
    whole = place.reshape(-1, wanted.shape[1])
    logs = log_probabilities(x @ whole[:-1] + whole[-1])
    off = (np.exp(logs) - wanted) / len(x)
    slope = np.vstack([x.T @ off + strength * whole[:-1], off.sum(0)])
    cost = -float((wanted * logs).sum()) / len(x) + strength / 2 * float((whole[:-1] ** 2).sum())
    return cost, slope.reshape(-1)


def _nth(heads: Iterator[Linear], number: int) -> Linear:
    return [head for _, head in zip(range(number + 1), heads, strict=False)][-1]
