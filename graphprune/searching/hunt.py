"""A search on its way: steps to the goal, the best on all of the data, built, measured, and on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import CheckError
from graphprune.healing.building import Built, build
from graphprune.searching.evaluating import Healed, opened
from graphprune.searching.steering import decide, finalists, require_reachable, steps_to_goal
from graphprune.searching.timed import Timed, time_both

if TYPE_CHECKING:
    from graphprune.bundle import Bundle
    from graphprune.healing.healed import Healing
    from graphprune.play import Source
    from graphprune.searching.asking import Asker
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.goals import Goal, Price
    from graphprune.searching.greedy import Step
    from graphprune.searching.preparing import Levels
    from graphprune.searching.space import Picks
    from graphprune.settings import Settings

# How often a search goes on where a model costs more than its blocks promised.
_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Caught:
    """The choice that won, and its model; `healing` and `timed` are None where there is none."""

    picks: Picks
    quality: Quality
    built: Built
    healing: Healing | None
    timed: Timed | None


@dataclass(eq=False)
class Hunt:
    """What a search works with, and the `steps` and `notes` that it leaves behind.

    `folder` is a place for files that are not to stay. Models are timed on `sources` with `settings`, and
    with `further` tokens where they take a cache.
    """

    model: Path
    bundle: Bundle
    levels: Levels
    asker: Asker
    sources: tuple[Source, ...]
    settings: Settings
    further: int
    folder: Path
    seed: int
    tell: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Caught:
        """The winner; while it costs more than it should, the search goes on with stricter limits.

        Raises `CheckError` where the goal is out of reach, and says what is the most that can be had.
        """
        asked, start = self.asker.goal, self.asker.space.dense
        for _ in range(_ROUNDS):
            caught = self._once(start)
            over = self._over(asked, caught)
            if over is None:
                return caught
            name, stricter, note = over
            self.notes.append(note)
            self.tell(note)
            self.asker.goal = self.asker.goal.limited(name, stricter)
            require_reachable(self.asker)
            start = caught.picks
        raise CheckError(f"no choice of blocks gets there in {_ROUNDS} rounds: {self.notes[-1]}")

    def _once(self, start: Picks) -> Caught:
        """The best choice by what blocks cost, as a model."""
        self.steps += steps_to_goal(self.asker, start, self.seed)
        self.tell("comparing the best on all of the data")
        picks, quality = decide(self.asker, self.levels.last, finalists(self.asker))
        choice = self.asker.space.choice(picks)
        evaluator = opened(self.levels.openers[self.levels.last])
        healing = evaluator.calibration.heal(choice) if isinstance(evaluator, Healed) else None
        built = build(self.bundle, choice, healing, self.folder)
        return Caught(picks, quality, built, healing, self._timed(picks, built))

    def _timed(self, picks: Picks, built: Built) -> Timed | None:
        """How fast the model is; as it was when it was first timed, where a search goes on."""
        if "latency" not in self.asker.goal.dense:
            return None
        self.tell("timing the model against the dense one")
        said = self.asker.trials.remember(f"timed {picks}", lambda: self._time(built).to_json())
        return Timed.of_json(said)

    def _time(self, built: Built) -> Timed:
        path = self.folder / (self.model.name if self.bundle.folder is None else "model")
        built.write(path, run=False, overwrite=True)
        try:
            seconds = self.asker.goal.dense["latency"]
            return time_both(self.model, path, self.sources, self.settings, self.further, seconds)
        finally:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    def _over(self, asked: Goal, caught: Caught) -> tuple[str, float, str] | None:
        """The cost in which a model is above its limit, a limit that makes up for it, and a note."""
        price = self.asker.price(caught.picks)
        for name, found in _measured(asked.dense, caught).items():
            limit = asked.limits.get(name)
            if limit is not None and found > limit * (1 + 1e-9):
                note = (
                    f"a model that was to have {price[name] / asked.dense[name]:.1%} of the {name} has "
                    f"{found / asked.dense[name]:.1%} of it when measured: searched on with a stricter limit"
                )
                return name, price[name] * limit / found * (1 - 1e-6), note
        return None


def _measured(dense: Price, caught: Caught) -> Mapping[str, float]:
    """What the model itself costs."""
    before, after = caught.built.pruned.plan.before, caught.built.pruned.after
    found = {"parameters": float(after.parameters)}
    if "size" in dense:
        found["size"] = dense["size"] * after.bytes / before.bytes
    if caught.timed is not None:
        found["latency"] = dense["latency"] * caught.timed.share
    return found
