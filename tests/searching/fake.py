"""A model whose blocks' worth is a formula: searches on it have known answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from graphprune.healing.choice import Action, Choice
from graphprune.searching.asking import Asker, Budget
from graphprune.searching.costs import Costs
from graphprune.searching.evaluating import Opener, Quality
from graphprune.searching.goals import Goal, goal_of, parse_target
from graphprune.searching.pricing import Pricing
from graphprune.searching.space import Picks, Space
from graphprune.searching.trials import open_trials
from graphprune.searching.workers import open_workers

# What an action saves of a block's cost, and how much of the block's loss it leaves.
SAVES: Mapping[Action, float] = MappingProxyType({"drop": 1.0, "mean": 0.9, "linear": 0.7})
LEAVES: Mapping[Action, float] = MappingProxyType({"drop": 1.0, "mean": 0.8, "linear": 0.3})


@dataclass(frozen=True, eq=False)
class Formula:
    """Quality is 1 − Σ loss(block) − Σ pair(block, block), of those that are not kept."""

    losses: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    noise: float = 0.0
    asked: list[Choice] = field(default_factory=list)
    taken: tuple[Action, ...] = ("drop",)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(self.losses)

    @property
    def actions(self) -> Mapping[str, tuple[Action, ...]]:
        return dict.fromkeys(self.blocks, self.taken)

    def kept(self, choice: Choice) -> float:
        gone = {block: LEAVES[action] for block, action in choice.items() if action != "keep"}
        alone = sum(self.losses[block] * left for block, left in gone.items())
        together = sum(
            loss * gone[a] * gone[b] for (a, b), loss in self.pairs.items() if a in gone and b in gone
        )
        return 1 - alone - together

    def quality(self, choice: Choice) -> Quality:
        self.asked.append(dict(choice))
        kept = self.kept(choice)
        if self.noise:
            seed = sum(map(ord, repr(sorted(choice.items()))))
            kept += self.noise * np.random.default_rng(seed).standard_normal()
        return Quality(kept, kept, 1 - self.kept(choice))


@dataclass(frozen=True, eq=False)
class Fake:
    """An opener of a formula."""

    key: str
    formula: Formula

    def open(self) -> Formula:
        return self.formula


def pricing(costs: Mapping[str, float], rest: float = 0.0) -> Pricing:
    saves = {
        action: {block: cost * share for block, cost in costs.items()} for action, share in SAVES.items()
    }
    return Pricing({"latency": Costs(rest + sum(costs.values()), saves)})


def asker(
    formula: Formula,
    costs: Mapping[str, float],
    *targets: str,
    layers: tuple[tuple[int, ...], ...] = (),
    openers: Mapping[str, Opener] | None = None,
    racing: tuple[str, ...] = ("all",),
    trials: int | None = None,
    rest: float = 0.0,
) -> Asker:
    """Asks a formula, of which one opener is enough; nothing is stored."""
    space = Space(formula.blocks, formula.actions, layers, (tuple(range(len(formula.blocks))),))
    priced = pricing(costs, rest)
    goal: Goal = goal_of([parse_target(target) for target in targets], priced.dense)
    with open_workers() as workers:
        found = dict(openers or {"all": Fake(f"fake {id(formula)}", formula)})
        return Asker(
            space, goal, priced, found, racing, open_trials(space, None, {}), workers, Budget(trials)
        )


def best(one: Asker, formula: Formula) -> tuple[Picks, float]:
    """The best choice of all by looking at every one."""
    columns = [("keep", *formula.actions[block]) for block in formula.blocks]
    found = []
    for picks in itertools.product(*columns):
        if one.space.allowed(picks):
            kept = formula.kept(one.space.choice(picks))
            found.append((one.goal.rank(one.price(picks), Quality(kept, kept)), picks, kept))
    _, picks, kept = min(found)
    return picks, kept
