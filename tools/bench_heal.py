"""What closed-form healing gives back: every method on the trained decoders and the digits' ViT.

    python -m tools.bench_heal --data FOLDER [--tokens 8000]

FOLDER holds tinyshakespeare.txt. At least a quarter of the layers' parameters goes: the last layers, those
that change the stream least (block influence), or the blocks that a greedy choice by healed error finds.
Blocks are chosen and fitted on text (images) that the models were trained on; figures are of the written
models on what was held out then. Writes docs/benchmarks/heal.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import graphprune as gp
from graphprune.data.dataset import Data, read_data
from graphprune.data.judging import open_judge
from graphprune.healing.building import build
from graphprune.healing.calibration import Calibration, open_calibration
from graphprune.healing.choice import SHARES, Action
from graphprune.healing.repairs import Repairs
from graphprune.play import first_feeds
from graphprune.session import Session, open_sessions
from models import corpus, digits
from tools.measuring import command_line, environment, write_page
from tools.zoo_trained import trained

SETTINGS = gp.Settings(threads=1)
SHARE = 0.25
WINDOW = corpus.WINDOW
NOTHING = Repairs(norm=False, output=False, fold=False, bias=False)


@dataclass(frozen=True)
class Method:
    """A way to heal: its name, the repairs that are tried, what stands in the place of what goes."""

    name: str
    repairs: Repairs
    instead: Action = "drop"
    last_only: bool = False


METHODS = (
    Method("nothing", NOTHING),
    Method("mean of what went, in the bias before it", replace(NOTHING, bias=True)),
    Method("magnitude patch behind each gap (LinearPatch)", NOTHING, "patch", last_only=True),
    Method("a linear in each place (NBL)", NOTHING, "linear"),
    Method("a linear folded into the weights before (ReplaceMe)", replace(NOTHING, bias=True, fold=True)),
    Method("output projections behind refitted", replace(NOTHING, bias=True, output=True)),
    Method("folded, and refitted behind: the default", Repairs()),
    Method("a linear in each place, and refitted behind", Repairs(), "linear"),
)


@dataclass(frozen=True)
class Case:
    """A model with the data to fit to and those that it is measured on."""

    name: str
    path: Path
    fit: Data
    held_out: Data
    batch: int
    percent: Callable[[float, float], str]


def cases(folder: Path, data: Path, tokens: int) -> Iterator[Case]:
    """The three trained models."""
    text = corpus.read(data)
    for name, part in (("train", text.train), ("held_out", text.held_out)):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    texts = {
        name: read_data(folder / f"{name}.txt", metric="perplexity", length=WINDOW)
        for name in ("train", "held_out")
    }
    for name in ("llama", "gpt2"):
        fit = texts["train"].take(tokens // WINDOW * 20)
        yield Case(
            name, trained(name), fit, texts["held_out"], 8, lambda got, dense: f"{got / dense - 1:+.2%}"
        )
    for name, part in zip(("train", "held_out"), digits.read(), strict=True):
        arrays = {"pixel_values": part.images.numpy(), "labels": part.labels.numpy()}
        np.savez(folder / f"digits-{name}.npz", **arrays)
    images = [
        read_data(folder / f"digits-{name}.npz", label="labels", metric="accuracy")
        for name in ("train", "held_out")
    ]
    yield Case(
        "vit",
        trained("vit"),
        images[0],
        images[1],
        120,
        lambda got, dense: f"{100 * (got - dense):+.2f} points",
    )


def sizes(opened: Calibration) -> dict[str, int]:
    """The parameters of every block."""
    return {piece.id: piece.block.parameters for piece in opened.pieces}


def gaps(opened: Calibration) -> dict[str, dict[str, Action]]:
    """The three choices of what goes."""
    influence = gp.block_influence(opened.path, gp.Source(batch=8, sequence=64)).by_layer
    layers = list(dict.fromkeys(block.rpartition(".")[0] for block in opened.blocks))
    by_influence = sorted(layers, key=lambda layer: influence[layer])
    return {
        "the last layers": _until(opened, list(reversed(layers))),
        "the layers of least influence": _until(opened, by_influence),
        "greedy by healed error": _greedy(opened),
    }


def _until(opened: Calibration, layers: list[str]) -> dict[str, Action]:
    """Whole layers in this order, until a quarter of the parameters is gone."""
    weights, chosen = sizes(opened), dict[str, Action]()
    for layer in layers:
        if sum(weights[block] for block in chosen) >= SHARE * sum(weights.values()):
            break
        chosen |= {block: "drop" for block in opened.blocks if block.rpartition(".")[0] == layer}
    return chosen


def _greedy(opened: Calibration) -> dict[str, Action]:
    """One block after another: that which costs the least healed error for each parameter."""
    weights, chosen = sizes(opened), dict[str, Action]()
    error = 0.0
    while sum(weights[block] for block in chosen) < SHARE * sum(weights.values()):
        tried = {b: opened.heal(chosen | {b: "drop"}).error for b in opened.blocks if b not in chosen}
        best = min(tried, key=lambda block: (tried[block] - error) / weights[block])
        chosen[best], error = "drop", tried[best]
    return chosen


def _by_neurons(opened: Calibration) -> dict[str, Action]:
    """Half of the neurons of one FFN after another, those first that lose the least by it alone."""
    weights = sizes(opened)
    able = [block for block, actions in opened.actions.items() if "half" in actions]
    alone = {block: opened.heal({block: "half"}).error for block in able}
    chosen: dict[str, Action] = {}
    steps: tuple[Action, ...] = ("half", "quarter")
    for action in steps:
        for block in sorted(able, key=lambda one: alone[one]):
            if _saved(weights, chosen) < SHARE * sum(weights.values()):
                chosen[block] = action
    return chosen


def _saved(weights: Mapping[str, int], choice: Mapping[str, Action]) -> float:
    """The parameters that go, biases counted as if they went along."""
    return sum(weights[block] * (1 - SHARES.get(action, 0.0)) for block, action in choice.items())


def filled(opened: Calibration, gap: Mapping[str, Action], method: Method) -> dict[str, Action]:
    """What becomes of the blocks that go, by a method."""
    order = list(opened.blocks)
    ends = {
        block
        for block in gap
        if order.index(block) + 1 == len(order) or order[order.index(block) + 1] not in gap
    }
    put = ends if method.last_only else set(gap)
    return {block: method.instead if block in put else "drop" for block in gap}


def measured(case: Case, path: Path) -> float:
    """What a model scores on the data that were held out."""
    batches = case.held_out.batches(case.path, case.batch)
    (dense,), (session,) = open_sessions(case.path, SETTINGS), open_sessions(path, SETTINGS)

    def outputs(one: Session) -> Iterator[Mapping[str, np.ndarray]]:
        return (one.run(first_feeds(one, batch.source)) for batch in batches)

    return open_judge(case.held_out, batches, outputs(dense)).score(outputs(session))


def rows(case: Case, folder: Path) -> Iterator[list[str]]:
    """A table's rows: for each method what is left with each choice of blocks."""
    opened = open_calibration(case.path, case.fit, settings=SETTINGS, batch=case.batch)
    found = gaps(opened)
    dense, bundle = measured(case, case.path), gp.load(case.path)
    total = sum(sizes(opened).values())
    yield ["", *found]
    yield ["blocks that go", *(", ".join(_short(block) for block in gap) for gap in found.values())]
    left = (1 - sum(sizes(opened)[block] for block in gap) / total for gap in found.values())
    yield ["of the layers' parameters that leaves", *(f"{share:.1%}" for share in left)]
    yield ["dense", *([f"{dense:.4f}"] * len(found))]
    for method in METHODS:
        tried = replace(opened, repairs=method.repairs, walked=type(opened.walked)())
        cells = []
        for gap in found.values():
            healing = tried.heal(filled(tried, gap, method))
            out = folder / "out"
            build(bundle, healing.choice, healing, folder).pruned.save(out, overwrite=True)
            score = measured(case, out)
            cells.append(f"{score:.4f} ({case.percent(score, dense)})")
        print(case.name, method.name, *cells, flush=True)
        yield [method.name, *cells]


def narrower(case: Case, folder: Path) -> list[str]:
    """The row in which no block goes, and FFNs lose neurons instead."""
    opened = open_calibration(case.path, case.fit, settings=SETTINGS, batch=case.batch)
    choice, dense = _by_neurons(opened), measured(case, case.path)
    healing = opened.heal(choice)
    out = folder / "out"
    build(gp.load(case.path), choice, healing, folder).pruned.save(out, overwrite=True)
    score = measured(case, out)
    left = 1 - _saved(sizes(opened), choice) / sum(sizes(opened).values())
    what = ", ".join(f"{_short(block)} {action}" for block, action in choice.items())
    cell = f"{score:.4f} ({case.percent(score, dense)}), {left:.1%} left: {what}"
    print(case.name, "neurons", cell, flush=True)
    return ["no block goes, FFNs lose neurons instead", cell, "", ""]


def _short(block: str) -> str:
    _, layer, kind = block.split(".", 2)
    return f"{layer}.{kind}"


def page(tables: Mapping[str, list[list[str]]], seconds: float) -> list[str]:
    """The page."""
    lines = [
        "# Healing in closed form",
        "",
        f"`python -m tools.bench_heal` on {environment('onnxruntime', 'numpy')},",
        f"one thread, {seconds / 60:.0f} minutes: at least a quarter of the parameters of the layers is",
        "removed, by three choices, and healed by one method at a time. Chosen and fitted on training text",
        "(images); measured on what was held out then, on the written models.",
        "",
    ]
    for name, table in tables.items():
        lines += [f"## {name}", "", "| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table[1:]] + [""]
    return lines


TITLES = {
    "llama": "llama-shakespeare: perplexity",
    "gpt2": "gpt2-shakespeare: perplexity",
    "vit": "vit-digits: accuracy",
}


def main() -> None:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with tinyshakespeare.txt")
    parser.add_argument("--tokens", type=int, default=8_000, help="tokens of training text to fit to")
    parser.add_argument("--only", choices=[*TITLES], help="one model alone; nothing is written")
    options = parser.parse_args()
    start = time.perf_counter()
    tables = {}
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Path(name), options.data, options.tokens):
            if options.only in (None, case.name):
                tables[TITLES[case.name]] = [*rows(case, Path(name)), narrower(case, Path(name))]
    if options.only is None:
        write_page("heal.md", page(tables, time.perf_counter() - start))


if __name__ == "__main__":
    main()
