"""The report's plots, each as an `<svg>` for the page: plain numbers in, text out.

Labels may be anything, a path or the name of a node: they are cut to what fits, and escaped. Every plot
takes a `name`, which must be its own within the page: its ids begin with it. matplotlib is imported when
a plot is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from graphprune.report.figures import FONT, canvas, colour, hover, short, svg
from graphprune.report.numbers import duration, percent, significant, size
from graphprune.report.panels import (
    BELOW,
    LINE,
    Entry,
    beside,
    heading,
    legend,
    limit,
    logarithmic,
    panel,
    plane,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
# The models of a plot, in their order: the first, which the others are compared with, is grey.
_COLOURS = ("other-1", "attention-1", "ffn-1", "conv-1", "cross_attention-1", "ink")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_KINDS = ("attention", "cross_attention", "ffn", "conv")
# The shade of a part of a block, from the front of its branch to the back, and of what all kinds have.
_SHADES = {
    "projections": 1, "up": 1, "conv": 1, "linear": 1, "fused": 2, "scores": 2, "activation": 2,
    "output": 3, "down": 3,
}  # fmt: skip
_COMMON = {"norm": "other-1", "join": "other-2", "other": "other-3"}


@dataclass(frozen=True)
class Latency:
    """One model at one size of input: the median in milliseconds, and its ratio to the baseline's.

    `low` and `high` are the 95% interval of the ratio; the baseline itself has none of the three.
    """

    model: str
    cell: str
    ms: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Footprint:
    """One model: bytes of its files, milliseconds to load it, bytes of memory at most; None: not measured."""

    model: str
    disk: float | None
    load_ms: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Row:
    """A bar of a stacked plot: microseconds by (kind of block, part), as in `{("ffn", "up"): 120.0}`."""

    label: str
    parts: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Dot:
    """A block in a roofline plot: what it computes and moves in a call, and how long it takes."""

    label: str
    kind: str
    macs: float
    bytes: float
    us: float


def latency_plot(rows: Sequence[Latency], *, name: str = "latency-plot") -> str:
    """The models by size of input: ratios to the baseline with their intervals, milliseconds in words.

    Without ratios, bars of milliseconds. Rows of one cell stand together, in the order given; where
    there is one model, each row is a cell.
    """
    models, cells = _unique(row.model for row in rows), _unique(row.cell for row in rows)
    compared = any(row.ratio is not None for row in rows)
    lines: list[Latency | str] = []
    for cell in cells:
        lines += [cell] if len(models) > 1 else []
        lines += [row for row in rows if row.cell == cell]
    figure = canvas(len(lines) * LINE + BELOW)
    axes = panel(figure, 0, len(lines), left=110, right=106 if compared else 62)
    for y, line in enumerate(lines):
        if isinstance(line, str):
            heading(axes, y, line)
            continue
        label = line.model if len(models) > 1 else line.cell
        beside(axes, y, label, _latency_numbers(line))
        (_interval if compared else _bar)(axes, y, line, models.index(line.model))
    if compared:
        axes.axvline(1, color=colour("muted"), linewidth=0.8, zorder=0.5)
    axes.set_xlabel(f"ratio to {short(models[0], 36)}" if compared else "milliseconds", parse_math=False)
    axes.margins(x=0.06 if compared else 0)
    return svg(figure, name, "Latency", "; ".join(map(_latency_words, rows)))


def _interval(axes: Axes, y: int, row: Latency, turn: int) -> None:
    ratio = 1.0 if row.ratio is None else row.ratio
    shade = colour(_COLOURS[turn % len(_COLOURS)])
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=shade, linewidth=2, solid_capstyle="butt", clip_on=False)
    marker = _MARKERS[turn % len(_MARKERS)]
    axes.plot([ratio], [y], marker, color=shade, markersize=6, clip_on=False, gid=hover(_latency_words(row)))


def _bar(axes: Axes, y: int, row: Latency, turn: int) -> None:
    shade = colour(_COLOURS[(turn or 1) % len(_COLOURS)])
    axes.barh([y], [row.ms], 0.6, color=shade, clip_on=False, gid=hover(_latency_words(row)))


def _latency_numbers(row: Latency) -> str:
    ratio = "" if row.ratio is None else f" · {row.ratio:.2f}×"
    return duration(row.ms * 1e3) + ratio


def _latency_words(row: Latency) -> str:
    words = f"{row.model}, {row.cell}: {duration(row.ms * 1e3)}"
    if row.ratio is None:
        return words
    words += f", {row.ratio:.3f} times the first"
    known = row.low is not None and row.high is not None
    return f"{words} (95% interval {row.low:.3f} to {row.high:.3f})" if known else words


def footprint_plot(rows: Sequence[Footprint], *, name: str = "footprint-plot") -> str:
    """Size on disk, peak memory and load time of the models, one below the other."""
    panels: tuple[tuple[str, list[float | None], Callable[[float], str]], ...] = (
        ("Size on disk", [row.disk for row in rows], size),
        ("Peak memory", [row.memory for row in rows], size),
        ("Time to load", [row.load_ms for row in rows], lambda ms: duration(ms * 1e3)),
    )
    figure = canvas(len(panels) * (len(rows) + 1.4) * LINE)
    said = []
    for turn, (title, values, say) in enumerate(panels):
        axes = panel(figure, turn * (len(rows) + 1.4) * LINE, len(rows) + 1, left=110, right=84)
        axes.set_xticks([])
        heading(axes, 0, title)
        for y, (row, value) in enumerate(zip(rows, values, strict=True), 1):
            words = "not measured" if value is None else say(value)
            beside(axes, y, row.model, words)
            shade = colour(_COLOURS[(y - 1) % len(_COLOURS)])
            axes.barh([y], [value or 0], 0.6, color=shade, gid=hover(f"{row.model}, {title}: {words}"))
            said.append(f"{title}, {row.model}: {words}")
        axes.set_xlim(0, max((value or 0 for value in values), default=0) or 1)
    return svg(figure, name, "Size on disk, peak memory and load time", "; ".join(said))


def parts_plot(rows: Sequence[Row], *, name: str = "parts-plot") -> str:
    """Time by layer (or block), each a bar of its parts, rows in the order given."""
    keys = sorted(_unique(_key(kind, part) for row in rows for kind, part in row.parts), key=_position)
    legends = _legends(keys)
    line = LINE if len(rows) <= 24 else 14.0
    figure = canvas(len(legends) * LINE + 6 + len(rows) * line + BELOW)
    axes = panel(figure, legend(figure, legends) + 6, len(rows), left=88, right=56, line=line)
    total = sum(sum(row.parts.values()) for row in rows)
    longest = max((sum(row.parts.values()) for row in rows), default=0.0)
    for y, row in enumerate(rows):
        _stack(axes, y, row, keys, longest / 400)
        beside(axes, y, row.label, duration(sum(row.parts.values())), size=min(FONT, line - 4))
    axes.set_xlabel("milliseconds")
    axes.xaxis.set_major_formatter(lambda us, _: f"{us / 1e3:g}")
    said = "; ".join(f"{row.label}: {duration(sum(row.parts.values()))}" for row in rows)
    return svg(figure, name, f"Time by layer and part, {duration(total)} in all", said)


def _stack(axes: Axes, y: int, row: Row, keys: Sequence[tuple[str, str]], gap: float) -> None:
    sums: dict[tuple[str, str], float] = {}
    for (kind, part), us in row.parts.items():
        sums[_key(kind, part)] = sums.get(_key(kind, part), 0.0) + us
    total, left = sum(sums.values()), 0.0
    for key in keys:
        us = sums.get(key, 0.0)
        if us > 0:
            said = hover(f"{' '.join(key).strip().replace('_', ' ')}: {duration(us)}, {percent(us / total)}")
            axes.barh(
                [y], [max(us - gap, us / 2)], 0.72, left,
                color=colour(_shade(*key)), linewidth=0, clip_on=False, gid=said,
            )  # fmt: skip
        left += us


def _key(kind: str, part: str) -> tuple[str, str]:
    """What a part is called in the legend: norms, joins and the rest are the same in all kinds."""
    own, _, last = part.rpartition(".")
    kind = own or kind
    if last in _SHADES:
        return (kind if kind in _KINDS else "other"), last
    return "", last if last in _COMMON else "other"


def _shade(kind: str, part: str) -> str:
    return f"{kind}-{_SHADES[part]}" if kind else _COMMON[part]


def _position(key: tuple[str, str]) -> tuple[int, int, str]:
    kind, part = key
    order = (*_KINDS, "other", "")
    return order.index(kind), _SHADES.get(part, 0), _COMMON.get(part, "")


def _legends(keys: Sequence[tuple[str, str]]) -> list[tuple[str, list[Entry]]]:
    rows = []
    for kind in _unique(kind for kind, _ in keys):
        entries = [Entry(part, _shade(kind, part)) for one, part in keys if one == kind]
        rows.append((kind.replace("_", " ") or "rest", entries))
    return rows


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def roofline_plot(
    dots: Sequence[Dot],
    macs_per_s: float,
    bytes_per_s: float,
    cache_bytes_per_s: float = 0.0,
    *,
    name: str = "roofline-plot",
) -> str:
    """How fast blocks compute, by what they compute for each byte, below the limits of the machine.

    The limit of the cache, where that is given, is dotted. Both axes are logarithmic; the area of a dot is
    its time. What computes or moves nothing, or took no time, is left out. After Williams, Waterman and
    Patterson: Roofline (2009).
    """
    shown = [dot for dot in dots if dot.macs > 0 and dot.bytes > 0 and dot.us > 0]
    kinds = [kind for kind in (*_KINDS, "other") if any(_kind(dot) == kind for dot in shown)]
    figure = canvas(300)
    top = legend(figure, [("", [Entry(kind.replace("_", " "), f"{kind}-1") for kind in kinds])])
    axes = plane(figure, top + 6, left=52, right=14)
    ridge = macs_per_s / bytes_per_s
    across = [dot.macs / dot.bytes for dot in shown] + [ridge]
    low, high = min(across) / 3, max(across) * 4
    for speed, style in ((bytes_per_s, "-"), (cache_bytes_per_s, ":")):
        corners = [x for x in (low, macs_per_s / speed, high) if x >= low] if speed else []
        roof = [min(macs_per_s, x * speed) / 1e9 for x in corners]
        axes.plot(corners, roof, style, color=colour("ink"), linewidth=1.5)
    longest = max((dot.us for dot in shown), default=1.0)
    for dot in shown:
        axes.plot(
            [dot.macs / dot.bytes], [dot.macs / dot.us / 1e3], _MARKERS[kinds.index(_kind(dot))],
            color=colour(f"{_kind(dot)}-1"), markeredgecolor=colour("paper"), markeredgewidth=0.6,
            markersize=4 + 6 * (dot.us / longest) ** 0.5, clip_on=False, gid=hover(_dot_words(dot)),
        )  # fmt: skip
    logarithmic(axes)
    limit(axes, high, macs_per_s / 1e9, f"compute: {significant(macs_per_s / 1e9)} GMAC/s", ha="right")
    limit(
        axes,
        low,
        low * bytes_per_s / 1e9,
        f"memory: {significant(bytes_per_s / 1e9)} GB/s",
        ha="left",
        slope=True,
    )
    axes.set_xlabel("MACs for each byte moved")
    axes.set_ylabel("GMAC/s")
    said = "; ".join(map(_dot_words, shown))
    return svg(figure, name, "Speed of the blocks against the machine's limits", said)


def _kind(dot: Dot) -> str:
    return dot.kind if dot.kind in _KINDS else "other"


def _dot_words(dot: Dot) -> str:
    return (
        f"{dot.label}: {significant(dot.macs / dot.us / 1e3)} GMAC/s at "
        f"{significant(dot.macs / dot.bytes)} MACs a byte, {duration(dot.us)}"
    )
