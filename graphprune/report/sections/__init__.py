"""The sections of a report: one file each, with a function `(Subject) -> Section | None`.

None means that the section has nothing to say about this subject. A new section is a new file, and its
function in `SECTIONS`, which is the order on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphprune.report.sections.agreement import agreement
from graphprune.report.sections.blocks import blocks
from graphprune.report.sections.exits import exits
from graphprune.report.sections.footprint import footprint
from graphprune.report.sections.healing import healing
from graphprune.report.sections.importance import importance
from graphprune.report.sections.latency import latency
from graphprune.report.sections.layers import layers
from graphprune.report.sections.repeat import repeat
from graphprune.report.sections.search import search
from graphprune.report.sections.sizes import sizes
from graphprune.report.sections.stream import stream
from graphprune.report.sections.summary import summary

if TYPE_CHECKING:
    from graphprune.report.subject import Section, Subject

SECTIONS: tuple[Callable[[Subject], Section | None], ...] = (
    summary,
    stream,
    sizes,
    agreement,
    latency,
    footprint,
    layers,
    exits,
    search,
    healing,
    importance,
    blocks,
    repeat,
)
