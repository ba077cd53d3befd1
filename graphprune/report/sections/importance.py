"""How important every block and layer is, by all criteria of a ranking that was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphprune.importance.criteria import CRITERIA
from graphprune.importance.results import ranks_of
from graphprune.report.figures import clean
from graphprune.report.numbers import NONE, percent, significant
from graphprune.report.plot_importance import importance_plot
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.importance.results import Measured, Ranked, Ranking, Stretch
    from graphprune.report.subject import Subject


def importance(subject: Subject) -> Section | None:
    """The ranking; None where none was given."""
    ranking = subject.ranking
    if ranking is None:
        return None
    html = render(
        "importance.html",
        plot=importance_plot(ranking),
        said=_said(ranking),
        criteria=[CRITERIA[name] for name in ranking.by],
        blocks_columns=_columns("Block", ranking), blocks=list(_rows(ranking, ranking.blocks)),
        layers_columns=_columns("Layer", ranking),
        layers=list(_rows(ranking, ranking.layers)) if len(ranking.layers) > 1 else [],
        stretches_columns=[("Layers", ""), ("In a row", "number"), ("Angular distance", "number")],
        stretches=[_stretch(one) for one in ranking.best_stretches if one.length > 1],
    )  # fmt: skip
    return Section("importance", "Importance", html)


def _stretch(one: Stretch) -> tuple[str, str, str]:
    layers = f"{one.stack} {one.start} to {one.start + one.length - 1}"
    return layers, f"{one.length}", significant(one.distance)


def _said(ranking: Ranking) -> str:
    """What it was measured on."""
    scores = [
        f"{one.metric} {one.dense:.4f}{' on those held out of the fit' if name == 'healed' else ''}"
        for name, one in ranking.scales.items()
    ]
    dense = f"; the dense model has {', '.join(scores)}" if scores else ""
    return f"Measured on {clean(ranking.data)}, {ranking.examples:,} examples{dense}."


def _columns(first: str, ranking: Ranking) -> list[tuple[str, str]]:
    columns = [(first, "")]
    for name in ranking.by:
        scale = ranking.scales.get(name)
        columns += [(CRITERIA[name].title, "number"), ("#", "number")]
        columns += [(scale.metric, "number")] if scale else []
    return columns


def _rows(ranking: Ranking, ranked: Sequence[Ranked]) -> Iterator[list[str]]:
    places = {name: ranks_of(ranked, name) for name in ranking.by}
    for one in ranked:
        row = [one.id]
        for name in ranking.by:
            row += _cells(ranking, name, one.found[name], places[name].get(one.id))
        yield row


def _cells(ranking: Ranking, criterion: str, one: Measured, place: int | None) -> list[str]:
    value = percent(one.value) if criterion == "loss" else significant(one.value)
    score = [NONE if one.score is None else f"{one.score:.4f}"] if criterion in ranking.scales else []
    return [value, NONE if place is None else f"{place}", *score]
