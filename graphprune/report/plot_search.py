"""The plot of a search: what choices cost against what they are worth, and those that nothing beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.figures import canvas, colour, hover, svg
from graphprune.report.numbers import percent
from graphprune.report.panels import Entry, legend, plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from graphprune.report.searched import SearchedChoice, SearchedRun

_HEIGHT = 280
_SHOWN = 1500  # choices, at most


def frontier_plot(run: SearchedRun, *, name: str = "frontier-plot") -> str:
    """All choices by cost and quality, the Pareto set joined by a line, and the choice that was made."""
    known = [one for one in run.choices if one.kept is not None]
    shown = [one for one in known if one.front] + [one for one in known if not one.front]
    figure = canvas(_HEIGHT)
    entries = [Entry("evaluated", "other-3"), Entry("Pareto set", "attention-1"), Entry("chosen", "ffn-1")]
    axes = plane(figure, legend(figure, [("", entries)]) + 6, left=58, right=14)
    for one in reversed(shown[:_SHOWN]):
        _dot(axes, run, one)
    front = sorted((run.share(one.price), one.kept or 0.0) for one in known if one.front)
    if front:
        axes.step(
            *zip(*front, strict=True), where="post", color=colour("attention-1"), linewidth=1.2, zorder=1.5
        )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.set_xlabel(f"{run.cost}, as a share of the dense model's", parse_math=False)
    axes.set_ylabel("share of the dense quality")
    said = "; ".join(_words(run, one) for one in known if one.front)
    return svg(figure, name, f"Quality by {run.cost}: the choices of a search", said)


def _dot(axes: Axes, run: SearchedRun, one: SearchedChoice) -> None:
    chosen = one.choice == run.best.choice
    name, size = ("ffn-1", 9) if chosen else ("attention-1", 5) if one.front else ("other-3", 3)
    axes.plot(
        [run.share(one.price)], [one.kept or 0.0], "D" if chosen else "o",
        color=colour(name), markersize=size, zorder=3 if chosen else 2, clip_on=False,
        gid=hover(_words(run, one)),
    )  # fmt: skip


def _words(run: SearchedRun, one: SearchedChoice) -> str:
    blocks = ", ".join(f"{action} {block}" for block, action in one.choice.items()) or "dense"
    return f"{percent(run.share(one.price))} of the {run.cost}, {percent(one.kept)} of the quality: {blocks}"
