"""What quality choices will have, told from those that were evaluated: what every action costs adds up.

A metric of few examples is noisy: one evaluation says little, the sum that fits all of them best says more.
Which choices are worth an evaluation is asked of it; what they are worth is always evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphprune.searching.goals import worth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.healing.choice import Action
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.space import Picks, Space

    Wide = NDArray[np.float64]

# Strengths of the ridge, of which the one is taken that tells each evaluation best from all others.
_STRENGTHS = tuple(10.0**power for power in range(-4, 3))
# So many evaluations are needed for a sum over blocks to say anything.
_FEWEST = 8


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A sum over blocks: `base`, and what each action on each block, by its place, adds."""

    base: float
    adds: Mapping[tuple[int, Action], float]

    def worth(self, picks: Picks) -> float:
        """The share of the dense quality that is expected of a choice."""
        return self.base + sum(self.adds.get(pair, 0.0) for pair in enumerate(picks))


def fit_surrogate(space: Space, evaluated: Sequence[tuple[Picks, Quality]]) -> Surrogate | None:
    """The sum that fits evaluations best; None where these are too few.

    Ridge regression, its strength by the closed form of leaving one out (Allen's PRESS, 1974).
    """
    known = [(picks, worth(quality)) for picks, quality in evaluated if math.isfinite(worth(quality))]
    if len(known) < _FEWEST:
        return None
    pairs = [(place, one) for place, block in enumerate(space.blocks) for one in space.actions[block]]
    columns = np.array([[picks[place] == action for place, action in pairs] for picks, _ in known], float)
    values = np.array([kept for _, kept in known])
    base = float(values.mean())
    centre = columns.mean(0)
    errors = {strength: _press(columns - centre, values - base, strength) for strength in _STRENGTHS}
    weights = _ridge(columns - centre, min(errors, key=lambda one: errors[one])) @ (values - base)
    adds = dict(zip(pairs, weights.tolist(), strict=True))
    return Surrogate(base - float(centre @ weights), adds)


def _ridge(columns: Wide, strength: float) -> Wide:
    """The matrix that makes weights of values."""
    gram = columns.T @ columns + strength * np.eye(columns.shape[1])
    solved: Wide = np.linalg.solve(gram, columns.T)
    return solved


def _press(columns: Wide, values: Wide, strength: float) -> float:
    """Σ of the squared errors at each row when all others are fitted to."""
    hat = columns @ _ridge(columns, strength)
    left = 1 - np.diagonal(hat) - 1 / len(values)
    return float((((values - hat @ values) / np.maximum(left, 1e-3)) ** 2).sum())
