"""Early exits: where samples leave, what that is worth, and what another threshold would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.figures import clean
from graphprune.report.numbers import NONE, clip, percent, significant
from graphprune.report.plot_exits import curve_plot, histogram_plot
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.exited import ExitsRun, GivenExit, GivenShare
    from graphprune.report.subject import Subject

_TEXT = 160  # letters of an example


def exits(subject: Subject) -> Section | None:
    """The exits that the model was given; None where it was given none."""
    run = subject.exits
    if run is None:
        return None
    held, labelled = run.held, run.goal == "accuracy"
    html = render(
        "exits.html",
        criterion=clip(run.criterion), head=clip(run.head), data=clip(clean(run.data)),
        chosen=clip(run.chosen),
        fitted=f"{run.fitted:,}", calibrated=f"{run.calibrated:,}", samples=f"{held.samples:,}",
        depth=f"{held.point.depth:.2f}", layers=run.layers,
        goal="accuracy" if labelled else "agreement with the dense model",
        right=_within(held.point.right, held.point.right_error),
        best=(held.best[0], _share(held.best[1])) if labelled else (),
        gained=f"{held.point.gained:+.2%} ± {held.point.gained_error:.2%}",
        perplexity=_perplexity(run), curve=curve_plot(run), histogram=histogram_plot(run),
        exit_columns=[
            ("After layer", ""), ("Threshold", "number"), ("Leave", "number"),
            ("Right of these", "number"), ("Right if all left here", "number"),
        ],
        exits=[_exit(run, one) for one in held.exits],
        example_columns=[("After layer", ""), ("Text", ""), ("Answer", ""), ("", "")],
        examples=[
            (
                f"{one.layers}", clean(one.text)[:_TEXT], clip(clean(one.answer)),
                "right" if one.right else "wrong",
            )
            for one in held.examples
        ],
    )  # fmt: skip
    return Section("exits", "Early exits", html)


def _exit(run: ExitsRun, one: GivenExit) -> list[str]:
    threshold = "the rest" if one.threshold is None else significant(one.threshold)
    here = NONE if one.here is None else _share(one.here)
    return [f"{one.layers}", threshold, percent(one.left / run.held.samples), here, _share(one.alone)]


def _perplexity(run: ExitsRun) -> str:
    told = run.held.perplexity
    return "" if told is None else f"{significant(told[0])}, of the dense model {significant(told[1])}"


def _share(share: GivenShare) -> str:
    return _within(share.value, share.error)


def _within(value: float, error: float) -> str:
    return f"{value:.2%} ± {error:.2%}"
