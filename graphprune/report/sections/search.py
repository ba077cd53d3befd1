"""How the model was found: the choices that were evaluated, the steps that led to it, and the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.numbers import NONE, clip, percent, significant
from graphprune.report.plot_search import frontier_plot
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphprune.report.searched import SearchedReason, SearchedRun, SearchedStep
    from graphprune.report.subject import Subject


def search(subject: Subject) -> Section | None:
    """The frontier and the steps; None where the model was not made by a search."""
    run = subject.searched
    if run is None:
        return None
    cost = run.cost.capitalize()
    html = render(
        "search.html",
        targets=clip(", ".join(run.targets)), judged=run.judged, metric=clip(run.judged.metric),
        evaluated=len(run.choices), front=sum(one.front for one in run.choices),
        share=percent(run.share(run.best.price)), cost=run.cost,
        score=significant(run.best.score), kept=percent(run.best.kept),
        plot=frontier_plot(run),
        step_columns=[
            ("Step", ""), ("What", ""), ("Chosen among", "number"), (cost, "number"),
            (clip(run.judged.metric), "number"), ("Of dense", "number"),
        ],
        steps=[_step(run, one) for one in run.steps],
        reason_columns=[
            ("Block", ""), ("Is", ""), ("Instead", ""), ("Quality", "number"), (cost, "number"),
        ],
        reasons=[_reason(one) for one in run.reasons],
    )  # fmt: skip
    return Section("search", "Search", html)


def said(changed: Mapping[str, str]) -> str:
    """Blocks with what became of them, in words."""
    return ", ".join(f"{action} {clip(block)}" for block, action in changed.items())


def _step(run: SearchedRun, one: SearchedStep) -> list[str]:
    return [
        clip(one.phase), said(one.changed), f"{one.tried}", percent(run.share(one.price)),
        significant(one.score), percent(one.kept),
    ]  # fmt: skip


def _reason(one: SearchedReason) -> list[str]:
    return [clip(one.block), clip(one.action), clip(one.instead), _change(one.kept), _change(one.cost)]


def _change(share: float | None) -> str:
    return NONE if share is None else f"{share:+.2%}"
