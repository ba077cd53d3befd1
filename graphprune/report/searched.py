"""What a search wrote beside the model that it made: read back, and checked to be about that model.

The file may be a stranger's: what is not as it should be is no search, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from graphprune.healing.building import REPORT, beside
from graphprune.report.written import Frozen, Number, Written, read_written

if TYPE_CHECKING:
    from graphprune.report.ancestry import Origin

_Cost = Literal["latency", "parameters", "macs", "size"]


class SearchedChoice(Frozen):
    """A choice of blocks: its price, its score, and that as a share of the dense model's."""

    choice: dict[str, str]
    price: dict[_Cost, Number]
    score: Number | None
    kept: Number | None
    front: bool = False


class SearchedStep(Frozen):
    """A step on the way: what changed by it, and what came of it."""

    phase: str
    changed: dict[str, str]
    price: dict[_Cost, Number]
    score: Number | None
    kept: Number | None
    tried: int


class SearchedRepair(Frozen):
    """What healing did to a block: what is wrong with the stream behind it, without and with it."""

    block: str
    action: str
    repair: str
    before: Number | None
    after: Number | None
    note: str = ""


class SearchedReason(Frozen):
    """What another action on one block would change: the share of the quality, and of the cost."""

    block: str
    action: str
    instead: str
    kept: Number | None
    cost: Number | None


class SearchedJudge(Frozen):
    """By what quality was told."""

    metric: str
    dense: Number | None
    fitted: int
    judged: int


class SearchedRun(Written):
    """A search, as `searching.found.Search` writes it; what reports show of it."""

    targets: list[str]
    judged: SearchedJudge
    cost: _Cost
    dense: dict[_Cost, Annotated[float, Field(gt=1e-12, le=1e18)]]
    best: SearchedChoice
    steps: list[SearchedStep] = Field(max_length=2000)
    repairs: list[SearchedRepair] = Field(max_length=2000)
    choices: list[SearchedChoice] = Field(max_length=20_000)
    reasons: list[SearchedReason] = Field(max_length=2000)

    def share(self, price: Mapping[_Cost, float]) -> float:
        """What a price is of the dense model's."""
        return price.get(self.cost, 0.0) / self.dense.get(self.cost, 1.0)


def read_searched(model: Path, origin: Origin) -> tuple[SearchedRun | None, str]:
    """The search that made a model, and a note where there is one beside it that cannot be read."""
    return read_written(beside(model, REPORT), SearchedRun, origin, "a search")
