"""How long the models take, at several sizes of input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.report.numbers import NONE, duration, short
from graphprune.report.plots import Latency, latency_plot
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.subject import Subject
    from graphprune.timing import Timing


def latency(subject: Subject) -> Section | None:
    """The plot and its table; None where nothing was timed."""
    bench = subject.bench
    if bench is None or not bench.timings:
        return None
    columns = [("Model", ""), ("Size", ""), ("Median", "number")]
    if subject.dense is not None:
        columns += [("Ratio", "number"), ("95% interval", "number")]
    if any(one.tokens_per_s for one in bench.timings):
        columns.append(("Tokens/s", "number"))
    rows = [_row(one, subject) for one in bench.timings]
    html = render(
        "latency.html",
        rounds=bench.timings[0].rounds, loads=bench.loads, compared=subject.dense is not None,
        phases=any(one.phase != "run" for one in bench.timings),
        plot=latency_plot([_plotted(one, subject) for one in bench.timings]),
        columns=columns, rows=[[row[title] for title, _ in columns] for row in rows],
    )  # fmt: skip
    return Section("latency", "Latency", html)


def cell(one: Timing, subject: Subject) -> str:
    """The size of the inputs, and what was done with them if that is not all one call."""
    sizes = {(other.batch, other.sequence) for other in subject.bench.timings} if subject.bench else set()
    lengths = len({length for _, length in sizes}) > 1
    size = (
        f"{one.batch}\u00a0×\u00a0{one.sequence}"
        if lengths or "length" in subject.inputs
        else f"batch\u00a0{one.batch}"
    )
    return size if one.phase == "run" else f"{size}, {one.phase}"


def _plotted(one: Timing, subject: Subject) -> Latency:
    return Latency(
        subject.name_of(one.model), cell(one, subject), one.median, one.ratio, one.low, one.high
    )  # fmt: skip


def _row(one: Timing, subject: Subject) -> dict[str, str]:
    known = one.low is not None and one.high is not None
    return {
        "Model": subject.name_of(one.model),
        "Size": cell(one, subject),
        "Median": duration(one.median * 1e3),
        "Ratio": NONE if one.ratio is None else f"{one.ratio:.3f}",
        "95% interval": f"{one.low:.3f} to {one.high:.3f}" if known else NONE,
        "Tokens/s": short(one.tokens_per_s),
    }
