"""When samples leave, and the threshold by which nothing, or not more than was said, is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.exits.criteria import Criterion

Wide = NDArray[np.float64]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

NEVER, ALWAYS = 2.0, -1.0
SURE = 0.95
# One sample is just one standard error, which rounding must not decide.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Point:
    """One threshold on the way from never to always, on samples that count.

    `depth` are layers that run on average, `right` is the share of samples answered rightly, `gained` that
    share less the reference's; the `_error` are standard errors; `lost` are samples that the reference has
    right and the rule has not.
    """

    threshold: float
    depth: float
    right: float
    gained: float
    depth_error: float
    right_error: float
    gained_error: float
    lost: int
    samples: int


@dataclass(frozen=True, eq=False)
class Trial:
    """Samples by which thresholds are told: how sure each exit is, and where it is right.

    `sure` and `right` are [exits, samples]; `at` the layers that have run at each exit; the last exit takes
    all that is left. `reference` [samples] says where the answer to be held to is right. `decay` is by how
    much a threshold shrinks from exit to exit.
    """

    at: tuple[int, ...]
    sure: Wide
    right: Flags
    reference: Flags
    decay: float = 1.0

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """That of every exit but the last; never stays never."""
        return spread(threshold, len(self.at) - 1, self.decay)

    def point(self, threshold: float) -> Point:
        """What one threshold comes to."""
        leaves = left(self.sure, self.thresholds(threshold))
        depth = np.array(self.at, np.float64)[leaves]
        right = self.right[leaves, np.arange(len(leaves))]
        gained = right.astype(np.float64) - self.reference
        return Point(
            threshold, float(depth.mean()), float(right.mean()), float(gained.mean()), standard_error(depth),
            standard_error(right), standard_error(gained), int((self.reference & ~right).sum()), len(right),
        )  # fmt: skip

    def curve(self, thresholds: Sequence[float]) -> tuple[Point, ...]:
        """A point for each threshold."""
        return tuple(self.point(one) for one in thresholds)


def left(sure: Wide, thresholds: Sequence[float]) -> Ids:
    """At which exit each sample leaves: the first that is as sure as its threshold, else the last one.

    `sure` is [exits, samples]; there is a threshold for every exit but the last.
    """
    go = np.vstack([sure[:-1] >= np.array(thresholds)[:, None], np.ones((1, sure.shape[1]), bool)])
    found: Ids = go.argmax(0)
    return found


def spread(threshold: float, exits: int, decay: float) -> tuple[float, ...]:
    """A threshold for each exit, that of the first decaying geometrically; never and always stay so."""
    if threshold > 1 or threshold <= ALWAYS:
        return (threshold,) * exits
    return tuple(threshold * decay**place for place in range(exits))


def candidates(criterion: Criterion, exits: int) -> tuple[float, ...]:
    """Thresholds from never to always. They do not depend on data, so that tests of them in turn are fair."""
    if criterion == "patience":
        return tuple(float(count) for count in range(max(exits, 2), 1, -1))
    fine = 1 - np.logspace(-5, -2, 31)
    found = np.unique(np.concatenate([np.linspace(0, 0.99, 100), fine]))[::-1]
    return (NEVER, *map(float, found))


def standard_error(values: NDArray[np.generic]) -> float:
    """Of the mean of values [n]."""
    return float(values.astype(np.float64).std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def within_one_error(curve: Sequence[Point]) -> Point:
    """The smallest depth that answers as many rightly as the best point, less one standard error.

    The one-standard-error rule (Breiman et al., 1984). The error is that of what the best point gains over
    the reference, sample by sample: most samples are easy or hopeless for both, and say nothing.
    """
    best = max(curve, key=lambda one: one.right)
    good = (one for one in curve if one.right >= best.right - best.gained_error - ROUNDING)
    return min(good, key=lambda one: one.depth)


def certified(curve: Sequence[Point], risk: float) -> Point:
    """The smallest depth at which, at 95% confidence, a sample is lost with a probability of at most `risk`.

    Learn then Test (Angelopoulos et al., 2021, arXiv:2110.01052): from never on, thresholds are tested in
    turn by an exact binomial tail bound, up to the first that does not pass. The samples must not have been
    fitted to. Raises `RunError` where they are too few to say anything.
    """
    from scipy.stats import binom

    passed = None
    for one in curve:
        if float(binom.cdf(one.lost, one.samples, risk)) > 1 - SURE:
            break
        passed = one
    if passed is None:
        raise RunError(
            f"a risk of {risk:.3g} cannot be shown with {curve[0].samples} samples: give at least "
            f"{fewest(risk)}, or allow more risk"
        )
    return passed


def fewest(risk: float) -> int:
    """With how many samples, none of them lost, a risk is certified."""
    return int(np.ceil(np.log(1 - SURE) / np.log1p(-risk)))


def as_deep_as(curve: Sequence[Point], depth: float) -> Point:
    """The most careful threshold at which no more than `depth` layers run on average. Raises `RunError`."""
    found = next((one for one in curve if one.depth <= depth), None)
    if found is None:
        least = min(one.depth for one in curve)
        raise RunError(f"an average depth of {depth:g} is not to be had: the least is {least:.2f} layers")
    return found
