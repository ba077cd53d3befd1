"""What `exits` wrote beside the model that it made, read back and checked to be about that model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from graphprune.exits.asked import REPORT
from graphprune.healing.building import beside
from graphprune.report.written import Frozen, Number, Written, read_written

if TYPE_CHECKING:
    from graphprune.report.ancestry import Origin

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=1_000_000_000_000)]


class GivenShare(Frozen):
    """A share of samples with its standard error."""

    value: _Share
    error: Number


class GivenExit(Frozen):
    """An exit: how many left there, and how often it is right, of all samples and of these."""

    layers: _Count
    threshold: Number | None
    left: _Count
    alone: GivenShare
    here: GivenShare | None


class GivenPoint(Frozen):
    """A threshold, and what it comes to."""

    threshold: Number
    depth: Number
    right: _Share
    gained: Number
    depth_error: Number
    right_error: Number
    gained_error: Number


class GivenExample(Frozen):
    """A text that left after so many layers."""

    layers: _Count
    text: str
    answer: str
    right: bool


class GivenHeld(Frozen):
    """What exits come to on samples held out."""

    samples: int = Field(ge=1)
    exits: list[GivenExit] = Field(min_length=1, max_length=500)
    point: GivenPoint
    best: tuple[_Count, GivenShare]
    agreement: GivenShare | None
    perplexity: tuple[Number, Number] | None
    curve: list[GivenPoint] = Field(min_length=1, max_length=1000)
    examples: list[GivenExample] = Field(max_length=2000)


class ExitsRun(Written):
    """Exits, as `exits.exchange.to_json` writes them; what reports show of them."""

    data: str
    layers: int = Field(ge=1, le=100_000)
    head: str
    criterion: str
    batch_mode: str
    goal: Literal["accuracy", "agreement"]
    chosen: str
    fitted: _Count
    calibrated: _Count
    held: GivenHeld


def read_exits(model: Path, origin: Origin) -> tuple[ExitsRun | None, str]:
    """The exits that a model was given, and a note where a file beside it cannot be read as such."""
    return read_written(beside(model, REPORT), ExitsRun, origin, "exits")
