"""Searching all-MiniLM-L6-v2 for speed: what is found on training pairs of STS-B, told on the dev pairs.

    python -m tools.bench_search --data FOLDER [--targets 1.5,2] [--jobs 2] [--keep FOLDER]

FOLDER holds stsb-en-train.csv and stsb-en-dev.csv. For every speed-up there is a search on training pairs;
what it found is scored on the dev pairs as it was written and, for comparison, with the same blocks dropped
and nothing healed, and timed against the dense model at batch 1 and 32, in turns. A last search takes the
data that come with graphprune, as when no data are named. With --keep what was found stays in a folder, and
searches whose result is there are not run again. Writes docs/benchmarks/search.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import graphprune as gp
from graphprune.data.judging import Judge, open_judge
from graphprune.healing.building import plain_recipe
from graphprune.healing.choice import Action
from graphprune.play import first_feeds
from graphprune.session import Session, open_session
from tools.bench_latency import export_minilm
from tools.measuring import command_line, environment, write_page

SETTINGS = gp.Settings(threads=1)
SIZES = tuple(gp.Source(batch=batch, sequence=32) for batch in (1, 32))
COLUMNS = {"text": (0, 1), "label": 2, "metric": "spearman"}


@dataclass(frozen=True)
class Row:
    """A search: its target, where and what it found, its minutes, the dev score with and without healing."""

    title: str
    out: Path
    choice: Mapping[str, Action]
    minutes: float
    healed: float
    plain: float


class Dev:
    """The dev pairs, and the dense model's score on them."""

    def __init__(self, model: Path, data: Path) -> None:
        self.data = gp.read_data(data / "stsb-en-dev.csv", **COLUMNS)  # type: ignore[arg-type]
        self.batches = self.data.batches(model)
        self.judge: Judge = open_judge(self.data, self.batches, self._outputs(model))

    def score(self, model: Path) -> float:
        """The rank correlation of a model."""
        return self.judge.score(self._outputs(model))

    def _outputs(self, model: Path) -> Iterator[Mapping[str, np.ndarray]]:
        session: Session = open_session(model / "model.onnx", model.name, SETTINGS)
        return (session.run(first_feeds(session, batch.source)) for batch in self.batches)


def searched(
    model: Path, out: Path, dev: Dev, data: gp.Data | None, title: str, target: str, jobs: int
) -> Row:
    """One search, if its result is not there yet, and what came of it."""
    noted = out.with_name(f"{out.name}.minutes")
    if not noted.exists():
        trials = None if data is None else out.with_name("trials.search")
        minutes = run_search(model, out, data, target, jobs, trials)
        noted.write_text(f"{minutes:.1f}", encoding="utf-8")
    said = json.loads((out / "search.json").read_text(encoding="utf-8"))
    choice: dict[str, Action] = said["best"]["choice"]
    bundle, plain = gp.load(model), out.with_name(f"{out.name}-plain")
    gp.prune(bundle, recipe=plain_recipe(bundle, choice)).save(plain, overwrite=True)
    row = Row(title, out, choice, float(noted.read_text(encoding="utf-8")), dev.score(out), dev.score(plain))
    print(f"{title}: {row.minutes} min, dev {row.healed:.4f}, unhealed {row.plain:.4f}", flush=True)
    return row


def run_search(
    model: Path, out: Path, data: gp.Data | None, target: str, jobs: int, trials: Path | None
) -> float:
    """Minutes that a search took; it goes on from the trials of those before it."""
    start = time.perf_counter()

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s {what}", flush=True)

    gp.search(
        model, out, data, targets=[target], source=SIZES, settings=SETTINGS, jobs=jobs, on_step=tell,
        storage=trials, resume=True, overwrite=True,
    )  # fmt: skip
    return (time.perf_counter() - start) / 60


def timings(model: Path, outs: list[Path]) -> dict[tuple[str, int], str]:
    """How many times as fast as the dense model, by model and batch."""
    result = gp.bench([model, *outs], SIZES, settings=SETTINGS, footprint=False)
    found = {}
    for one in result.timings:
        if one.ratio is not None:
            low, high = one.low or one.ratio, one.high or one.ratio
            found[one.model, one.batch] = f"{1 / one.ratio:.2f} ({1 / high:.2f} to {1 / low:.2f})"
    return found


def page(dense: float, rows: list[Row], faster: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """The page."""
    yield "# Searching all-MiniLM-L6-v2"
    yield ""
    yield f"`python -m tools.bench_search` on {environment('optuna', 'joblib')},"
    yield "one thread of ONNX Runtime. Blocks are chosen and healed on training pairs of STS-B; Spearman's"
    yield f"correlation (× 100) is that of the dev pairs, which no search saw: {100 * dense:.2f} of the dense"
    yield "model. Each search goes on from the trials of the one before. Speed is that of the written model"
    yield "against the dense one, in turns, at length 32: the 95% interval."
    yield ""
    yield "| target | dev | of dense | unhealed | batch 1 | batch 32 | minutes |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        name = row.out.name
        yield (
            f"| {row.title} | {100 * row.healed:.2f} | {row.healed / dense:.2%} | {100 * row.plain:.2f} "
            f"| {faster[name, 1]} | {faster[name, 32]} | {row.minutes:.1f} |"
        )
    for row in rows:
        yield ""
        yield f"**{row.title}**"
        yield ""
        for block, action in row.choice.items():
            yield f"- {block}: {action}"
    yield ""


def main() -> None:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the pairs")
    parser.add_argument("--targets", default="1.5,2", help="speed-ups, by commas")
    parser.add_argument("--pairs", type=int, default=2500, help="training pairs to choose and heal by")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for what is found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "dense" if (folder / "dense").exists() else export_minilm(folder / "dense")
        dev = Dev(model, options.data)
        train = gp.read_data(options.data / "stsb-en-train.csv", **COLUMNS, limit=options.pairs)
        rows = []
        for target in options.targets.split(","):
            out = folder / f"faster-{target}"
            rows.append(searched(model, out, dev, train, f"× {target}", f"speedup={target}", options.jobs))
        out = folder / "default"
        rows.append(searched(model, out, dev, None, "× 1.5, no data named", "speedup=1.5", options.jobs))
        faster = timings(model, [row.out for row in rows])
        write_page("search.md", page(dev.judge.dense, rows, faster))


if __name__ == "__main__":
    main()
