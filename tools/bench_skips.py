"""What gates cost: a gated model against the dense one, and with half of it skipped against the static prune.

    python -m tools.bench_skips [--model BUNDLE] [--decoder BUNDLE] [--rounds 40] [--threads 1]

By default all-MiniLM-L6-v2 (downloaded) and models/llama-shakespeare, which is exported. Models take turns in
shuffled order, each with the same inputs; ratios are medians of those of single rounds. Half of the encoder
is every second layer; half of the decoder every second FFN, because the keys and values of an attention that
is skipped are still computed. Writes docs/benchmarks/skips.md.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphprune as gp
from graphprune.session import Session, open_sessions
from tools.bench_latency import export_minilm
from tools.measuring import command_line, environment, write_page

Feeds = Mapping[str, NDArray[Any]]
WARMUP = 3
# (rows, tokens, tokens in the cache) of the encoder and the decoder
ENCODER, DECODER = ((1, 32, 0), (32, 32, 0)), ((1, 1, 64), (32, 1, 64), (1, 64, 0))


@dataclass(frozen=True)
class Row:
    """One comparison: CPU and wall-clock ms of both with their ratio, and how far the outputs are apart."""

    model: str
    size: tuple[int, int, int]
    what: str
    cpu: tuple[float, float, float]
    wall: tuple[float, float, float]
    apart: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = asked.model or export_minilm(folder / "minilm")
        decoder = asked.decoder or gp.export("models/llama-shakespeare", folder / "llama")
        rows = [
            *_measured("MiniLM", encoder, _layers(encoder), ENCODER, folder, asked),
            *_measured("Llama", decoder, _ffns(decoder), DECODER, folder, asked),
        ]
    write_page("skips.md", _page(rows, asked.rounds, asked.threads))


def _layers(path: Path) -> dict[str, object]:
    blocks = [f"{i}" for i in range(1, len(_stack(path).layers), 2)]
    return {"drop_attention": ",".join(blocks), "drop_ffn": ",".join(blocks)}


def _ffns(path: Path) -> dict[str, object]:
    return {"drop_ffn": ",".join(f"{i}" for i in range(1, len(_stack(path).layers), 2))}


def _stack(path: Path) -> Any:
    return gp.inspect(gp.load(path))[0].architecture.stacks[0]


def _measured(
    name: str, path: Path, half: Mapping[str, object], sizes: Sequence[tuple[int, int, int]], folder: Path,
    asked: Any,
) -> Iterator[Row]:  # fmt: skip
    """Both comparisons at all sizes."""
    bundle, settings = gp.load(path), gp.Settings(threads=asked.threads)
    gated = gp.prune(bundle, insert_skips="all").save(folder / f"{name}-gated")
    static = gp.prune(bundle, **half).save(folder / f"{name}-static")  # type: ignore[arg-type]
    skipped = _skipped(half)
    dense, whole, pruned = (open_sessions(one, settings)[0] for one in (path, gated, static))
    some = open_sessions(gated, gp.Settings(threads=asked.threads, skip=skipped))[0]
    for size in sizes:
        for what, one, other in (("all blocks", dense, whole), ("half of them", pruned, some)):
            yield _compared(name, size, what, (one, other), asked.rounds)


def _skipped(half: Mapping[str, object]) -> tuple[str, ...]:
    kinds = {"drop_attention": "attention", "drop_ffn": "ffn"}
    stack = "encoder" if "drop_attention" in half else "decoder"
    pairs = ((layer, kinds[drop]) for drop, layers in half.items() for layer in str(layers).split(","))
    return tuple(f"{stack}.{layer}.{kind}" for layer, kind in pairs)


def _compared(
    name: str, size: tuple[int, int, int], what: str, sessions: tuple[Session, Session], rounds: int
) -> Row:
    from graphprune.inputs import make_inputs

    batch, sequence, past = size
    feeds = [make_inputs(one.runtime, batch=batch, sequence=sequence, past=past, seed=0) for one in sessions]
    feeds[1] = {key: feeds[0].get(key, value) for key, value in feeds[1].items()}
    outputs = [one.run(given) for one, given in zip(sessions, feeds, strict=True)]
    apart = max(float(np.abs(outputs[1][key] - value).max()) for key, value in outputs[0].items())
    runs = [one.prepared(given) for one, given in zip(sessions, feeds, strict=True)]
    cpu, wall = _timed(runs, rounds)
    return Row(name, size, what, cpu, wall, apart)


def _timed(
    runs: Sequence[Callable[[], object]], rounds: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Median milliseconds of both and the median ratio: CPU time, then wall-clock time."""
    spent: list[list[tuple[float, float]]] = [[], []]
    for number in range(rounds + WARMUP):
        for place in random.Random(number).sample(range(2), 2):
            start = time.process_time(), time.perf_counter()
            runs[place]()
            end = time.process_time(), time.perf_counter()
            if number >= WARMUP:
                spent[place].append(((end[0] - start[0]) * 1e3, (end[1] - start[1]) * 1e3))
    return _medians(spent, 0), _medians(spent, 1)


def _medians(spent: Sequence[Sequence[tuple[float, float]]], clock: int) -> tuple[float, float, float]:
    one, other = ([pair[clock] for pair in pairs] for pairs in spent)
    ratios = [b / a for a, b in zip(one, other, strict=True)]
    return statistics.median(one), statistics.median(other), statistics.median(ratios)


def _page(rows: Sequence[Row], rounds: int, threads: int) -> Iterator[str]:
    yield "# What gates cost"
    yield ""
    yield from (line for line in (__doc__ or "").strip().splitlines()[4:])
    yield ""
    yield f"{environment('onnxruntime', 'numpy')}; {threads} thread(s), {rounds} rounds."
    yield ""
    yield "| model | rows × tokens (+ cache) | what runs | plain, CPU ms | gated, CPU ms | CPU | wall | Δ |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        batch, tokens, past = row.size
        where = f"{batch} × {tokens}" + (f" (+ {past})" if past else "")
        yield (
            f"| {row.model} | {where} | {row.what} | {row.cpu[0]:.2f} | {row.cpu[1]:.2f} | "
            f"{row.cpu[2]:.3f} | {row.wall[2]:.3f} | {row.apart:.1g} |"
        )


if __name__ == "__main__":
    main()
