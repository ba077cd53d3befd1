"""Make a choice better at the same cost: exchange blocks, keep what is better (EvoPress).

Sieberling, Kuznedelev, Kurtic and Alistarh 2024, https://arxiv.org/abs/2410.14649: children of the best
choice, by switches that leave the cost as it was, compete on more and more data. And where there are but few
choices, all of them.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

from graphprune.searching.greedy import Step

if TYPE_CHECKING:
    from graphprune.searching.asking import Asker
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.space import Picks

# Children of a generation; attempts to find one that is new; generations without any progress before it ends.
CHILDREN, ATTEMPTS, PATIENCE = 16, 8, 4
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
        raced = asker.race([best[0], *children], lambda _, picks, one, view: asker.rank(picks, view(one)))
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

    children: list[Picks] = []
    for _ in range(CHILDREN * ATTEMPTS):
        child = asker.space.mutated(parent, rng, within, asker.pay)
        if child not in met and within(child):
            met.add(child)
            children.append(child)
        if len(children) == CHILDREN:
            break
    return children


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
