"""What `bench` says of a model against itself: whether 1 is in its interval, and how wide that is.

    python -m tools.bench_self [--runs 20] [--busy N]

The models are all-MiniLM-L6-v2, exported by graphprune, and the trained Llama of `models/` with its cache.
`--busy` adds the same again beside so many processes that compute without end. Writes
docs/benchmarks/bench.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import graphprune as gp
from tools.bench_latency import export_minilm
from tools.measuring import command_line, environment, spread, write_page
from tools.zoo_trained import trained


@dataclass(frozen=True)
class Case:
    """A model at one size of input."""

    name: str
    path: Path
    source: gp.Source
    steps: int = 0


def cases(folder: Path) -> list[Case]:
    """Milliseconds, tens of them, and single tokens."""
    minilm = export_minilm(folder / "minilm")
    return [
        Case("all-MiniLM-L6-v2", minilm, gp.Source(batch=1, sequence=16)),
        Case("all-MiniLM-L6-v2", minilm, gp.Source(batch=1, sequence=128)),
        Case("Llama, 10 layers", trained("llama"), gp.Source(batch=1, sequence=32), steps=4),
    ]


def rows(case: Case, runs: int) -> list[str]:
    """A row of the table for each phase."""
    found: dict[str, list[gp.Timing]] = {}
    for _ in range(runs):
        timed = gp.bench([case.path, case.path], case.source, steps=case.steps, footprint=False)
        for one in timed.timings:
            if one.ratio is not None:
                found.setdefault(one.phase, []).append(one)
    return [_row(case, phase, timings) for phase, timings in found.items()]


def _row(case: Case, phase: str, timings: Sequence[gp.Timing]) -> str:
    bounds = [(one.low, one.high) for one in timings if one.low is not None and one.high is not None]
    held = sum(low <= 1 <= high for low, high in bounds)
    size = f"{case.source.batch} × {case.source.sequence}"
    what = case.name if phase == "run" else f"{case.name}, {phase}"
    return (
        f"| {what} | {size} | {spread(one.median for one in timings)} | {held} of {len(bounds)} "
        f"| {spread((one.ratio or 0 for one in timings), 3)} "
        f"| {spread((high - low for low, high in bounds), 3)} |"
    )


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    line = "while True: sum(range(100000))"
    others = [subprocess.Popen([sys.executable, "-c", line]) for _ in range(count)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


def section(title: str, listed: Sequence[Case], runs: int) -> list[str]:
    """One table; the machine's load is that of its beginning."""
    return [
        f"## {title}",
        "",
        f"On {environment('onnxruntime')}.",
        "",
        "| | batch × tokens | ms | 1 in the interval | ratio | width of the interval |",
        "|---|---|--:|--:|--:|--:|",
        *(row for case in listed for row in rows(case, runs)),
        "",
    ]


def report(folder: Path, runs: int, others: int) -> list[str]:
    """The page, as Markdown."""
    listed = cases(folder)
    body = section("As the machine was", listed, runs)
    if others:
        with busy(others):
            body += section(f"Beside {others} busy processes", listed, runs)
    options = f" --busy {others}" if others else ""
    return [
        "# Models timed against themselves",
        "",
        f"`python -m tools.bench_self --runs {runs}{options}`: `bench` with its default of 50 rounds in 10",
        f"loads, on one thread, {runs} times for each row, a model against itself. The true ratio is 1, so",
        "95% of the intervals should hold it. Medians over the runs, with the lowest and the highest.",
        "",
        *body[:-1],
    ]


def main() -> None:
    """Export, time, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="self.") as name:
        write_page("bench.md", report(Path(name), given.runs, given.busy))


if __name__ == "__main__":
    main()
