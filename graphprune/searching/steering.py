"""A search among choices, whatever evaluates them: its phases, what decides at the end, and the reasons."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.errors import CheckError
from graphprune.searching.evaluating import Quality
from graphprune.searching.exchange import exact, exchange
from graphprune.searching.goals import worth
from graphprune.searching.greedy import Step, greedy, rest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphprune.healing.choice import Action
    from graphprune.searching.asking import Asker
    from graphprune.searching.goals import Goal, Price
    from graphprune.searching.space import Picks

# How many choices are compared on all of the data at the end.
FINALISTS = 3


@dataclass(frozen=True)
class Reason:
    """Why a block is what it is: what one other `action` on it would do to the quality, and to the cost.

    `kept` is the change of the share of the dense quality, `cost` that of the cost as a share of the dense
    model's. Both are as of the least of the data.
    """

    block: str
    action: Action
    instead: Action
    kept: float
    cost: float


def require_reachable(asker: Asker) -> None:
    """Raise `CheckError`, with the most that can be had, where no choice is within the limits."""
    for name, limit in asker.goal.limits.items():
        least = asker.space.cheapest(lambda picks, name=name: asker.price(picks)[name])  # type: ignore[misc]
        price = asker.price(least)[name]
        if price > limit * (1 + 1e-9):
            raise CheckError(
                f"no choice of blocks gets there: the target is {_said(asker.goal, name, limit)}, the most "
                f"that can be had is {_said(asker.goal, name, price)}"
            )


def steps_to_goal(asker: Asker, start: Picks, seed: int) -> list[Step]:
    """The steps that lead to the best choice that is found: greedy, then exchanges; or all choices compared.

    The same for the same seed. Raises `RunError` where nothing can be evaluated.
    """
    found = exact(asker, start)
    if found is not None:
        return found
    steps = greedy(asker, start)
    here = steps[-1].picks if steps else start
    if not asker.within(here):
        steps += rest(asker, here)
        here = steps[-1].picks if steps else start
    if asker.within(here):
        steps += exchange(asker, here, random.Random(seed))
    return steps


def finalists(asker: Asker) -> list[Picks]:
    """The best choices that were found, the best first: within the limits, and not the dense model."""
    found = [
        (one.picks, one.quality)
        for one in asker.trials.of(asker.top)
        if asker.within(one.picks) and one.picks != asker.space.dense
    ]
    ordered = sorted(found, key=lambda pair: asker.rank(*pair))
    return [picks for picks, _ in ordered[:FINALISTS]]


def decide(asker: Asker, level: str, choices: Sequence[Picks]) -> tuple[Picks, Quality]:
    """The best of the choices on all of the data. Raises `CheckError` where none reaches the goal."""
    pairs = list(zip(choices, asker.ask(level, choices), strict=True))
    met = [pair for pair in pairs if asker.goal.met(asker.price(pair[0]), pair[1])]
    if not met:
        raise CheckError(_short_of(asker, pairs))
    return min(met, key=lambda pair: asker.rank(*pair))


def reasons(asker: Asker, picks: Picks) -> list[Reason]:
    """For every block what becomes of quality and cost where another action is taken on it alone.

    What went comes back; what was kept goes in the mildest way that there is.
    """
    level, goal = asker.levels[0], asker.goal
    beside = dict(reversed([(p, one) for p, one in _mild(asker, picks)]))
    asked = asker.ask(level, [picks, *beside.values()])
    here, dense = worth(asked[0]), goal.dense[goal.cost]
    return [
        Reason(
            asker.space.blocks[place], picks[place], one[place],
            worth(quality) - here, (asker.pay(one) - asker.pay(picks)) / dense,
        )
        for (place, one), quality in sorted(zip(beside.items(), asked[1:], strict=True))
    ]  # fmt: skip


def _mild(asker: Asker, picks: Picks) -> list[tuple[int, Picks]]:
    """The other choices by place, the one to show first: back to kept, or the mildest action."""
    order = ("keep", "half", "quarter", "eighth", "linear", "patch", "mean", "drop")
    return sorted(asker.space.neighbours(picks), key=lambda pair: (pair[0], order.index(pair[1][pair[0]])))


def front(goal: Goal, pairs: Sequence[tuple[Price, Quality]]) -> list[bool]:
    """Of which pairs none other is both cheaper and better: the Pareto set."""
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0][goal.cost], -worth(pairs[i][1])))
    best, found = float("-inf"), [False] * len(pairs)
    for i in order:
        if worth(pairs[i][1]) > best:
            best, found[i] = worth(pairs[i][1]), True
    return found


def _short_of(asker: Asker, pairs: Sequence[tuple[Picks, Quality]]) -> str:
    """What the most is that was found, for an error."""
    goal = asker.goal
    asked = ", ".join(_said(goal, name, limit) for name, limit in goal.limits.items())
    floor = "" if goal.floor is None else f"{goal.floor:.1%} of the dense quality"
    wanted = f"the target is {' and '.join(part for part in (asked, floor) if part)}"
    if not pairs:
        return f"no choice of blocks within the limits was found: {wanted}; allow more trials or time"
    best = max(pairs, key=lambda pair: worth(pair[1]))
    above = [
        (one.picks, one.quality)
        for one in asker.trials.of(asker.top)
        if not goal.shortfall(one.quality) and worth(one.quality) > 0 and one.picks != asker.space.dense
    ]
    most = f"at these costs the most that was found is {worth(best[1]):.1%} of it"
    if above and goal.floor is not None:
        fast = min((asker.price(picks) for picks, _ in above), key=lambda price: price[goal.cost])
        most += f", and above the floor {_said(goal, goal.cost, fast[goal.cost])}"
    return f"no choice of blocks gets there: {wanted}; {most}"


def _said(goal: Goal, name: str, value: float) -> str:
    """A cost in words: as speed-up for latencies, else as a share of the dense model's."""
    dense = goal.dense[name]
    if name == "latency":
        return f"a speed-up of {dense / value:.2f}" if value > 0 else "no time at all"
    return f"{value / dense:.1%} of the {'bytes' if name == 'size' else name}"
