"""What fitting exits comes to: where samples leave, by which thresholds, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphprune.exits.criteria import Criterion, Tuned
from graphprune.exits.heads import Head, Linear
from graphprune.exits.rules import Point
from graphprune.exits.watching import Pool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.healing.moments import Affine

# What counts as right: the label, or what the dense model says.
Goal = Literal["accuracy", "agreement"]


@dataclass(frozen=True)
class Share:
    """A share of samples with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Exit:
    """One exit on the samples that were held out.

    `layers` have run, `threshold` is None at the end, where all leave. `alone` is how many it would answer
    rightly of all samples, `here` of those that leave here (None where none does).
    """

    layers: int
    threshold: float | None
    left: int
    alone: Share
    here: Share | None


@dataclass(frozen=True)
class Example:
    """A text that left after `layers`, what was said and whether that is right."""

    layers: int
    text: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Held:
    """What the exits come to on samples that nothing was fitted to.

    `point` is the rule that was chosen; `best` the best single layer (by what was fitted to) and its share
    of right answers; `dense` that of the model itself and `agreement` with it, where it puts out classes;
    `perplexity` of the rule and of the model, where samples are tokens. `curve` has all thresholds, from
    never to always, and `perplexities` what they come to, where samples are tokens.
    """

    samples: int
    exits: tuple[Exit, ...]
    point: Point
    best: tuple[int, Share]
    dense: Share | None
    agreement: Share | None
    perplexity: tuple[float, float] | None
    curve: tuple[Point, ...]
    perplexities: tuple[float, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, eq=False)
class Rule:
    """Exits that were fitted: after `at` layers, the last of which is the end for all that is left.

    `heads` are classifiers or translators by the number of layers, none where the model's own head is taken
    as it is. `told` is what the thresholds came to on the samples by which they were found, `fitted` and
    `calibrated` how many samples the heads and the thresholds have seen; `held` on those held out.
    """

    layers: int
    at: tuple[int, ...]
    thresholds: tuple[float, ...]
    head: Head
    criterion: Criterion
    tuned: Tuned
    heads: Mapping[int, Linear | Affine]
    pool: Pool
    goal: Goal
    chosen: str
    told: Point
    fitted: int
    calibrated: int
    held: Held

    @property
    def inner(self) -> tuple[int, ...]:
        """The exits before the last layer; where the end is earlier, all leave there at the latest."""
        return tuple(k for k in self.at if k < self.layers)

    def values(self) -> dict[str, NDArray[Any]]:
        """What was fitted, float32, by `<layers>/<key>`, as the pass `insert_exits` reads it."""
        found: dict[str, Any] = {}
        for k, head in self.heads.items():
            if k in self.at or k == self.layers:
                found |= _of_head(k, head, classifier=self.head in ("ridge", "logistic"))
            if k == self.layers:
                found[f"{k}/pool"] = self._pool
        for place, (k, threshold) in enumerate(zip(self.at, self.thresholds, strict=False)):
            found |= {f"{k}/threshold": threshold, f"{k}/pool": self._pool}
            found |= self._of_criterion(place, k)
        return {key: _array(value) for key, value in found.items()}

    @property
    def _pool(self) -> Pool:
        """What an exit reads of a row: of tokens that have scores of their own, the last."""
        return self.pool if self.held.perplexity is None else "last"

    def _of_criterion(self, place: int, k: int) -> dict[str, Any]:
        found: dict[str, Any] = {f"{k}/temperature": self.tuned.temperatures[place]}
        if self.criterion == "rule":
            found[f"{k}/rule"] = self.tuned.rules[place]
        return found


def _of_head(k: int, head: Linear | Affine, *, classifier: bool) -> dict[str, Any]:
    if not classifier:
        return {f"{k}/translator": head.weight, f"{k}/translator_bias": head.bias}
    return {f"{k}/weight": head.weight, f"{k}/bias": head.bias}


def _array(value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    return np.ascontiguousarray(array, np.float32).reshape(array.shape) if array.dtype.kind == "f" else array
