"""What the models take: on the disk, in memory, to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.numbers import duration, size
from graphprune.report.plots import Footprint, footprint_plot
from graphprune.report.render import render
from graphprune.report.sections.latency import cell
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.subject import Subject
    from graphprune.timing import Bench, ModelCost


def footprint(subject: Subject) -> Section | None:
    """The table, and a plot where models are compared; None where nothing was measured."""
    bench = subject.bench
    if bench is None:
        return None
    # Memory is measured for a whole pass over all files: each size has it once.
    sizes = {(one.batch, one.sequence): one for one in reversed(bench.timings)}
    firsts = [one for one in bench.timings if one in sizes.values()]
    titles = [f"Peak at {cell(one, subject).partition(',')[0]}" for one in firsts]
    rows = []
    for cost in bench.models:
        peaks = {(o.batch, o.sequence): o.peak_mb for o in bench.timings if o.model == cost.model}
        used = [_bytes(peaks.get((one.batch, one.sequence))) for one in firsts]
        rows.append(
            [
                subject.name_of(cost.model),
                size(cost.bytes),
                _load(cost),
                size(_bytes(cost.loaded_mb)),
                *map(size, used),
            ]
        )
    plotted = [_plotted(one, bench, subject) for one in bench.models]
    columns = ["On disk", "Time to load", "Memory when loaded", *titles]
    html = render(
        "footprint.html",
        plot=footprint_plot(plotted) if len(plotted) > 1 else "",
        columns=[("Model", ""), *((title, "number") for title in columns)], rows=rows,
    )  # fmt: skip
    return Section("memory", "Memory and loading", html)


def _plotted(cost: ModelCost, bench: Bench, subject: Subject) -> Footprint:
    peaks = [one.peak_mb for one in bench.timings if one.model == cost.model and one.peak_mb is not None]
    peak = _bytes(max(peaks)) if peaks else None
    return Footprint(subject.name_of(cost.model), cost.bytes, cost.load_ms, peak)


def _load(cost: ModelCost) -> str:
    return duration(None if cost.load_ms is None else cost.load_ms * 1e3)


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * 1e6
