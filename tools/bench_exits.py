"""What exits cost: against the dense model where nobody leaves, against the static prune where all do.

    python -m tools.bench_exits [--model BUNDLE] [--rounds 40] [--threads 1]

By default all-MiniLM-L6-v2 (downloaded), with exits after 2 and 4 of its layers and random classifiers of
two classes: what they say does not matter for what they cost. Models take turns in shuffled order, each with
the same inputs; ratios are medians of those of single rounds. "Mixed" has a batch of which a third leaves at
each place; its ideal is the dense model's time by the share of layers that run. Writes
docs/benchmarks/exits.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphprune as gp
from graphprune.inputs import make_inputs
from graphprune.session import Session, open_sessions
from tools.bench_latency import export_minilm
from tools.bench_skips import _timed as timed
from tools.measuring import command_line, environment, write_page

WIDTH, LAYERS, AT, CLASSES = 384, 6, (2, 4), 2
SIZES = ((1, 32), (32, 32))
NEVER, ALWAYS = 2.0, -1.0
Times = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One comparison of a plain model with one with exits: CPU and wall-clock ms of both, and their ratio."""

    mode: str
    size: tuple[int, int]
    what: str
    cpu: Times
    wall: Times
    ideal: float = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = asked.model or export_minilm(folder / "minilm")
        rows = [*_measured(model, folder, gp.Settings(threads=asked.threads), asked.rounds)]
    write_page("exits.md", _page(rows, asked.rounds, asked.threads))


def _heads(path: Path) -> str:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{k}/threshold": np.float32(NEVER) for k in AT}
    for k in (*AT, LAYERS):
        arrays[f"{k}/weight"] = random.normal(0, 1, (WIDTH, CLASSES)).astype(np.float32)
        arrays[f"{k}/bias"] = np.zeros(CLASSES, np.float32)
    np.savez(path, **arrays)
    return str(path)


def _measured(model: Path, folder: Path, settings: gp.Settings, rounds: int) -> Iterator[Row]:
    bundle, heads = gp.load(model), _heads(folder / "heads.npz")
    plain = {LAYERS: open_sessions(model, settings)[0]}
    for k in AT:
        path = gp.prune(bundle, drop_layers=list(range(k, LAYERS))).save(folder / f"static-{k}")
        plain[k] = open_sessions(path, settings)[0]
    for mode in ("per-sample", "all"):
        options = {"at": ",".join(map(str, AT)), "heads": heads, "batch_mode": mode}
        exits = open_sessions(gp.prune(bundle, insert_exits=options).save(folder / mode), settings)[0]
        for size in SIZES:
            feeds = make_inputs(plain[LAYERS].runtime, batch=size[0], sequence=size[1], seed=0)
            for k, session in plain.items():
                thresholds = [ALWAYS if place == k else NEVER for place in AT]
                what = "nobody leaves" if k == LAYERS else f"all leave after {k}"
                yield Row(mode, size, what, *_both(session, exits, feeds, thresholds, rounds))
            if mode == "per-sample" and size[0] > 1:
                yield _mixed(plain[LAYERS], exits, size, feeds, rounds)


def _both(
    plain: Session, exits: Session, feeds: dict[str, NDArray[Any]], thresholds: Sequence[float], rounds: int
) -> tuple[Times, Times]:
    given = feeds | {"exit_thresholds": np.array(thresholds, np.float32)}
    return timed([plain.prepared(feeds), exits.prepared(given)], rounds)


def _mixed(
    dense: Session, exits: Session, size: tuple[int, int], feeds: dict[str, NDArray[Any]], rounds: int
) -> Row:
    """Thresholds between the samples, so that a third leaves at each exit."""
    first = _third(exits, feeds, lambda one: (one, NEVER), 2 / 3)
    second = _third(exits, feeds, lambda one: (first, one), 1 / 3)
    given = feeds | {"exit_thresholds": np.array((first, second), np.float32)}
    depth = exits.run(given)["exit_layer"]
    cpu, wall = timed([dense.prepared(feeds), exits.prepared(given)], rounds)
    what = f"mixed: {depth.mean():.2f} layers run"
    return Row("per-sample", size, what, cpu, wall, float(depth.mean()) / LAYERS)


def _third(exits: Session, feeds: dict[str, NDArray[Any]], thresholds: Any, share: float) -> float:
    """The threshold at which about this share of the samples gets through to the end."""

    def through(one: float) -> float:
        given = feeds | {"exit_thresholds": np.array(thresholds(one), np.float32)}
        return float((exits.run(given)["exit_layer"] == LAYERS).mean())

    tried: list[float] = np.linspace(0.5, 1, 200).tolist()
    return min(tried, key=lambda one: abs(through(one) - share))


def _page(rows: Sequence[Row], rounds: int, threads: int) -> Iterator[str]:
    yield "# What exits cost"
    yield ""
    yield from (line for line in (__doc__ or "").strip().splitlines()[4:])
    yield ""
    yield f"{environment('onnxruntime', 'numpy')}; {threads} thread(s), {rounds} rounds."
    yield ""
    yield "| batch mode | rows × tokens | what | plain, CPU ms | exits, CPU ms | CPU | wall | ideal |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row.mode} | {row.size[0]} × {row.size[1]} | {row.what} | {row.cpu[0]:.2f} | "
            f"{row.cpu[1]:.2f} | {row.cpu[2]:.3f} | {row.wall[2]:.3f} | {row.ideal:.3f} |"
        )


if __name__ == "__main__":
    main()
