"""One step after another, each the one that loses least quality for what it saves, until the goal is reached.

All candidates are evaluated anew after every step, healed: what a block is worth depends on which others are
there. One block at a time is BlockPruner (Zhong et al. 2024, https://arxiv.org/abs/2406.10594) and FinerCut
(Zhang et al. 2024, https://arxiv.org/abs/2405.18218), a layer at a time is SLEB (Song et al. 2024,
https://arxiv.org/abs/2402.09025); here a step is either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from graphprune.searching.asking import SHORTLIST
from graphprune.searching.goals import worth

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphprune.healing.choice import Action
    from graphprune.searching.asking import Asker
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.goals import Price
    from graphprune.searching.space import Picks

# Choices of blocks that go on from the shortlist: this share of them, and so many at least.
SHORT, SHORTEST = 0.5, 6
# Choices that go on where evaluations tell what others will be worth.
TOLD = 12
# Of the budget, the share that is for the way to the limits; the rest is for choices within them.
GREEDY = 0.5


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a search: what changed by it, what came of it, and among how many it was chosen.

    `phase` is `greedy`, `rest` (of the way, unasked), `exchange` or `exact`.
    """

    phase: str
    picks: Picks
    changed: Mapping[str, Action]
    price: Price
    quality: Quality
    tried: int


def greedy(asker: Asker, start: Picks) -> list[Step]:
    """The steps from `start` to the goal, or as far as they lead.

    With limits: until the price is within them, or the share `GREEDY` of the budget is used up. Without: for
    as long as the quality is above the floor.
    """
    steps: list[Step] = []
    here = start
    while asker.budget.left and not (
        asker.goal.limits and (asker.within(here) or asker.budget.used > GREEDY)
    ):
        step = _next(asker, here)
        if step is None:
            break
        steps.append(step)
        here = step.picks
    return steps


def rest(asker: Asker, start: Picks) -> list[Step]:
    """The one step to the limits without asking: by what all evaluations tell, or what blocks lost alone."""
    dense, level, here = asker.space.dense, asker.levels[0], start
    (before,) = asker.ask(level, [dense])
    told = asker.told(level)

    def loss(picks: Picks) -> tuple[bool, float]:
        if told is not None:
            return False, _for_each(told.worth(here) - told.worth(picks), _gain(asker, here, picks))
        changed = asker.space.changed(here, picks)
        alone = [asker.trials.find(level, asker.space.picks({block: one})) for block, one in changed.items()]
        known = [worth(before) - worth(one) for one in alone if one is not None]
        return len(known) < len(alone), _for_each(sum(known), _gain(asker, here, picks))

    while not asker.within(here):
        candidates = [picks for picks in asker.space.further(here) if _gain(asker, here, picks) > 0]
        if not candidates:
            return []
        here = min(candidates, key=loss)
    (quality,) = asker.ask(asker.top, [here])
    return [Step("rest", here, asker.space.changed(start, here), asker.price(here), quality, 1)]


def _next(asker: Asker, here: Picks) -> Step | None:
    candidates = [picks for picks in asker.space.further(here) if _gain(asker, here, picks) > 0]
    if not candidates:
        return None
    raced = asker.race(_shortlist(asker, here, candidates), partial(_loss, asker, here))
    if not asker.goal.limits:
        raced = _above(asker, raced) or _above(asker, asker.race(candidates, _worst))
    if not raced:
        return None
    picks, quality = raced[0]
    changed = asker.space.changed(here, picks)
    return Step("greedy", picks, changed, asker.price(picks), quality, len(candidates))


def _above(asker: Asker, raced: Sequence[tuple[Picks, Quality]]) -> list[tuple[Picks, Quality]]:
    """Those that are not below the floor."""
    return [(picks, quality) for picks, quality in raced if not asker.goal.shortfall(quality)]


def _worst(level: str, picks: Picks, quality: Quality) -> float:
    """What loses the least comes first, whatever it saves: for the last steps above a floor."""
    return -worth(quality)


def _gain(asker: Asker, here: Picks, picks: Picks) -> float:
    """What a step brings: of the way to the limits, or of the cost."""
    return asker.goal.saved(asker.price(picks)) - asker.goal.saved(asker.price(here))


def _loss(asker: Asker, here: Picks, level: str, picks: Picks, quality: Quality) -> tuple[float, float]:
    """The quality that a step loses for what it brings; where it gains quality, more is better."""
    (before,) = asker.ask(level, [here])
    lost, gain = worth(before) - worth(quality), _gain(asker, here, picks)
    return _for_each(lost, gain), -gain


def _for_each(lost: float, gain: float) -> float:
    return lost / gain if lost > 0 else lost * gain


def _shortlist(asker: Asker, here: Picks, candidates: Sequence[Picks]) -> list[Picks]:
    """The candidates that are worth an evaluation, by a cheap score.

    While nothing is known but the dense model, those go that leave out what is missed the most, as they are:
    not healed. Later those that lose the most for what they save by what all evaluations together say.
    """
    told = asker.told(asker.levels[0])
    if told is not None and here != asker.space.dense:
        losses = {
            one: _for_each(told.worth(here) - told.worth(one), _gain(asker, here, one)) for one in candidates
        }
        return sorted(candidates, key=lambda one: losses[one])[:TOLD]
    if SHORTLIST not in asker.openers:
        return list(candidates)
    groups: dict[Picks, list[Picks]] = {}
    for picks in candidates:
        groups.setdefault(_left_out(picks), []).append(picks)
    groups.pop(_left_out(here), None)
    wanted = max(SHORTEST, round(len(groups) * SHORT))
    if len(groups) <= wanted:
        return list(candidates)
    before, *found = map(worth, asker.ask(SHORTLIST, [_left_out(here), *groups]))
    missed = {
        one: _for_each(before - kept, asker.pay(here) - min(map(asker.pay, groups[one])))
        for one, kept in zip(groups, found, strict=True)
    }
    ordered = sorted(groups, key=lambda one: missed[one])
    out = {picks for one in ordered[wanted:] for picks in groups[one]}
    return [picks for picks in candidates if picks not in out]


def _left_out(picks: Picks) -> Picks:
    """The same, every block that is not kept being dropped."""
    return tuple("keep" if pick == "keep" else "drop" for pick in picks)
