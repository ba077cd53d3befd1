"""What a report is about: the models, what was measured of them, and the sections made of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from graphprune.bundle import Bundle
    from graphprune.compare import Verification
    from graphprune.importance.results import Ranking
    from graphprune.pipeline import Plan
    from graphprune.profiler import Profile
    from graphprune.report.ancestry import Origin
    from graphprune.report.drawing import DrawnStack
    from graphprune.report.exited import ExitsRun
    from graphprune.report.searched import SearchedRun
    from graphprune.roofline import Peak
    from graphprune.settings import Settings
    from graphprune.sizes import Sizes
    from graphprune.survey import SurveyedFile
    from graphprune.timing import Bench


@dataclass(frozen=True)
class Section:
    """One section of the page: its heading, its id (the page's anchor), and its HTML.

    The HTML is put in as it is: whatever came from a model has to be escaped in it.
    """

    id: str
    title: str
    html: str


@dataclass(frozen=True, eq=False)
class Side:
    """One of the models: how the page calls it, what was recovered from it, how big it is, its times."""

    name: str
    path: Path
    bundle: Bundle
    files: tuple[SurveyedFile, ...]
    sizes: Sizes
    profile: Profile | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """Everything that sections are made of.

    `model` is what the report is about, `dense` what it was made from, where that was given; `plan` is its
    recipe, planned again on `dense`. `stacks` are the drawing: of the dense model, with what
    went, or of the model alone. `inputs` says in words what the models ran on, `command` how to make the
    report again; `peak` is the machine's at the type in which the model mostly multiplies. `ranking` is
    what `rank` found, where that was given, and `searched` the search that made the model, `exits` those
    that it was given. What could not be measured is None, and `notes` say why.
    """

    model: Side
    dense: Side | None
    origin: Origin
    plan: Plan | None
    stacks: tuple[DrawnStack, ...]
    settings: Settings
    inputs: str
    command: str
    bench: Bench | None = None
    agreement: Verification | None = None
    notes: tuple[str, ...] = ()
    peak: Peak | None = None
    ranking: Ranking | None = None
    searched: SearchedRun | None = None
    exits: ExitsRun | None = None

    @property
    def sides(self) -> tuple[Side, ...]:
        """The models, the dense one first."""
        return (self.model,) if self.dense is None else (self.dense, self.model)

    def name_of(self, path: str) -> str:
        """What the page calls the model at `path`."""
        return next((side.name for side in self.sides if str(side.path) == path), path)
