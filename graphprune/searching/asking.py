"""Ask how good choices are: each once, in parallel, stored as it comes, within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from graphprune.errors import RunError
from graphprune.searching.evaluating import Opener, Quality, evaluate
from graphprune.searching.surrogate import Surrogate, fit_surrogate

if TYPE_CHECKING:
    from graphprune.searching.goals import Goal, Price
    from graphprune.searching.pricing import Pricing
    from graphprune.searching.space import Picks, Space
    from graphprune.searching.trials import Trials

# The level at which choices are asked about as they are, not healed; and of each further level, the share
# of the choices that goes on to the next, and how many at least.
SHORTLIST = "shortlist"
SHARE, FEWEST = 0.25, 3


# What choices are compared by at a level: the smaller, the better.
Key: TypeAlias = "Callable[[str, Picks, Quality], Any]"


class Workers(Protocol):
    """What runs functions, here or elsewhere (`workers.open_workers`)."""

    def map(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], *, done: Callable[[int, Any], None] | None
    ) -> list[Any]:
        """What the function returns for every task, in their order."""
        ...


@dataclass
class Budget:
    """How much may be asked: `trials` choices, `seconds` in all; None: no limit.

    A choice counts at each level at which it is asked about, also where the answer is known already: so a
    search that goes on asks the same as one that was never broken off. Seconds are those of this process.
    """

    trials: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def used(self) -> float:
        """The share of it that is used up, 0 without limits."""
        of_trials = self.spent / self.trials if self.trials else 0.0
        return max(of_trials, (self.clock() - self.started) / self.seconds if self.seconds else 0.0)

    @property
    def left(self) -> int:
        """How many choices may still be asked about."""
        late = self.seconds is not None and self.clock() - self.started >= self.seconds
        return 0 if late else (1 << 30) if self.trials is None else max(0, self.trials - self.spent)


@dataclass(eq=False)
class Asker:
    """Asks about the choices of a space.

    `openers` are the evaluators by level; `levels` those at which choices compete, from little to all of
    the data. `tell` is called with the level and the number of choices asked about.
    """

    space: Space
    goal: Goal
    pricing: Pricing
    openers: dict[str, Opener]
    levels: tuple[str, ...]
    trials: Trials
    workers: Workers
    budget: Budget
    tell: Callable[[str], None] = lambda what: None
    _asked: dict[tuple[str, Picks], None] = field(default_factory=dict)

    @property
    def top(self) -> str:
        """The level that decides."""
        return self.levels[-1]

    def price(self, picks: Picks) -> Price:
        """What a choice costs."""
        return self.pricing.of(self.space.choice(picks))

    def pay(self, picks: Picks) -> float:
        """The one cost that the frontier is drawn over."""
        return self.price(picks)[self.goal.cost]

    def within(self, picks: Picks) -> bool:
        """Whether a choice is within all limits."""
        return self.goal.within(self.price(picks))

    def rank(self, picks: Picks, quality: Quality) -> tuple[float, ...]:
        """What choices are compared by: the smaller, the better."""
        return self.goal.rank(self.price(picks), quality)

    def ask(self, level: str, choices: Sequence[Picks]) -> list[Quality]:
        """How good choices are, in their order. Raises `RunError` where not even the first could be told."""
        found = {picks: self.trials.find(level, picks) for picks in choices}
        new = [picks for picks, quality in found.items() if quality is None]
        fresh = [(level, picks) for picks in found if (level, picks) not in self._asked]
        self.budget.spent += len(fresh) * (level != SHORTLIST)
        self._asked |= dict.fromkeys(fresh)
        if new:
            self.tell(f"{len(new)} choices, {level}")
            tasks = [(self.openers[level], self.space.choice(picks)) for picks in new]

            def store(number: int, quality: Quality) -> None:
                picks = new[number]
                self.trials.add(level, picks, self.price(picks), self.goal.cost, quality)

            answers = self.workers.map(evaluate, tasks, done=store)
            found |= dict(zip(new, answers, strict=True))
        qualities = [quality for picks in choices if (quality := found[picks]) is not None]
        reasons = [quality.reason for quality in qualities if quality.reason]
        if choices and len(reasons) == len(qualities) and not self.trials.of(level)[0].quality.score > -1e300:
            raise RunError(f"no choice of blocks can be evaluated: {reasons[0]}")
        return qualities

    def told(self, level: str) -> Surrogate | None:
        """What all evaluations say that this search has asked for; others that are stored do not count.

        So a search that goes on is told what it was told when it was broken off.
        """
        asked = (picks for one, picks in self._asked if one == level)
        known = [(picks, quality) for picks in asked if (quality := self.trials.find(level, picks))]
        return fit_surrogate(self.space, known)

    def race(self, choices: Sequence[Picks], key: Key, least: int = FEWEST) -> list[tuple[Picks, Quality]]:
        """Those choices that are the best at every level, best first, with their quality at the top.

        All are asked about on little data, the best of them on more: the selection of EvoPress
        (Sieberling et al. 2024, https://arxiv.org/abs/2410.14649). Before the top those go on that are the
        best by quality, and in turn by what all evaluations together say of them: one of few examples is
        noisy. `key` compares choices at a level.
        """
        left = list(dict.fromkeys(choices))[: self.budget.left]
        for level in self.levels[:-1]:
            qualities = dict(zip(left, self.ask(level, left), strict=True))
            told = self.told(level)
            by_kept = sorted(left, key=lambda picks: key(level, picks, qualities[picks]))
            by_told = sorted(left, key=lambda picks: key(level, picks, _told(told, picks, qualities[picks])))
            mixed = dict.fromkeys(picks for pair in zip(by_kept, by_told, strict=True) for picks in pair)
            left = list(mixed)[: max(least, round(len(left) * SHARE))]
        pairs = list(zip(left, self.ask(self.top, left), strict=True))
        return sorted(pairs, key=lambda pair: key(self.top, *pair))


def _told(surrogate: Surrogate | None, picks: Picks, quality: Quality) -> Quality:
    """The quality with what is kept as all evaluations tell it; as it is where they tell nothing."""
    if surrogate is None or not math.isfinite(quality.kept):
        return quality
    return replace(quality, kept=surrogate.worth(picks))
