"""What healing did to the blocks: how wrong the stream is behind each, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.numbers import clip, significant
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.searched import SearchedRepair
    from graphprune.report.subject import Subject


def healing(subject: Subject) -> Section | None:
    """A row for every block from the first that was changed; None where nothing is known of it."""
    run = subject.searched
    if run is None or not run.repairs:
        return None
    columns = [
        ("Block", ""), ("Action", ""), ("Repair", ""), ("Error before", "number"), ("After", "number"),
        ("Note", ""),
    ]  # fmt: skip
    rows = [_row(one) for one in run.repairs]
    return Section("healing", "Healing", render("healing.html", columns=columns, rows=rows))


def _row(one: SearchedRepair) -> list[str]:
    names = [clip(one.block), clip(one.action), clip(one.repair)]
    return [*names, significant(one.before), significant(one.after), clip(one.note)]
