"""What criteria, heads and rules for early exits come to on samples that nothing was fitted to.

    python -m tools.bench_exit_rules --minilm FOLDER --data FOLDER [--splits 10]

MINILM is all-MiniLM-L6-v2 as an ONNX folder; DATA holds sst2-train.tsv, sst2-dev.tsv and tinyshakespeare.txt.
The digits come with scikit-learn. Writes docs/benchmarks/exit_rules.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.data.dataset import Data, read_data
from graphprune.exits.asked import fit_exits
from graphprune.exits.choosing import Wish, choose
from graphprune.exits.criteria import CRITERIA
from graphprune.exits.found import Held, Rule
from graphprune.exits.gathering import gather_rows
from graphprune.exits.heads import Head
from graphprune.exits.rules import Point, candidates, within_one_error
from graphprune.exits.samples import Evidence, Parts, Truths, by_own_head, fit_classifiers
from graphprune.exits.watching import open_watch
from models import corpus, digits
from tools.measuring import command_line, environment, write_page
from tools.zoo_trained import trained

ONE = gp.Settings(threads=1)
AT = (2, 4)
RULE = "one standard error below the best threshold (the default)"


def rows(path: Path, data: Data) -> Truths:
    """The pooled streams of all layers with the labels."""
    assert data.labels is not None
    found = gather_rows(open_watch(path, settings=ONE), data.batches(path, 32), "mean", lambda step: None)
    return found, data.labels.astype(np.int64)


def part(given: Truths, chosen: np.ndarray) -> Truths:
    """Some of the rows."""
    return given[0].part(chosen), given[1][chosen]


def halved(given: Truths, seed: int = 0) -> tuple[Truths, Truths]:
    """Seven tenths to fit heads to, the rest to show a risk by."""
    order = np.random.default_rng(seed).permutation(len(given[1]))
    count = round(0.7 * len(order))
    return part(given, order[:count]), part(given, order[count:])


def cells(rule: Rule) -> str:
    """Depth, share right, and what is gained, each with its standard error."""
    point = rule.held.point
    return (
        f"{'+'.join(map(str, rule.at))} | {point.depth:.2f} ± {point.depth_error:.2f} | "
        f"{point.right:.2%} ± {point.right_error:.2%} | {point.gained:+.2%} ± {point.gained_error:.2%}"
    )


def single(evidence: Evidence) -> Iterator[str]:
    """How good every layer is alone: by folds on what was fitted to, and on what was held out."""
    for e, k in enumerate(evidence.held.scores.at):
        yield f"| {k} | {evidence.tuned.right[e].mean():.2%} | {evidence.held.right[e].mean():.2%} |"


def sst2(minilm: Path, data: Path, splits: int) -> Iterator[str]:
    """The tables of SST-2."""
    train, dev = (
        rows(minilm, read_data(data / f"sst2-{one}.tsv", text=0, label=1)) for one in ("train", "dev")
    )
    heads: tuple[Head, ...] = ("ridge", "logistic")
    evidence = {head: fit_classifiers(head, train, None, dev) for head in heads}
    yield from (
        "## SST-2, features of MiniLM: two classes", "",
        f"Fitted to {len(train[1]):,} sentences, judged on the {len(dev[1])} of dev.", "",
        "Each layer alone, with a head of its own:", "",
    )  # fmt: skip
    for head, one in evidence.items():
        yield from (f"| layer, {head} | five folds of train | dev |", "|--:|--:|--:|", *single(one), "")
    yield from (
        "Exits after layers 2 and 4. The best layer is that by five folds; hindsight is the best on dev.", "",
        "| head | criterion | exits | depth of 6 | accuracy | against the best layer | against hindsight |",
        "|---|---|---|--:|--:|--:|--:|",
    )  # fmt: skip
    for head, one in evidence.items():
        for criterion in CRITERIA:
            rule = choose(one, Wish(AT, criterion=criterion), head, "accuracy", 6)
            best = one.held.right.mean(1).max()
            yield f"| {head} | {criterion} | {cells(rule)} | {rule.held.point.right - best:+.2%} |"
    yield from (
        "",
        "Rules, by confidence of ridge heads:",
        "",
        "| rule | exits | depth of 6 | accuracy | against the best layer |",
    )
    yield "|---|---|--:|--:|--:|"
    shown = fit_classifiers("ridge", *halved(train), dev)
    for name, wish in WISHES.items():
        rule = choose(shown if wish.risk else evidence["ridge"], wish, "ridge", "accuracy", 6)
        yield f"| {name} | {cells(rule)} |"
    yield from again(train, dev, splits)


WISHES = {
    RULE: Wish(AT),
    "the same, every layer an exit": Wish(),
    "the same, thresholds × 0.95 from exit to exit": Wish(AT, decay=0.95),
    "Learn then Test: lost with at most 2%, at 95% confidence": Wish(AT, risk=0.02),
    "Learn then Test: at most 5%": Wish(AT, risk=0.05),
    "an average depth of 2.8": Wish(AT, depth=2.8),
}


def again(train: Truths, dev: Truths, splits: int) -> Iterator[str]:
    """Rules on random splits of both parts: what they lose on average is no luck of one dev set."""
    pooled = {k: np.concatenate([one, dev[0].pooled[k]]) for k, one in train[0].pooled.items()}
    whole = (replace(train[0], pooled=pooled), np.concatenate([train[1], dev[1]]))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(whole[1]))
        held, fit = part(whole, order[: len(order) // 5]), part(whole, order[len(order) // 5 :])
        evidence = fit_classifiers("ridge", fit, None, held, seed)
        rule = choose(evidence, Wish(AT), "ridge", "accuracy", 6)
        best = evidence.held.right.mean(1).max()
        for name, point in alternatives(evidence, rule).items():
            found.setdefault(name, []).append((point.depth, point.gained, point.right - best))
    yield from (
        "", f"Ridge heads, confidence, exits after 2 and 4, {splits} random fifths of train and dev together",
        "that nothing was fitted to (means, ± standard errors over the splits, whose samples overlap):", "",
        "| rule | depth of 6 | against the best layer | against hindsight |", "|---|--:|--:|--:|",
    )  # fmt: skip
    for name, each in found.items():
        (depth, gained, over), errors = np.mean(each, 0), np.std(each, 0, ddof=1) / np.sqrt(len(each))
        yield (
            f"| {name} | {depth:.2f} ± {errors[0]:.2f} | {gained:+.2%} ± {errors[1]:.2%} | "
            f"{over:+.2%} ± {errors[2]:.2%} |"
        )


def alternatives(evidence: Evidence, rule: Rule) -> dict[str, Point]:
    """What other rules than the one that is there come to on the samples held out."""
    from graphprune.exits.rules import Trial

    exits = [evidence.tuned.scores.at.index(k) for k in rule.at]
    best = evidence.tuned.scores.at.index(rule.held.best[0])
    told, held = (
        Trial(kept.scores.at, rule.tuned.sure(kept.scores), kept.right, whole.right[best])
        for kept, whole in ((one.only(exits), one) for one in (evidence.tuned, evidence.held))
    )
    curve = told.curve(candidates("confidence", len(exits)))
    few = np.random.default_rng(0).permutation(len(evidence.tuned.truth))[: len(evidence.tuned.truth) // 5]
    fifth = Trial(told.at, told.sure[:, few], told.right[:, few], told.reference[few])
    chosen = {
        RULE: within_one_error(curve),
        "nothing lost on average against the best layer": _least(
            one for one in curve if one.gained >= 0 or one.threshold > 1
        ),
        "no more than one standard error lost against the best layer": _least(
            one for one in curve if one.gained >= -one.gained_error or one.threshold > 1
        ),
        "nothing lost on average on one fifth of the samples": _least(
            one for one in fifth.curve([p.threshold for p in curve]) if one.gained >= 0 or one.threshold > 1
        ),
        "never: the end alone": curve[0],
    }
    return {name: held.point(point.threshold) for name, point in chosen.items()}


def _least(points: Iterator[Point]) -> Point:
    return min(points, key=lambda one: one.depth)


def ten_classes(folder: Path) -> Iterator[str]:
    """The table of the digits."""
    parts = []
    for name, one in zip(("train", "held_out"), digits.read(), strict=True):
        np.savez(folder / f"{name}.npz", pixel_values=one.images.numpy(), labels=one.labels.numpy())
        parts.append(read_data(folder / f"{name}.npz", label="labels"))
    yield from (
        "", "## Digits, ViT: ten classes", "",
        f"Fitted to {parts[0].examples:,} images, on which the model was trained, so that it is surer there",
        f"than it should be; judged on {parts[1].examples} others.", "",
        "| head | criterion | exits | depth of 6 | accuracy | against the best layer | agreement |",
        "|---|---|---|--:|--:|--:|--:|",
    )  # fmt: skip
    for head in ("ridge", "logistic", "own", "translator"):
        for criterion in CRITERIA if head == "translator" else ("confidence", "rule"):
            rule = _fit(trained("vit"), parts, head=head, criterion=criterion)
            agreed = rule.held.agreement
            assert agreed is not None
            yield f"| {head} | {criterion} | {cells(rule)} | {agreed.value:.2%} ± {agreed.error:.2%} |"


def decoder(folder: Path, data: Path) -> Iterator[str]:
    """The tables of the Llama."""
    text = corpus.read(data)
    for name, one in (("train", text.train), ("held_out", text.held_out)):
        (folder / f"{name}.txt").write_text(one, encoding="utf-8")
    fit, told = read_data(folder / "train.txt", length=corpus.WINDOW, limit=2400).split(0.5)
    parts = Parts(fit, told, read_data(folder / "held_out.txt", length=corpus.WINDOW))
    yield from ("", "## Llama trained with LayerSkip: the next of 512 tokens, every token by itself", "")
    watch = open_watch(trained("llama"), DEEP, ONE)
    for head, said in HEADS.items():
        evidence = by_own_head(trained("llama"), watch, parts, head, "last", lambda step: None)  # type: ignore[arg-type]
        rule = choose(evidence, Wish(DEEP), head, "agreement", watch.layers)  # type: ignore[arg-type]
        yield from (
            f"{said}, exits after 2, 4, 6 and 8, by confidence; {rule.held.samples:,} tokens held out:", "",
            "| threshold | depth of 10 | agrees with all layers | perplexity |", "|--:|--:|--:|--:|",
        )  # fmt: skip
        for point, perplexity in _some(rule.held):
            yield f"| {point.threshold:.4g} | {_agreed(point)} | {perplexity:.2f} |"
        yield from (
            "",
            "| asked for | threshold | depth of 10 | agrees with all layers |",
            "|---|--:|--:|--:|",
        )
        for name, wish in ASKED.items():
            point = choose(evidence, wish, head, "agreement", watch.layers).held.point  # type: ignore[arg-type]
            yield f"| {name} | {point.threshold:.4g} | {_agreed(point)} |"
        yield ""


DEEP = (2, 4, 6, 8)
HEADS = {"own": "The model's own norm and head", "translator": "A map to the last stream before them"}
ASKED = {
    "risk 1%": Wish(DEEP, risk=0.01),
    "risk 5%": Wish(DEEP, risk=0.05),
    "a depth of 6": Wish(DEEP, depth=6.0),
}


def _agreed(point: Point) -> str:
    return f"{point.depth:.2f} ± {point.depth_error:.2f} | {point.right:.2%} ± {point.right_error:.2%}"


def _some(held: Held) -> list[tuple[Point, float]]:
    wanted = (2.0, 0.999, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
    pairs = list(zip(held.curve, held.perplexities, strict=True))
    return [min(pairs, key=lambda pair: abs(pair[0].threshold - threshold)) for threshold in wanted]


def _fit(path: Path, parts: Sequence[Data], **options: Any) -> Rule:
    return fit_exits(path, parts[0], test=parts[1], settings=ONE, **options).rule


def main() -> None:
    """Measure and write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args()
    lines = [
        "# Early exits: criteria, heads and rules", "",
        f"`python -m tools.bench_exit_rules` on {environment('onnxruntime', 'numpy', 'scipy')}.",
        "Depth is layers that run on average. Heads and thresholds come from what is fitted to alone.",
        "What is gained against the best layer is counted sample by sample; ± are standard errors.", "",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        lines += sst2(given.minilm, given.data, given.splits)
        lines += ten_classes(Path(folder))
        lines += decoder(Path(folder), given.data)
    write_page("exit_rules.md", lines)


if __name__ == "__main__":
    main()
