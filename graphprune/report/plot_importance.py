"""The plot of a ranking: a panel for each criterion, a bar for each block, in the order of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from graphprune.importance.criteria import CRITERIA
from graphprune.importance.results import ranks_of
from graphprune.report.figures import FONT, WIDTH, canvas, colour, hover, short, svg
from graphprune.report.numbers import percent, significant
from graphprune.report.panels import BELOW, LINE, Entry, heading, legend, panel, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from graphprune.importance.results import Ranked, Ranking

_KINDS = ("attention", "cross_attention", "ffn", "conv")
_TALL = 5  # lines of a panel
_LEFT, _RIGHT = 48, 8
_TICKS = 14  # the most numbers of layers below


def importance_plot(ranking: Ranking, *, name: str = "importance-plot") -> str:
    """Every criterion of every block; the lower a bar, the sooner the block can be spared by it."""
    kinds = [kind for kind in (*_KINDS, "other") if any(_kind(one) == kind for one in ranking.blocks)]
    entries = [Entry(kind.replace("_", " "), f"{kind}-1") for kind in kinds]
    each = (_TALL + 2.2) * LINE
    figure = canvas(LINE + 6 + len(ranking.by) * each + BELOW)
    top = legend(figure, [("", entries)]) + 6
    places = _places(ranking.blocks)
    said = []
    for turn, criterion in enumerate(ranking.by):
        title = panel(figure, top + turn * each, 1, left=_LEFT, right=_RIGHT)
        title.set_axis_off()
        heading(title, 0, CRITERIA[criterion].title)
        axes = panel(figure, top + turn * each + 1.4 * LINE, _TALL, left=_LEFT, right=_RIGHT)
        _bars(axes, ranking, criterion, places)
        _layers_below(axes, ranking.blocks, places, named=turn == len(ranking.by) - 1)
        said += [f"{CRITERIA[criterion].title}: {', '.join(_told(ranking, criterion))}"]
    return svg(figure, name, "Importance of the blocks", "; ".join(said))


def _places(blocks: Sequence[Ranked]) -> list[float]:
    """Where the bars of the blocks stand: one after the other, with a gap between stacks."""
    stacks = [one.id.rpartition(".")[0].rpartition(".")[0] for one in blocks]
    gaps = [before != after for before, after in pairwise(stacks)]
    return [number + float(sum(gaps[:number])) for number in range(len(blocks))]


def _bars(axes: Axes, ranking: Ranking, criterion: str, places: Sequence[float]) -> None:
    values = [one.found[criterion].value for one in ranking.blocks]
    known = [value for value in values if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    axes.set_ylim(low, high if high > low else 1.0)
    axes.set_xlim(-0.6, (places[-1] if places else 0) + 0.6)
    axes.grid(visible=False)
    quiet(axes, grid="y")
    ticks = [value for value in (low, high) if abs(value) > (high - low) / _TALL]  # others stand on the 0
    axes.set_yticks([0.0, *ticks], ["0", *(_number(criterion, value) for value in ticks)])
    told = _told(ranking, criterion)
    for x, one, value, words in zip(places, ranking.blocks, values, told, strict=True):
        if value is not None:
            shade = colour(f"{_kind(one)}-1")
            axes.bar([x], [value], 0.78, color=shade, linewidth=0, clip_on=False, gid=hover(words))


def _layers_below(axes: Axes, blocks: Sequence[Ranked], places: Sequence[float], *, named: bool) -> None:
    """Numbers of layers below the first block of each, of as many as there is room for."""
    firsts: dict[str, float] = {}
    for one, x in zip(blocks, places, strict=True):
        firsts.setdefault(one.id.rpartition(".")[0], x)
    ticks = [*firsts.items()][:: 1 + (len(firsts) - 1) // _TICKS] if named else []
    axes.set_xticks([x for _, x in ticks], [id.rpartition(".")[2] for id, _ in ticks], fontsize=FONT)
    stacks = list(dict.fromkeys(id.rpartition(".")[0] for id in firsts))
    if named:
        axes.set_xlabel(short(f"layers of {', '.join(stacks)}", WIDTH // 8), parse_math=False)


def _told(ranking: Ranking, criterion: str) -> list[str]:
    """Every block in words."""
    ranks = ranks_of(ranking.blocks, criterion)
    words = []
    for one in ranking.blocks:
        value = one.found[criterion].value
        known = "not measured" if value is None else f"{_number(criterion, value)}, #{ranks[one.id]}"
        words.append(f"{one.id}: {known}")
    return words


def _number(criterion: str, value: float) -> str:
    return percent(value) if criterion == "loss" else significant(value)


def _kind(one: Ranked) -> str:
    return one.kind if one.kind in _KINDS else "other"
