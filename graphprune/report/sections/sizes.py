"""Before and after: what the files hold, and what the recipe did to each target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphprune.prunepass import Edit
from graphprune.report.numbers import formula, percent, whole
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.pipeline import Plan
    from graphprune.report.subject import Subject


def sizes(subject: Subject) -> Section | None:
    """Both models in numbers; of one model alone, what it holds."""
    sides, rows = subject.sides, []
    for name in ("nodes", "initializers", "parameters", "bytes"):
        values = [getattr(side.sizes, name) for side in sides]
        left = [percent(values[1] / values[0]) if values[0] else ""] if len(values) > 1 else []
        rows.append([name.capitalize(), *map(whole, values), *left])
    numbers = [*(side.name for side in sides), *["Left"] * (len(sides) - 1)]
    html = render(
        "sizes.html",
        columns=[("What", ""), *((name, "number") for name in numbers)], rows=rows,
        macs=[(side.name, formula(side.sizes.macs)) for side in sides],
        outcomes=list(_outcomes(subject.plan)) if subject.plan else [],
        outcome_columns=[("Target", ""), ("Pass", ""), ("What happened", "wide")],
    )  # fmt: skip
    return Section("sizes", "Before and after" if len(sides) > 1 else "What it holds", html)


def _outcomes(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """What happened to each target; of the copies of a stack, which change alike, the first is told."""
    told = set()
    for outcome in plan.outcomes:
        answer = outcome.answer
        if outcome.target not in told:
            what = answer.summary if isinstance(answer, Edit) else f"nothing: {answer.reason}"
            yield answer.target, outcome.name, what
        told.add(outcome.target)
