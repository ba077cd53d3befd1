"""Tokens a second of the trained decoders before and after half of their layers are dropped.

    python -m tools.bench_generate [--loads N] [--rounds N] [--tokens N] [MODEL …]

MODEL is a name of `tools.zoo_trained` or a bundle that makes text; gpt2 and llama by default.
All models are loaded N times. Every round lets each complete the same prompt, in an order drawn anew;
loading and reading the prompt do not count. Writes docs/benchmarks/generate.md.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import graphprune as gp
from graphprune.intervals import ratio_interval
from tools.measuring import command_line, environment, write_page
from tools.zoo_trained import FOLDERS, trained

NAMES = ("gpt2", "llama")
PROMPT = 32
FLOOR = 1.8


@dataclass
class Racer:
    """A model, and for every load and round the seconds and CPU seconds that a token took it."""

    name: str
    path: Path
    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    cache_bytes: int = 0

    def load(self, tokens: int) -> None:
        """Load it, on one thread, and warm it up."""
        self.model = gp.open_model(self.path, gp.Settings(threads=1))
        for times in (self.wall, self.cpu):
            times.append([])
        self.run(tokens)
        for times in (self.wall, self.cpu):
            times[-1].clear()

    def run(self, tokens: int) -> None:
        """Complete the prompt by this many tokens and keep what a token after the first took."""
        prompt = [(place * 7) % 50 + 3 for place in range(PROMPT)]
        steps = gp.generate_steps(self.model, [prompt], max_new_tokens=tokens, ignore_eos=True)
        next(steps)
        before = time.process_time()
        made = sum(1 for _ in steps)
        self.cpu[-1].append((time.process_time() - before) / made)
        result = steps.result()
        self.wall[-1].append(result.decode_s / made)
        self.cache_bytes = result.cache_bytes


def load(path: Path, name: str, scratch: Path) -> tuple[Racer, Racer]:
    """A model, and the same without every second layer."""
    pruned = gp.prune(gp.load(path), drop_layers="every:2").save(scratch / f"{name}-half")
    return Racer(name, path), Racer(name, pruned)


def layers(path: Path) -> int:
    """The layers of a bundle with one stack."""
    (survey,) = gp.inspect(gp.load(path))
    return len(survey.architecture.stacks[0].layers)


def race(racers: Sequence[Racer], loads: int, rounds: int, tokens: int) -> None:
    """Load all so many times, and let them run in turns for so many rounds each time."""
    order, shuffled = list(racers), random.Random(0)
    for _ in range(loads):
        shuffled.shuffle(order)
        for racer in order:
            racer.load(tokens)
        for _ in range(rounds):
            shuffled.shuffle(order)
            for racer in order:
                racer.run(tokens)


def row(dense: Racer, half: Racer, clock: str) -> tuple[str, float]:
    """A line of the table, and by how much the pruned model is faster."""
    times = [np.array(getattr(racer, clock)) for racer in (dense, half)]
    rates = [f"{np.median(1 / one):.0f} ± {_spread(1 / one):.0f}" for one in times]
    ratio, low, high = ratio_interval(*times)
    sizes = [racer.cache_bytes / 1e6 for racer in (dense, half)]
    kind = {"wall": "wall-clock", "cpu": "CPU"}[clock]
    return (
        f"| {dense.name} | {layers(dense.path)} → {layers(half.path)} | {kind} | {rates[0]} | {rates[1]} "
        f"| **{ratio:.2f}** | {low:.2f} to {high:.2f} | {sizes[0]:.2f} → {sizes[1]:.2f} |"
    ), ratio


def _spread(values: np.ndarray) -> float:
    """Half the range between the quartiles."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low) / 2


def report(names: Sequence[str], loads: int, rounds: int, tokens: int) -> list[str]:
    """The page, as Markdown."""
    about = environment("onnxruntime", "onnx-ir", "numpy")
    with tempfile.TemporaryDirectory(prefix="generate.") as folder:
        pairs = []
        for name in names:
            path = trained(name) if name in FOLDERS else Path(name)
            pairs.append(load(path, path.name if name not in FOLDERS else name, Path(folder)))
        race([racer for pair in pairs for racer in pair], loads, rounds, tokens)
        rows = [row(*pair, clock) for pair in pairs for clock in ("wall", "cpu")]
    slowest = min(ratio for _, ratio in rows)
    return [
        "# Generating with half of the layers",
        "",
        f"`python -m tools.bench_generate --loads {loads} --rounds {rounds} --tokens {tokens}` on {about}.",
        "The trained decoders of `models/`, as exported and with every second layer dropped, on one thread:",
        f"a prompt of {PROMPT} tokens is completed by {tokens} with `graphprune.generate_steps`, greedily.",
        f"Medians of {loads} × {rounds} rounds ± half the range between the quartiles: every model is loaded",
        f"{loads} times, and every round runs each once, in an order drawn anew. Reading the prompt does not",
        "count. Intervals are bootstrapped over loads and rounds. The cache is what the last step put out.",
        "",
        f"Wanted: {FLOOR} times the tokens a second. The least here: {slowest:.2f}.",
        "",
        "| model | layers | clock | tokens/s | with half of them | ratio | 95% interval | cache, MB |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
        *(line for line, _ in rows),
    ]


def main() -> None:
    """Prune, generate in turns, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--loads", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    write_page("generate.md", report(options.models or NAMES, options.loads, options.rounds, options.tokens))


if __name__ == "__main__":
    main()
