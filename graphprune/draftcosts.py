"""What drafts cost and yield: times of a model's runs, and rounds of drafts that are played through."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.lane import Lane
from graphprune.language import LanguageModel, open_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.settings import Settings

_RUNS, _TOGETHER = 15, 4
_LEAST = 0.05  # of a step: what a draft takes where all blocks are passed by


@dataclass(frozen=True)
class Costs:
    """Milliseconds: of a step, of one with `count` tokens (a line), and of each kind of block in a step."""

    step: float
    several: float
    kinds: Mapping[str, float]

    def verify(self, count: int) -> float:
        """A run that scores `count` tokens."""
        return self.step + (self.several - self.step) * (count - 1) / (_TOGETHER - 1)

    def draft(self, skipped: Collection[str]) -> float:
        """A step of a draft without these blocks."""
        saved = sum(self.kinds.get(kind_of(id), 0.0) for id in skipped)
        return max(self.step - saved, _LEAST * self.step)


@dataclass(frozen=True, eq=False)
class Trace:
    """For each new token of a text whether a draft gives it too, and how sure the draft is of its own."""

    right: NDArray[np.bool_]
    sure: NDArray[np.float64]


def kind_of(id: str) -> str:
    """The kind of a block by its id."""
    return id.rpartition(".")[2]


def measure(
    path: str | Path, settings: Settings | None, blocks: Sequence[str], prompt: Sequence[int]
) -> Costs:
    """Time steps after a prompt, and drafts that pass by the later half of the blocks of one kind each."""
    kinds: dict[str, float] = {}
    steps, several = [], []
    for kind in dict.fromkeys(map(kind_of, blocks)):
        alike = [id for id in blocks if kind_of(id) == kind]
        skipped = alike[len(alike) // 2 :]
        model = open_model(path, settings, draft_skip=",".join(skipped))
        step, together, short = _times(model, prompt)
        kinds[kind] = max(step - short, 0.0) / len(skipped)
        steps.append(step)
        several.append(together)
    return Costs(statistics.median(steps), statistics.median(several), kinds)


def _times(model: LanguageModel, prompt: Sequence[int]) -> tuple[float, float, float]:
    """The least milliseconds of a step of one token, of one of several, and of a draft's, taken in turns."""
    on_cpu = (model.step or model.first).session.providers[0] == "cpu"
    now = time.thread_time if on_cpu else time.perf_counter  # this thread does a part of all work on the CPU
    lane = Lane(model, [prompt], {})
    lane.begin()
    mark, rounds = lane.mark(), []
    for _ in range(_RUNS):
        row = []
        for count, shortcut in ((1, False), (_TOGETHER, False), (1, True)):
            before = now()
            lane.extend([[prompt[-1]] * count], shortcut=shortcut)
            row.append((now() - before) * 1e3)
            lane.rewind(mark)
        rounds.append(row)
    step, together, short = (min(column) for column in zip(*rounds, strict=True))
    return step, together, short


def speed(traces: Sequence[Trace], costs: Costs, draft: float, tokens: int, confidence: float) -> float:
    """Tokens a second over those without drafts, where texts are made in rounds of at most `tokens`.

    A draft's step takes `draft` milliseconds; a token of less than `confidence` is the last of its draft.
    """
    made, spent = 0, 0.0
    for trace in traces:
        place, count = 0, len(trace.right)
        while place < count:
            drafted = _length(trace.sure[place : place + tokens], confidence)
            wrong = np.flatnonzero(~trace.right[place : place + drafted])
            spent += drafted * draft + costs.verify(drafted + 1)
            place += 1 + int(wrong[0] if len(wrong) else drafted)
        made += place
    return made * costs.step / spent if spent else 0.0


def _length(sure: NDArray[np.float64], confidence: float) -> int:
    """How many tokens are drafted that have these probabilities."""
    unsure = np.flatnonzero(sure < confidence)
    return int(unsure[0]) + 1 if len(unsure) else len(sure)
