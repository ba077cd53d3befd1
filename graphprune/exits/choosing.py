"""From samples to a rule: which layer is the end, which thresholds, and what they come to where held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import SelectionError
from graphprune.exits.criteria import CRITERIA, Criterion, tune
from graphprune.exits.found import Exit, Goal, Held, Rule, Share
from graphprune.exits.heads import HEADS, Head, log_probabilities
from graphprune.exits.rules import (
    ALWAYS,
    ROUNDING,
    Point,
    Trial,
    as_deep_as,
    candidates,
    certified,
    left,
    standard_error,
    within_one_error,
)
from graphprune.exits.samples import Evidence, Samples
from graphprune.exits.watching import POOLS, Pool

Flags = NDArray[np.bool_]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Wish:
    """What exits should be like.

    `at` are boundaries, so many layers having run (none: every one). `risk` 0 asks that no more is lost than
    the one-standard-error rule allows, a larger one that a sample is lost with at most this probability, at
    95% confidence; `depth` for so many layers on average instead. A threshold shrinks from exit to exit by
    `decay`. Raises `SelectionError` where these cannot be.
    """

    at: tuple[int, ...] = ()
    head: Head | None = None
    criterion: Criterion = "confidence"
    risk: float = 0.0
    depth: float | None = None
    decay: float = 1.0
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        for name, given, known in (
            ("head", self.head, HEADS), ("criterion", self.criterion, CRITERIA), ("pool", self.pool, POOLS),
        ):  # fmt: skip
            if given is not None and given not in known:
                raise SelectionError(f"there is no {name} {given!r}: take one of {', '.join(known)}")
        if not 0 <= self.risk < 1:
            raise SelectionError(f"a risk of {self.risk:g} is no probability: give one from 0 to below 1")
        if not 0 < self.decay <= 1:
            raise SelectionError(f"a decay of {self.decay:g} is not above 0 and at most 1")
        if self.depth is not None and (self.risk or not self.depth > 0):
            raise SelectionError("a depth is a number of layers above 0, and is asked for in place of a risk")


def choose(evidence: Evidence, wish: Wish, head: Head, goal: Goal, layers: int) -> Rule:
    """Find the end and the thresholds on what was fitted, and judge them on what was held out.

    Raises `RunError` where the risk or the depth cannot be had.
    """
    # What a risk is shown by must not have been looked at before.
    best, end = _best_and_end(evidence.tuned if wish.risk else evidence.told, goal, layers)
    if head == "translator" and wish.risk:
        end = layers  # maps do better on what they were fitted to than what they lead to
    places = _places(evidence.tuned, wish.at, end)
    tuned, told, held = (one.only(places) for one in (evidence.tuned, evidence.told, evidence.held))
    rule = tune(wish.criterion, tuned.scores, tuned.truth)
    trials = [
        Trial(kept.scores.at, rule.sure(kept.scores), kept.right, _reference(whole, best, goal), wish.decay)
        for kept, whole in ((told, evidence.told), (held, evidence.held))
    ]
    point, chosen = _chosen(trials[0].curve(candidates(wish.criterion, len(places))), wish)
    thresholds = trials[0].thresholds(point.threshold)
    at = told.scores.at
    judged = _judged(held, evidence.held, trials[1], point.threshold, best, wish.criterion)
    return Rule(
        layers, at, thresholds if at[-1] == layers else (*thresholds, ALWAYS), head, wish.criterion, rule,
        evidence.heads, wish.pool, goal, chosen, point, len(evidence.tuned.truth), len(told.truth), judged,
    )  # fmt: skip


def _best_and_end(samples: Samples, goal: Goal, layers: int) -> tuple[int, int]:
    """The place of the best single layer, and the boundary behind which no sample has to go.

    That is the last one that is within one standard error of the best: the end is where hard samples go, and
    layers that are much alike are told apart by chance.
    """
    if goal == "agreement":
        return len(samples.scores.at) - 1, layers
    right = samples.right.astype(np.float64)
    best = int(right.mean(1).argmax())
    off = right - right[best]
    close = [e for e, one in enumerate(off) if one.mean() >= -standard_error(one) - ROUNDING]
    return best, samples.scores.at[max(close)]


def _places(samples: Samples, at: Sequence[int], end: int) -> list[int]:
    """The places of the exits up to the end."""
    wanted = {k for k in (at or samples.scores.at) if k < end} | {end}
    return [place for place, k in enumerate(samples.scores.at) if k in wanted]


def _reference(samples: Samples, best: int, goal: Goal) -> Flags:
    """Where the answer to be held to is right: the best single layer's, or always the dense model's."""
    return np.ones(len(samples.truth), bool) if goal == "agreement" else samples.right[best]


def _chosen(curve: tuple[Point, ...], wish: Wish) -> tuple[Point, str]:
    """The point that was asked for, and in words how it was found."""
    if wish.depth is not None:
        return as_deep_as(curve, wish.depth), f"at most {wish.depth:g} layers on average"
    if wish.risk:
        said = f"lost with a probability of at most {wish.risk:g}, at 95% confidence (Learn then Test)"
        return certified(curve, wish.risk), said
    return within_one_error(curve), "within one standard error of the best threshold"


def _judged(
    held: Samples,
    whole: Samples,
    trial: Trial,
    threshold: float,
    best: int,
    criterion: Criterion,
) -> Held:
    """What the rule comes to on the samples held out."""
    tried, thresholds = candidates(criterion, len(trial.at)), trial.thresholds(threshold)
    leaves = left(trial.sure, thresholds)
    exits = tuple(
        Exit(
            k, thresholds[e] if e < len(thresholds) else None, int((leaves == e).sum()),
            share(trial.right[e]), share(trial.right[e][leaves == e]) if (leaves == e).any() else None,
        )
        for e, k in enumerate(trial.at)
    )  # fmt: skip
    curve, point = trial.curve(tried), trial.point(threshold)
    told = _perplexities(held, trial, tried)
    answers = held.scores.answers[leaves, np.arange(len(leaves))]
    dense = None if held.dense is None else share(held.dense == held.truth)
    agreement = None if held.dense is None else share(answers == held.dense)
    return Held(
        len(leaves), exits, point, (whole.scores.at[best], share(whole.right[best])),
        dense, agreement, (told[curve.index(point)], told[0]) if told else None, curve, told,
    )  # fmt: skip


def _perplexities(samples: Samples, trial: Trial, thresholds: Sequence[float]) -> tuple[float, ...]:
    """That of each threshold, where samples are tokens; else nothing."""
    if samples.following is None:
        return ()
    each = np.stack([_surprise(scores, samples.following) for scores in samples.scores.scores])
    ways = (left(trial.sure, trial.thresholds(one)) for one in thresholds)
    return tuple(float(np.exp(each[way, np.arange(len(way))].mean())) for way in ways)


def _surprise(scores: NDArray[np.float32], tokens: Ids) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -log_probabilities(scores)[np.arange(len(tokens)), tokens]
    return found


def share(flags: Flags) -> Share:
    """How many of [n] are true, with the standard error."""
    return Share(float(flags.mean()), standard_error(flags))
