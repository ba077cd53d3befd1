"""The layout of plots: lines of text with something drawn between a label and its numbers.

Everything is in units of the page (see `figures.WIDTH`), so that letters have one size in all plots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graphprune.report.figures import FONT, WIDTH, colour, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 17.0
# What the numbers below the axes and their name take.
BELOW = 34.0
# A usual letter's width, as a part of the font's size.
_LETTER = 0.6


@dataclass(frozen=True)
class Entry:
    """One colour of a legend."""

    label: str
    colour: str


def panel(figure: Figure, top: float, lines: int, *, left: float, right: float, line: float = LINE) -> Axes:
    """Axes for `lines` lines: `top`, `left` and `right` are units from the edges. Line 0 is the topmost."""
    height = figure.get_figheight() * 72
    tall = lines * line
    box = (left / WIDTH, 1 - (top + tall) / height, 1 - (left + right) / WIDTH, tall / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.set_ylim(lines - 0.5, -0.5)
    axes.set_yticks([])
    quiet(axes)
    return axes


def quiet(axes: Axes, *, grid: Literal["x", "y", "both"] = "x") -> None:
    """No box, small muted numbers, thin lines behind everything."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=FONT, labelcolor=colour("muted"), pad=4)
    axes.grid(axis=grid, color=colour("line"), linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(colour("muted"))
        axis.label.set_fontsize(FONT)


def beside(axes: Axes, y: float, label: str, numbers: str = "", *, size: float = FONT) -> None:
    """A line's label on its left, and its numbers on its right."""
    room = axes.get_position().x0 * WIDTH - 5
    _words(axes, 0, y, -6, short(label, int(room / (size * _LETTER))), ha="right", fontsize=size)
    _words(axes, 1, y, 6, numbers, ha="left", fontsize=size)


def heading(axes: Axes, y: float, text: str) -> None:
    """A line of its own for what the lines below have in common."""
    _words(axes, 0, y, -axes.get_position().x0 * WIDTH, short(text, 56), ha="left", weight="bold")


def _words(axes: Axes, x: float, y: float, shift: float, text: str, **how: Any) -> None:
    axes.annotate(
        text, (x, y), (shift, 0), axes.get_yaxis_transform(), "offset points", va="center_baseline",
        color=colour("ink"), annotation_clip=False, parse_math=False, **{"fontsize": FONT, **how},
    )  # fmt: skip


def legend(figure: Figure, rows: Sequence[tuple[str, Sequence[Entry]]]) -> float:
    """Rows of colours at the top, each with its name; returns their height."""
    height = figure.get_figheight() * 72
    for row, (name, entries) in enumerate(rows):
        y, x = 1 - (row + 0.5) * LINE / height, 0.0
        how: dict[str, Any] = dict(va="center_baseline", fontsize=FONT, color=colour("ink"))
        if name:
            figure.text(x / WIDTH, y, name, weight="bold", **how)
            x += 102
        for entry in entries:
            _swatch(figure, x, (row + 0.5) * LINE, entry.colour)
            figure.text((x + 13) / WIDTH, y, entry.label, **how)
            x += 13 + len(entry.label) * FONT * _LETTER + 10
    return len(rows) * LINE


def _swatch(figure: Figure, x: float, y: float, name: str) -> None:
    from matplotlib.patches import Rectangle

    height, side = figure.get_figheight() * 72, 9.0
    corner = (x / WIDTH, 1 - (y + side / 2) / height)
    figure.add_artist(Rectangle(corner, side / WIDTH, side / height, color=colour(name), linewidth=0))


def plane(figure: Figure, top: float, *, left: float, right: float) -> Axes:
    """Axes for the rest of the figure, with numbers and names on both."""
    height = figure.get_figheight() * 72
    box = (left / WIDTH, BELOW / height, 1 - (left + right) / WIDTH, 1 - (top + BELOW) / height)
    axes = figure.add_axes(box, facecolor="none")
    quiet(axes, grid="both")
    return axes


def logarithmic(axes: Axes) -> None:
    """Both axes by decades, or finer where there are few of them, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def limit(axes: Axes, x: float, y: float, text: str, *, ha: str, slope: bool = False) -> None:
    """The name of a line, along it: above, or below where it rises one for one (`slope`)."""
    axes.autoscale_view()
    (left, low), (right, high) = axes.transData.transform([(x, y), (10 * x, 10 * y)])
    angle = math.degrees(math.atan2(high - low, right - left)) if slope else 0.0
    shift, va = ((9, 1), "top") if slope else ((-4, 4), "bottom")
    axes.annotate(
        text, (x, y), shift, textcoords="offset points", ha=ha, va=va, color=colour("ink"), fontsize=FONT,
        rotation=angle, rotation_mode="anchor",
    )  # fmt: skip
