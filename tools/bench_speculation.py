"""Tokens a second of the trained decoders by themselves and with drafts that skip some of their blocks.

    python -m tools.bench_speculation [--loads N] [--tokens N] [--prompts N] [--threads N …] [--text FILE]

Every model is loaded N times without drafts and with them, by blocks that `find_draft` chose by the first
part of the text; both complete every prompt, in an order drawn anew. Prompts begin at even distances in the
last tenth of the text. Loading and reading a prompt do not count. Writes docs/benchmarks/speculation.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import graphprune as gp
from graphprune.intervals import ratio_interval
from tools.measuring import command_line, environment, write_page
from tools.zoo_trained import trained

NAMES = ("llama", "gpt2")
TEXT = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tinyshakespeare.txt"
CHARACTERS = 120
CHOOSING = 8  # prompts by which blocks are chosen
WANTED = 1.3


@dataclass
class Racer:
    """A model with drafts or without, and for every load and prompt what a token took it."""

    path: Path
    settings: gp.Settings
    drafting: gp.Drafting | None
    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    drafts: list[gp.Drafts] = field(default_factory=list)

    def load(self, prompt: str, tokens: int) -> None:
        """Load it, and warm it up."""
        skip = self.drafting.skip if self.drafting else None
        self.model = gp.open_model(self.path, self.settings, draft_skip=skip)
        for times in (self.wall, self.cpu):
            times.append([])
        self.run(-1, prompt, tokens)
        for times in (self.wall, self.cpu):
            times[-1].clear()
        del self.texts[-1]
        self.drafts[-1:] = []

    def run(self, number: int, prompt: str, tokens: int) -> None:
        """Complete a prompt and keep what a token after the first took."""
        steps = gp.generate_steps(
            self.model, [prompt], max_new_tokens=tokens, ignore_eos=True, drafting=self.drafting
        )
        next(steps)
        before = time.process_time()
        made = sum(1 for _ in steps)
        self.cpu[-1].append((time.process_time() - before) / made)
        result = steps.result()
        self.wall[-1].append(result.decode_s / made)
        self.texts[number] = result.completions[0].tokens
        if result.drafts:
            self.drafts.append(result.drafts)


def race(pair: Sequence[Racer], prompts: Sequence[str], loads: int, tokens: int) -> None:
    """Load both so many times, and let them complete every prompt in turns each time."""
    order, shuffled = list(pair), random.Random(0)
    for _ in range(loads):
        shuffled.shuffle(order)
        for racer in order:
            racer.load(prompts[0], tokens)
        for number, prompt in enumerate(prompts):
            shuffled.shuffle(order)
            for racer in order:
                racer.run(number, prompt, tokens)


def row(name: str, threads: int, plain: Racer, drafted: Racer, clock: str) -> str:
    """A line of the table."""
    times = [np.array(getattr(racer, clock)) for racer in (plain, drafted)]
    rates = [f"{np.median(1 / one):.0f}" for one in times]
    ratio, low, high = ratio_interval(*times)
    interval = "too few loads" if low is None or high is None else f"{low:.2f} to {high:.2f}"
    accepted, made, runs = (
        sum(getattr(one, what) for one in drafted.drafts) for what in ("accepted", "drafted", "verifications")
    )
    same = sum(plain.texts[number] == drafted.texts[number] for number in plain.texts)
    return (
        f"| {name} | {threads} | {'CPU' if clock == 'cpu' else 'wall'} | {rates[0]} | {rates[1]} "
        f"| **{ratio:.2f}** | {interval} | {accepted / made:.0%} | {1 + accepted / runs:.2f} "
        f"| {same} of {len(plain.texts)} |"
    )


def prompts_of(text: str, count: int) -> list[str]:
    """So many beginnings at even distances in a text."""
    step = (len(text) - CHARACTERS) // count
    return [text[place * step : place * step + CHARACTERS] for place in range(count)]


def report(options: argparse.Namespace) -> list[str]:
    """The page, as Markdown."""
    text = Path(options.text).read_text(encoding="utf-8")
    held = len(text) * 9 // 10
    chosen, rows = [], []
    for name in NAMES:
        path = trained(name)
        sample = prompts_of(text[:held], CHOOSING)
        found = gp.find_draft(path, sample, gp.Settings(threads=1), max_new_tokens=options.tokens)
        how = found.drafting
        chosen.append(
            f"- {name}: without {how.skip.replace(',', ', ')}; at most {how.tokens} tokens, the last below "
            f"{how.confidence:g}; {found.speed:.2f} times the speed was expected."
        )
        for threads in options.threads:
            settings = gp.Settings(threads=threads)
            pair = Racer(path, settings, None), Racer(path, settings, how)
            race(pair, prompts_of(text[held:], options.prompts), options.loads, options.tokens)
            rows += [row(name, threads, *pair, clock) for clock in ("wall", "cpu")]
    return [
        "# Self-speculative decoding",
        "",
        f"`python -m tools.bench_speculation --loads {options.loads} --prompts {options.prompts} "
        f"--tokens {options.tokens}` on",
        f"{environment('onnxruntime', 'onnx-ir', 'numpy')}.",
        "The trained decoders of `models/` complete prompts greedily, without drafts and with drafts by",
        "themselves without some blocks, which `find_draft` chose by texts that are not among the prompts:",
        "",
        *chosen,
        "",
        f"Both are loaded {options.loads} times and complete every prompt by {options.tokens} tokens, in an",
        "order drawn anew. Medians; intervals are bootstrapped over loads and prompts. Reading the prompt",
        f"does not count. Wanted: {WANTED} times the tokens a second, and the same tokens.",
        "",
        "| model | threads | clock | tokens/s | with drafts | ratio | 95% interval | kept "
        "| tokens a verification | same texts |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
    ]


def main() -> None:
    """Choose blocks, generate in turns, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--loads", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--text", type=Path, default=TEXT)
    write_page("speculation.md", report(parser.parse_args()))


if __name__ == "__main__":
    main()
