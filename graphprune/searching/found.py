"""What a search found, and what it says of it in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.healing.choice import Action
    from graphprune.healing.mending import HealStep
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.goals import Price
    from graphprune.searching.steering import Reason
    from graphprune.searching.timed import Timed

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Found:
    """A choice of blocks: what it costs, and what it is worth on the data that decides.

    `front` says that none that was found is both cheaper and better.
    """

    choice: Mapping[str, Action]
    price: Price
    quality: Quality
    front: bool = False


@dataclass(frozen=True, eq=False)
class FoundStep:
    """One step on the way: what changed, what the choice was worth then, among how many it was chosen."""

    phase: str
    changed: Mapping[str, Action]
    price: Price
    quality: Quality
    tried: int


@dataclass(frozen=True, eq=False)
class Judged:
    """By what quality is told: the metric, which way is better, and the dense model's own score.

    `fitted` and `judged` are the numbers of examples at the end; `healed` says whether choices were healed.
    """

    metric: str
    better: str
    dense: float
    fitted: int
    judged: int
    healed: bool


@dataclass(frozen=True, eq=False)
class Search:
    """What a search found.

    `cost` is the name of the cost that the frontier is over, `dense` the price of the dense model, `best`
    the choice that won. `steps` lead to it; `repairs` say what healing did to it, block by block; `choices`
    are all that were evaluated at the level that decides, `front` marking the Pareto set. `reasons` say why
    each block is what it is, `declined` why blocks were not searched among. `timed` is how fast the model
    really is, None where it was not timed. `trials` counts evaluations by level. `out` is where the model
    was written, None for a dry run. `source_sha256` is the hash of the dense model's file.
    """

    model: Path
    out: Path | None
    targets: tuple[str, ...]
    judged: Judged
    cost: str
    dense: Price
    best: Found
    steps: tuple[FoundStep, ...]
    repairs: tuple[HealStep, ...]
    choices: tuple[Found, ...]
    reasons: tuple[Reason, ...]
    declined: Mapping[str, str]
    timed: Timed | None
    trials: Mapping[str, int]
    source_sha256: str
    notes: tuple[str, ...] = ()

    @property
    def pareto(self) -> tuple[Found, ...]:
        """The choices than which none is both cheaper and better, the cheapest first."""
        return tuple(sorted((one for one in self.choices if one.front), key=lambda one: one.price[self.cost]))

    def to_json(self) -> dict[str, Any]:
        """What `search --json` prints, and what is written beside the model.

        Format 1: scripts read it, so keys may be added, never changed or taken away.
        """
        return {
            "format": FORMAT,
            "model": self.model.name,
            "source_sha256": self.source_sha256,
            "out": None if self.out is None else str(self.out),
            "targets": list(self.targets),
            "judged": asdict(self.judged),
            "cost": self.cost,
            "dense": dict(self.dense),
            "best": _found(self.best),
            "steps": [_step(one) for one in self.steps],
            "repairs": [asdict(one) for one in self.repairs],
            "pareto": [_found(one) for one in self.pareto],
            "choices": [_found(one) for one in self.choices],
            "reasons": [asdict(one) for one in self.reasons],
            "declined": dict(self.declined),
            "timed": None if self.timed is None else self.timed.to_json(),
            "trials": dict(self.trials),
            "notes": list(self.notes),
        }


def _found(one: Found) -> dict[str, Any]:
    return {"choice": dict(one.choice), "price": dict(one.price), **_quality(one.quality), "front": one.front}


def _step(one: FoundStep) -> dict[str, Any]:
    return {
        "phase": one.phase, "changed": dict(one.changed), "price": dict(one.price), **_quality(one.quality),
        "tried": one.tried,
    }  # fmt: skip


def _quality(one: Quality) -> dict[str, Any]:
    return {"score": one.score, "kept": one.kept, "error": one.error}
