"""The choices that a search moves among: for every block what becomes of it, and what is one step further."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from graphprune.errors import SelectionError
from graphprune.healing.choice import SHARES

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.healing.choice import Action, Choice

# What becomes of each block of a space, in its order.
Picks: TypeAlias = "tuple[Action, ...]"
# What a choice costs: the less, the better.
Pay: TypeAlias = "Callable[[Picks], float]"
KEEP: Action = "keep"
# What leaves something of a block.
_THERE = (KEEP, *SHARES)


@dataclass(frozen=True)
class Space:
    """`blocks` in running order, and the `actions` on each besides keeping it.

    `layers` are the places of blocks that go together as one step. `stacks` are places of which one at
    least has to be kept: a stack must not end up empty.
    """

    blocks: tuple[str, ...]
    actions: Mapping[str, tuple[Action, ...]]
    layers: tuple[tuple[int, ...], ...] = ()
    stacks: tuple[tuple[int, ...], ...] = ()

    @property
    def dense(self) -> Picks:
        """Every block is kept."""
        return (KEEP,) * len(self.blocks)

    def choice(self, picks: Picks) -> dict[str, Action]:
        """The same by the blocks' ids; those that are kept are left out."""
        return {block: pick for block, pick in zip(self.blocks, picks, strict=True) if pick != KEEP}

    def picks(self, choice: Choice) -> Picks:
        """The same by the blocks' places."""
        return tuple(choice.get(block, KEEP) for block in self.blocks)

    def allowed(self, picks: Picks) -> bool:
        """Whether no stack is emptied."""
        return all(any(picks[place] in _THERE for place in stack) for stack in self.stacks)

    def further(self, picks: Picks) -> list[Picks]:
        """All choices that are one step further: another action on a block that is there, a layer gone."""
        found: dict[Picks, None] = {}
        for place, (block, pick) in enumerate(zip(self.blocks, picks, strict=True)):
            for action in self.actions[block]:
                if pick not in ("drop", action):
                    found[_with(picks, {place: action})] = None
        for layer in self.layers:
            if all(picks[place] == KEEP for place in layer):
                for action in _shared([self.actions[self.blocks[place]] for place in layer]):
                    found[_with(picks, dict.fromkeys(layer, action))] = None
        return [one for one in found if self.allowed(one)]

    def neighbours(self, picks: Picks) -> list[tuple[int, Picks]]:
        """For every block the choices that differ in it alone, with its place."""
        return [
            (place, _with(picks, {place: action}))
            for place, block in enumerate(self.blocks)
            for action in (KEEP, *self.actions[block])
            if action != picks[place] and self.allowed(_with(picks, {place: action}))
        ]

    def changed(self, before: Picks, after: Picks) -> dict[str, Action]:
        """The blocks in which two choices differ, and what they are in the second."""
        pairs = zip(self.blocks, before, after, strict=True)
        return {block: new for block, old, new in pairs if old != new}

    @property
    def size(self) -> int:
        """How many choices there are, those that empty a stack included."""
        return math.prod(1 + len(self.actions[block]) for block in self.blocks)

    def every(self) -> Iterator[Picks]:
        """All choices that are allowed."""
        columns = [(KEEP, *self.actions[block]) for block in self.blocks]
        return (picks for picks in itertools.product(*columns) if self.allowed(picks))

    def cheapest(self, pay: Pay) -> Picks:
        """The choice that costs least, where every block saves what it saves alone.

        Of a stack that would be empty, the block stays that saves least.
        """
        dense, least = self.dense, list(self.dense)
        spared: dict[int, float] = {}
        for place, block in enumerate(self.blocks):
            costs = {action: pay(_with(dense, {place: action})) for action in (KEEP, *self.actions[block])}
            least[place] = min(costs, key=lambda action: costs[action])
            spared[place] = costs[KEEP] - costs[least[place]]
        for stack in self.stacks:
            if not any(least[place] == KEEP for place in stack):
                least[min(stack, key=lambda place: spared[place])] = KEEP
        return tuple(least)

    def mutated(self, picks: Picks, rng: random.Random, within: Callable[[Picks], bool], pay: Pay) -> Picks:
        """Another choice at about the same cost: blocks come back, others go, until it is `within` limits.

        The level-switch of EvoPress (Sieberling et al. 2024, https://arxiv.org/abs/2410.14649): few switches
        are likelier than many.
        """
        for _ in range(min(rng.randint(1, 3), rng.randint(1, 3))):
            picks = self._loosened(picks, rng, pay)
        picks = self._tightened(picks, rng, pay)
        while not within(picks):
            tighter = self._tightened(picks, rng, pay)
            if tighter == picks:
                return picks
            picks = tighter
        return self._filled(picks, rng, within) if rng.random() < 0.5 else picks

    def _loosened(self, picks: Picks, rng: random.Random, pay: Pay) -> Picks:
        """One block costs more than before."""
        return self._moved(picks, rng, lambda after: pay(after) > pay(picks))

    def _tightened(self, picks: Picks, rng: random.Random, pay: Pay) -> Picks:
        """One block costs less than before."""
        return self._moved(picks, rng, lambda after: pay(after) < pay(picks))

    def _moved(self, picks: Picks, rng: random.Random, good: Callable[[Picks], bool]) -> Picks:
        places = sorted({place for place, one in self.neighbours(picks) if good(one)})
        if not places:
            return picks
        place = rng.choice(places)
        return rng.choice([one for at, one in self.neighbours(picks) if at == place and good(one)])

    def _filled(self, picks: Picks, rng: random.Random, within: Callable[[Picks], bool]) -> Picks:
        """Blocks come back for as long as the limits allow."""
        for place in rng.sample(range(len(picks)), len(picks)):
            back = _with(picks, {place: KEEP})
            picks = back if within(back) else picks
        return picks


def space_of(
    architecture: Architecture,
    actions: Mapping[str, Sequence[Action]],
    wanted: Sequence[Action],
    among: Sequence[str] | None = None,
) -> Space:
    """The space of the blocks that have `actions`, of these only the `wanted` ones, on the blocks `among`.

    Raises `SelectionError` where nothing is left to choose.
    """
    have = {
        block: tuple(one for one in found if one in wanted)
        for block, found in actions.items()
        if among is None or block in among
    }
    have = {block: found for block, found in have.items() if found}
    if not have:
        known = ", ".join(sorted({one for found in actions.values() for one in found})) or "none"
        raise SelectionError(
            f"there is no block to search among: the actions asked for are {', '.join(wanted)}, "
            f"the model's blocks have {known}"
        )
    order = tuple(dict.fromkeys(block.id for block in architecture.blocks if block.id in have))
    place = {block: number for number, block in enumerate(order)}
    layers, stacks = [], []
    for stack in architecture.stacks:
        groups = [[block.id for block in layer.blocks] for layer in stack.layers]
        layers += [group for group in groups if len(group) > 1]
        stacks.append([block for group in groups for block in group])
    return Space(order, have, _places(layers, place), _places(stacks, place))


def _places(groups: Sequence[Sequence[str]], place: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """The groups of which all blocks are in the space, by places, each once."""
    whole = [tuple(place[block] for block in group) for group in groups if all(b in place for b in group)]
    return tuple(dict.fromkeys(whole))


def _with(picks: Picks, changes: Mapping[int, Action]) -> Picks:
    return tuple(changes.get(place, pick) for place, pick in enumerate(picks))


def _shared(actions: Sequence[Sequence[Action]]) -> list[Action]:
    return [one for one in actions[0] if all(one in others for others in actions)]
