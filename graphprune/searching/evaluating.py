"""How good a choice of blocks is: healed, or as it is. A process opens its evaluator when first asked."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graphprune.errors import EditError, RunError

if TYPE_CHECKING:
    from graphprune.data.dataset import Data
    from graphprune.data.judging import Judge
    from graphprune.healing.calibration import Calibration
    from graphprune.healing.choice import Action, Choice
    from graphprune.healing.repairs import Repairs
    from graphprune.scoring import Scorer
    from graphprune.settings import Settings

BATCH = 32


@dataclass(frozen=True)
class Quality:
    """What a model with a choice of blocks is worth: its score, and that as a share of the dense model's.

    `error` is the relative squared error of the last stream on held-out rows, nan where it is not known.
    Where the choice could not be evaluated at all, all are nan, and `reason` says why.
    """

    score: float
    kept: float
    error: float = math.nan
    reason: str = ""


class Evaluator(Protocol):
    """What can be asked how good a choice is."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The ids of the blocks that something can become of, in running order."""
        ...

    @property
    def actions(self) -> Mapping[str, tuple[Action, ...]]:
        """What each can become besides kept."""
        ...

    @property
    def declined(self) -> Mapping[str, str]:
        """The other blocks, and why not."""
        ...

    @property
    def judge(self) -> Judge:
        """What tells how good an output is."""
        ...

    def quality(self, choice: Choice) -> Quality:
        """How good a choice is. Raises `RunError`, `SelectionError`."""
        ...


class Opener(Protocol):
    """What opens an evaluator, the same in every process: `key` tells it from others."""

    @property
    def key(self) -> str:
        """Equal for those that open the same."""
        ...

    def open(self) -> Evaluator:
        """The evaluator. Raises `LoadError`, `RunError`."""
        ...


@dataclass(frozen=True, eq=False)
class Healed:
    """Choices, each healed on the data that a calibration has."""

    calibration: Calibration

    @property
    def blocks(self) -> tuple[str, ...]:
        """As of the calibration."""
        return self.calibration.blocks

    @property
    def actions(self) -> Mapping[str, tuple[Action, ...]]:
        """As of the calibration."""
        return self.calibration.actions

    @property
    def declined(self) -> Mapping[str, str]:
        """As of the calibration."""
        return self.calibration.declined

    @property
    def judge(self) -> Judge:
        """As of the calibration."""
        return self.calibration.judge

    def quality(self, choice: Choice) -> Quality:
        """How good the healed model is. Raises `RunError`, `SelectionError`."""
        healed = self.calibration.heal(choice)
        return Quality(healed.score, self.calibration.judge.kept(healed.score), healed.error)


@dataclass(frozen=True, eq=False)
class Unhealed:
    """Choices as they are, by one session that leaves blocks out; whatever is not kept is left out."""

    scorer: Scorer
    judge: Judge

    @property
    def blocks(self) -> tuple[str, ...]:
        """Those that can be left out."""
        return self.scorer.blocks

    @property
    def actions(self) -> Mapping[str, tuple[Action, ...]]:
        """Dropping, for all."""
        return dict.fromkeys(self.blocks, ("drop",))

    @property
    def declined(self) -> Mapping[str, str]:
        """The other blocks, and why not."""
        return self.scorer.declined

    def quality(self, choice: Choice) -> Quality:
        """How good the model is without these blocks. Raises `RunError`, `SelectionError`."""
        dropped = [block for block, action in choice.items() if action != "keep"]
        score = self.judge.score(self.scorer.outputs(dropped))
        return Quality(score, self.judge.kept(score))


@dataclass(frozen=True, eq=False)
class HealedOpener:
    """Opens a calibration of the model at `path`: healed on `fit` by `repairs`, judged on `judged`."""

    key: str
    path: Path
    fit: Data
    judged: Data
    settings: Settings
    repairs: Repairs
    batch: int = BATCH

    def open(self) -> Healed:
        """Raises `LoadError`, `RunError`."""
        from graphprune.healing.calibration import open_calibration

        how: dict[str, Any] = dict(settings=self.settings, batch=self.batch, repairs=self.repairs)
        return Healed(open_calibration(self.path, self.fit, self.judged, **how))


@dataclass(frozen=True, eq=False)
class UnhealedOpener:
    """Opens the model at `path` with gated blocks, judged on `judged`."""

    key: str
    path: Path
    judged: Data
    settings: Settings
    batch: int = BATCH

    def open(self) -> Unhealed:
        """Raises `LoadError`, `RunError`."""
        from graphprune.data.judging import open_judge
        from graphprune.scoring import open_scorer

        batches = self.judged.batches(self.path, self.batch)
        scorer = open_scorer(self.path, [batch.source for batch in batches], self.settings)
        return Unhealed(scorer, open_judge(self.judged, batches, scorer.outputs()))


@dataclass(frozen=True)
class Stored:
    """An opener that lies in a file of ours: so its data need not go along with every task."""

    key: str
    path: Path

    def open(self) -> Evaluator:
        """Raises `LoadError`, `RunError`."""
        opener: Opener = pickle.loads(self.path.read_bytes())
        return opener.open()


# The evaluators of this process by the keys of their openers, those longest unused first. A search has four:
# more are those of searches before it, in a worker that outlives them.
_OPEN: dict[str, Evaluator] = {}
_MOST = 4


def opened(opener: Opener) -> Evaluator:
    """The evaluator of an opener, opened once in this process. Raises `LoadError`, `RunError`."""
    evaluator = _OPEN.pop(opener.key, None) or opener.open()
    _OPEN[opener.key] = evaluator
    while len(_OPEN) > _MOST:
        del _OPEN[next(iter(_OPEN))]
    return evaluator


def close_all() -> None:
    """Forget the evaluators of this process."""
    _OPEN.clear()


def evaluate(task: tuple[Opener, Mapping[str, Action]]) -> Quality:
    """How good a choice is; a pure function of the task, so that it may run anywhere, and twice.

    A choice that cannot be evaluated is none to stop for: its reason comes back. Raises `LoadError`, and
    `RunError` where the evaluator cannot be opened.
    """
    opener, choice = task
    evaluator = opened(opener)
    try:
        return evaluator.quality(choice)
    except (RunError, EditError) as error:
        return Quality(math.nan, math.nan, reason=str(error))
