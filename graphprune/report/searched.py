"""What a search wrote beside the model that it made: read back, and checked to be about that model.

The file may be a stranger's: what is not as it should be is no search, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphprune.healing.building import REPORT, beside

if TYPE_CHECKING:
    from graphprune.report.ancestry import Origin

_LARGEST = 1 << 25  # bytes
_Number = Annotated[float, Field(ge=-1e18, le=1e18)]
_Cost = Literal["latency", "parameters", "macs", "size"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class SearchedChoice(_Frozen):
    """A choice of blocks: its price, its score, and that as a share of the dense model's."""

    choice: dict[str, str]
    price: dict[_Cost, _Number]
    score: _Number | None
    kept: _Number | None
    front: bool = False


class SearchedStep(_Frozen):
    """A step on the way: what changed by it, and what came of it."""

    phase: str
    changed: dict[str, str]
    price: dict[_Cost, _Number]
    score: _Number | None
    kept: _Number | None
    tried: int


class SearchedRepair(_Frozen):
    """What healing did to a block: what is wrong with the stream behind it, without and with it."""

    block: str
    action: str
    repair: str
    before: _Number | None
    after: _Number | None
    note: str = ""


class SearchedReason(_Frozen):
    """What another action on one block would change: the share of the quality, and of the cost."""

    block: str
    action: str
    instead: str
    kept: _Number | None
    cost: _Number | None


class SearchedJudge(_Frozen):
    """By what quality was told."""

    metric: str
    dense: _Number | None
    fitted: int
    judged: int


class SearchedRun(_Frozen):
    """A search, as `searching.found.Search` writes it; what reports show of it."""

    format: int = Field(ge=1)
    source_sha256: str
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
    """The search that made a model, and a note where there is one beside it that cannot be read.

    One of another model, such as that from which this one was pruned on, is none.
    """
    path = beside(model, REPORT)
    if not path.is_file():
        return None, ""
    try:
        if path.stat().st_size > _LARGEST:
            return None, f"{path.name} is too large to be what a search wrote."
        found = SearchedRun.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        return None, f"{path.name} cannot be read as what a search wrote: {problem}"
    hashes = [file.source_sha256 for file in origin.files]
    return (found if found.source_sha256 in hashes else None), ""
