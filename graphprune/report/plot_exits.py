"""The plots of early exits: what is right by depth, threshold by threshold, and where samples leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.figures import FONT, canvas, colour, hover, svg
from graphprune.report.numbers import percent
from graphprune.report.panels import Entry, legend, plane

if TYPE_CHECKING:
    from graphprune.report.exited import ExitsRun, GivenPoint

_HEIGHT, _LOW = 280, 200


def curve_plot(run: ExitsRun, *, name: str = "exits-curve") -> str:
    """All thresholds by depth and the share that is right, the exits by themselves, and the rule."""
    held = run.held
    entries = [
        Entry("all thresholds", "attention-1"),
        Entry("one exit for all", "other-3"),
        Entry("chosen", "ffn-1"),
    ]
    figure = canvas(_HEIGHT)
    axes = plane(figure, legend(figure, [("", entries)]) + 6, left=58, right=14)
    curve = sorted(held.curve, key=lambda one: one.depth)
    axes.plot(
        [one.depth for one in curve], [one.right for one in curve], color=colour("attention-1"), linewidth=1.2
    )
    for one in curve:
        axes.plot(
            [one.depth],
            [one.right],
            "o",
            color=colour("attention-1"),
            markersize=3,
            gid=hover(_words(run, one)),
        )
    for each in held.exits:
        said = f"all after layer {each.layers}: {percent(each.alone.value)}"
        axes.plot(
            [each.layers], [each.alone.value], "s", color=colour("other-3"), markersize=5, gid=hover(said)
        )
    chosen = held.point
    axes.errorbar(
        [chosen.depth],
        [chosen.right],
        [chosen.right_error],
        [chosen.depth_error],
        "none",
        ecolor=colour("ffn-1"),
    )
    axes.plot(
        [chosen.depth],
        [chosen.right],
        "D",
        color=colour("ffn-1"),
        markersize=8,
        gid=hover(_words(run, chosen)),
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.set_xlabel("layers that run on average", parse_math=False)
    axes.set_ylabel(run.goal)
    return svg(
        figure, name, f"{run.goal.capitalize()} by depth", "; ".join(_words(run, one) for one in curve[::10])
    )


def histogram_plot(run: ExitsRun, *, name: str = "exits-histogram") -> str:
    """How many samples leave after which layer."""
    figure = canvas(_LOW)
    axes = plane(figure, 12, left=58, right=14)
    axes.grid(visible=False, axis="x")
    said = []
    for one in run.held.exits:
        share = one.left / run.held.samples
        said.append(f"after layer {one.layers}: {percent(share)}")
        axes.bar([one.layers], [share], 0.7, color=colour("attention-1"), linewidth=0, gid=hover(said[-1]))
        axes.annotate(
            percent(share), (one.layers, share), (0, 3), textcoords="offset points", ha="center",
            color=colour("ink"), fontsize=FONT, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(0.4, run.layers + 0.6)
    axes.set_xticks([one.layers for one in run.held.exits])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("layers that have run", parse_math=False)
    axes.set_ylabel("samples that leave")
    return svg(figure, name, "Where samples leave", "; ".join(said))


def _words(run: ExitsRun, one: GivenPoint) -> str:
    return f"threshold {one.threshold:.4g}: {one.depth:.2f} of {run.layers} layers, {one.right:.2%} right"
