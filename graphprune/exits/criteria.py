"""How sure an exit is of a sample: what is compared with its threshold.

All are higher where an exit is surer, and 1 at most, patience aside, which counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graphprune.exits.heads import fit_logistic, log_probabilities, temperature

Wide = NDArray[np.float64]
Ids = NDArray[np.int64]

Criterion = Literal["confidence", "margin", "entropy", "saturation", "patience", "rule"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
SAYS: dict[Criterion, str] = {
    "confidence": "the largest probability",
    "margin": "the largest probability less the second",
    "entropy": "1 − H / log C",
    "saturation": "the cosine of the pooled stream with that at the exit before",
    "patience": "how many exits in a row say the same (Zhou et al., 2020, arXiv:2006.04152)",
    "rule": "a linear rule of the three, fitted to whether the exit is right",
}
# Of the regularization of the learned rule, whose features are three.
_STRENGTH = 1e-3


@dataclass(frozen=True, eq=False)
class Scores:
    """What every exit says of every sample: the last exit stands behind all layers.

    `at` are the layers that have run, `scores` are [exits, samples, classes], `likeness` [1 + exits,
    1 + exits, samples] the cosines of the pooled streams with each other, the first before any layer.
    """

    at: tuple[int, ...]
    scores: NDArray[np.float32]
    likeness: NDArray[np.float32]

    @property
    def answers(self) -> Ids:
        """The class that every exit says: [exits, samples]."""
        found: Ids = self.scores.argmax(-1)
        return found

    @property
    def cosines(self) -> NDArray[np.float32]:
        """Of every exit's stream with that at the exit before, or before any layer: [exits, samples]."""
        places = np.arange(len(self.at))
        return self.likeness[places + 1, places]

    def part(self, samples: Ids) -> Scores:
        """Only some of the samples."""
        return Scores(self.at, self.scores[:, samples], self.likeness[:, :, samples])

    def only(self, exits: Sequence[int]) -> Scores:
        """Only some of the exits, by their places."""
        chosen = list(exits)
        places = [0, *(e + 1 for e in chosen)]
        likeness = self.likeness[np.ix_(places, places)]
        return Scores(tuple(self.at[e] for e in chosen), self.scores[chosen], likeness)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A criterion with what it takes: a temperature for each exit, for "rule" its weights [exits, 4]."""

    criterion: Criterion
    temperatures: tuple[float, ...]
    rules: Wide = field(default_factory=lambda: np.zeros((0, 4)))

    def sure(self, scores: Scores) -> Wide:
        """How sure every exit is of every sample: [exits, samples]."""
        if self.criterion == "saturation":
            return scores.cosines.astype(np.float64)
        if self.criterion == "patience":
            return _agreeing(scores.answers)
        told = [features(s, t) for s, t in zip(scores.scores, self.temperatures, strict=True)]
        if self.criterion == "rule":
            from scipy.special import expit

            return np.stack([expit(f @ r[:3] + r[3]) for f, r in zip(told, self.rules, strict=True)])
        place = ("confidence", "margin", "entropy").index(self.criterion)
        return np.stack([f[:, place] for f in told])


def tune(criterion: Criterion, scores: Scores, truth: Ids) -> Tuned:
    """Fit what a criterion takes to scores that the heads have not seen; `truth` are the samples' classes."""
    temperatures = tuple(temperature(one, truth) for one in scores.scores)
    if criterion != "rule":
        return Tuned(criterion, temperatures)
    each = zip(scores.scores, scores.answers, temperatures, strict=True)
    return Tuned(criterion, temperatures, np.stack([_rule(s, a == truth, t) for s, a, t in each]))


def features(scores: NDArray[Any], temperature: float) -> Wide:
    """Largest probability, margin and 1 − H / log C of softmax(scores / temperature): [samples, 3]."""
    logs = log_probabilities(scores.astype(np.float64) / temperature)
    shares = np.exp(logs)
    top = np.partition(shares, -2, axis=-1)[:, -2:]
    entropy = -(shares * np.maximum(logs, -700)).sum(-1) / np.log(shares.shape[1])
    return np.stack([top[:, 1], top[:, 1] - top[:, 0], 1 - entropy], axis=1)


def likeness_of(streams: Sequence[Wide]) -> NDArray[np.float32]:
    """The cosine of each pooled stream [samples, width] with every other: [streams, streams, samples]."""
    found = np.ones((len(streams), len(streams), len(streams[0])), np.float32)
    sized = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-30) for one in streams]
    for k, stream in enumerate(sized):
        for other in range(k):
            found[k, other] = found[other, k] = np.einsum("nw,nw->n", stream, sized[other])
    return found


def _rule(scores: NDArray[Any], right: NDArray[np.bool_], temperature: float) -> Wide:
    """Weights [4] of sigmoid(w · features + b), fitted to where the exit is right."""
    if right.all() or not right.any():
        return np.array([0.0, 0.0, 0.0, 10.0 if right.all() else -10.0])
    found = fit_logistic(features(scores, temperature), right.astype(np.int64), 2, _STRENGTH)
    return np.append(found.weight[:, 1] - found.weight[:, 0], found.bias[1] - found.bias[0])


def _agreeing(answers: Ids) -> Wide:
    """How many exits in a row, up to each, say the same: [exits, samples], from 1."""
    counts = np.ones(answers.shape)
    for place in range(1, len(answers)):
        counts[place] += np.where(answers[place] == answers[place - 1], counts[place - 1], 0)
    return counts
