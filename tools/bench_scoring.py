"""Scoring every single block of all-MiniLM-L6-v2 by one gated session, against pruning it each time.

    python -m tools.bench_scoring --data FOLDER [--model BUNDLE] [--sentences 256] [--batch 32]

FOLDER holds stsb-en-train.csv, whose sentences are read. Each candidate is the model without one block:
pruned, written, loaded and run, and run by the gated session, one after the other for every block, in
shuffled order. Batches are sorted by length; what is compared are means over the tokens that are no
padding. Writes docs/benchmarks/scoring.md.
"""

from __future__ import annotations

import csv
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphprune as gp
from graphprune.play import first_feeds
from graphprune.scoring import Scorer, batches_by_length, open_scorer
from graphprune.session import open_session
from tools.bench_latency import export_minilm
from tools.measuring import command_line, environment, write_page

Array = NDArray[np.float32]
SETTINGS = gp.Settings(threads=1)


class Clock:
    """Seconds of CPU and of wall-clock time, by what they went to."""

    def __init__(self) -> None:
        self.spent: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what the block takes."""
        start = np.array([time.process_time(), time.perf_counter()])
        yield
        self.spent[name] += np.array([time.process_time(), time.perf_counter()]) - start


def sentences(folder: Path, count: int) -> list[str]:
    """The first sentences of the training pairs, each once."""
    with (folder / "stsb-en-train.csv").open(encoding="utf-8", newline="") as file:
        found = dict.fromkeys(text for row in csv.reader(file) for text in row[:2])
    return list(found)[:count]


def pooled(outputs: Mapping[str, NDArray[Any]], mask: NDArray[np.int64]) -> Array:
    """The mean over the tokens of each sentence, padding aside, of length 1."""
    weights = mask[..., None].astype(np.float32)
    mean: Array = (outputs["last_hidden_state"] * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def by_pruning(model: Path, block: str, sources: Sequence[gp.Source], folder: Path, clock: Clock) -> Array:
    """Prune, write, load, run."""
    name = "drop_ffn" if block.endswith("ffn") else "drop_attention"
    with clock("pruned: prune and write"):
        path = gp.prune(gp.load(model), **{name: block}).bundle.save(folder / block)
    with clock("pruned: load"):
        session = open_session(path / "model.onnx", block, SETTINGS)
    with clock("pruned: run"):
        feeds = [first_feeds(session, source) for source in sources]
        return np.concatenate([pooled(session.run(one), one["attention_mask"]) for one in feeds])


def by_gates(scorer: Scorer, block: str | None, clock: Clock) -> Array:
    """Run what is left to run."""
    with clock("gated: run"):
        found = zip(scorer.outputs({block} if block else ()), scorer.feeds, strict=True)
        return np.concatenate([pooled(outputs, one["attention_mask"]) for outputs, one in found])


def compare(
    model: Path, texts: Sequence[str], size: int, folder: Path
) -> tuple[Clock, dict[str, tuple[float, float]]]:
    """Time both ways in turns; returns of each block the score, too, and how far the two are apart."""
    sources, _ = batches_by_length(model, texts, size)
    clock, found = Clock(), {}
    with clock("gated: gate and load"):
        scorer = open_scorer(model, sources, SETTINGS)
    dense = by_gates(scorer, None, clock)
    blocks = list(scorer.blocks)
    random.Random(0).shuffle(blocks)
    for block in blocks:
        pruned = by_pruning(model, block, sources, folder, clock)
        gated = by_gates(scorer, block, clock)
        scores = [float((one * dense).sum(1).mean()) for one in (pruned, gated)]
        found[block] = scores[1], max(float(np.abs(pruned - gated).max()), abs(scores[0] - scores[1]))
    return clock, {block: found[block] for block in scorer.blocks}


def report(model: Path, texts: Sequence[str], size: int, folder: Path) -> Iterable[str]:
    """The page, as Markdown."""
    about = environment("onnxruntime", "onnx-ir")
    clock, found = compare(model, texts, size, folder)
    totals = {way: sum(v for k, v in clock.spent.items() if k.startswith(way)) for way in ("pruned", "gated")}
    cpu, wall = totals["pruned"] / totals["gated"]
    yield from (
        "# Scoring every block of all-MiniLM-L6-v2",
        "",
        f"`python -m tools.bench_scoring` on {about}, one thread: {len(texts)} sentences of STS-B in batches",
        f"of {size}, sorted by length. Each of the {len(found)} blocks is left out once: by a model that is",
        "pruned, written, loaded and run, and by one session with gated blocks, in turns. The dense model,",
        "which scores are told against, counts for the gated session.",
        "",
        f"The gated session is {cpu:.2f} × as fast in CPU time, {wall:.2f} × in wall-clock time. Vectors of",
        f"sentences, and scores, differ by {max(gap for _, gap in found.values()):.1e} at most.",
        "",
        "| | CPU seconds | wall-clock seconds |",
        "|---|--:|--:|",
    )
    for name, (processor, real) in {**clock.spent, **{f"**{k}**": v for k, v in totals.items()}}.items():
        yield f"| {name} | {processor:.2f} | {real:.2f} |"
    yield from ("", "| without | mean cosine with dense | apart |", "|---|--:|--:|")
    for block, (score, gap) in found.items():
        yield f"| {block} | {score:.4f} | {gap:.1e} |"


def main() -> None:
    """Export unless a model is given, measure, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scoring.") as name:
        model = options.model or export_minilm(Path(name) / "dense")
        texts = sentences(options.data, options.sentences)
        write_page("scoring.md", report(model, texts, options.batch, Path(name)))


if __name__ == "__main__":
    main()
