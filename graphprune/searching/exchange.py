"""Make a choice better at the same cost: exchange blocks, keep what is better (EvoPress).

Sieberling, Kuznedelev, Kurtic and Alistarh 2024, https://arxiv.org/abs/2410.14649: children of the best
choice, by switches that leave the cost as it was, compete on more and more data. And where there are but few
choices, all of them.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

from graphprune.searching.evaluating import Quality
from graphprune.searching.greedy import Step

if TYPE_CHECKING:
    from graphprune.searching.asking import Asker
    from graphprune.searching.space import Picks

# Children of a generation; attempts to find one that is new; generations without any progress before it ends.
CHILDREN, ATTEMPTS, PATIENCE = 16, 4, 4
# As many choices as are evaluated one and all; and as many as are looked through for those within the limits.
EXACT, LOOKED = 64, 1 << 14


def exchange(asker: Asker, start: Picks, rng: random.Random) -> list[Step]:
    """The steps from `start` to the best choice that is found within the budget."""
    (quality,) = asker.ask(asker.top, [start])
    best, steps, idle = (start, quality), list[Step](), 0
    met = {start}
    while idle < PATIENCE and asker.budget.left:
        children = _children(asker, best[0], rng, met)
        if not children:
            break
        raced = asker.race([best[0], *children], lambda _, picks, one: asker.rank(picks, one))
        idle += 1
        if raced and asker.rank(*raced[0]) < asker.rank(*best):
            steps.append(_step("exchange", asker, best[0], *raced[0], len(children)))
            best, idle = raced[0], 0
    return steps


def _children(asker: Asker, parent: Picks, rng: random.Random, met: set[Picks]) -> list[Picks]:
    """New choices beside `parent`; they join those that were met. Without limits none costs more than it."""
    most = asker.pay(parent)

    def within(picks: Picks) -> bool:
        return asker.within(picks) if asker.goal.limits else asker.pay(picks) <= most

    found: dict[Picks, None] = {}
    for _ in range(CHILDREN * ATTEMPTS):
        child = asker.space.mutated(parent, rng, within, asker.pay)
        if child not in met and within(child):
            found[child] = None
    children = _promising(asker, list(found))
    met.update(children)
    return children


def _promising(asker: Asker, children: list[Picks]) -> list[Picks]:
    """Of children those that should be the best by what is known; a quarter of them are as they came."""
    told = asker.told(asker.levels[0])
    if told is None:
        return children[:CHILDREN]

    def rank(picks: Picks) -> tuple[float, ...]:
        kept = told.worth(picks)
        return asker.rank(picks, Quality(kept, kept))

    chance = children[: CHILDREN // 4]
    best = sorted((one for one in children if one not in chance), key=rank)
    return chance + best[: CHILDREN - len(chance)]


def exact(asker: Asker, start: Picks) -> list[Step] | None:
    """The step to the best choice of all, where no more than `EXACT` are within the limits; else None."""
    if asker.space.size > LOOKED:
        return None
    within = list(islice((one for one in asker.space.every() if asker.within(one)), EXACT + 1))
    if not within or len(within) > min(EXACT, asker.budget.left):
        return None
    pairs = list(zip(within, asker.ask(asker.top, within), strict=True))
    picks, quality = min(pairs, key=lambda pair: asker.rank(*pair))
    return [_step("exact", asker, start, picks, quality, len(within))]


def _step(phase: str, asker: Asker, before: Picks, picks: Picks, quality: Quality, tried: int) -> Step:
    return Step(phase, picks, asker.space.changed(before, picks), asker.price(picks), quality, tried)
