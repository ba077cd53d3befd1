"""Fit exits to a model: from data to thresholds, and to the model with its exits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphprune.errors import SelectionError
from graphprune.exits.choosing import Wish, choose
from graphprune.exits.criteria import Criterion
from graphprune.exits.found import Example, Goal, Rule
from graphprune.exits.heads import Head
from graphprune.exits.rules import left
from graphprune.exits.samples import Evidence, Parts, by_own_head, classified, labelled
from graphprune.exits.watching import Pool, Watch, boundaries, open_watch

if TYPE_CHECKING:
    from graphprune.data.dataset import Data
    from graphprune.settings import Settings

Told = Callable[[str], None]
BatchMode = Literal["per-sample", "all"]
VALUES, REPORT = "exits.npz", "exits.json"
# Of the data: what is not held out, and what of this heads are fitted to where thresholds need their own.
_KEPT, _FITTED, _OWN = 0.8, 0.7, 0.5
_EXAMPLES = 3  # of each exit


@dataclass(frozen=True, eq=False)
class Exits:
    """Exits fitted to the model at `path`, not written yet: the rule, and how batches leave."""

    path: Path
    rule: Rule
    data: str
    batch_mode: BatchMode

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write and check the model with its exits, what was fitted beside it, all or nothing.

        Raises `EditError` where exits cannot be put in, `SaveError`, `CheckError`.
        """
        from graphprune.bundle import fingerprint, load
        from graphprune.exits.exchange import to_json
        from graphprune.healing.building import Built, save_values, to_text
        from graphprune.pipeline import prune

        bundle = load(self.path)
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            values = Path(folder) / VALUES
            save_values(values, self.rule.values())
            pruned = prune(bundle, insert_exits=self.options(values))
            told = fingerprint(bundle.files[0])
            report = to_text(to_json(self) | {"source_sha256": told["source_sha256"]})
            return Built(pruned, values, VALUES).write(Path(out), overwrite=overwrite, texts={REPORT: report})

    def options(self, values: Path) -> Mapping[str, Any]:
        """The options of the pass `insert_exits`, with what was fitted in the file `values`."""
        return {
            "at": self.rule.inner,
            "heads": str(values),
            "batch_mode": self.batch_mode,
            "criterion": self.rule.criterion,
        }


def fit_exits(
    model: str | Path,
    data: Data | None = None,
    *,
    test: Data | None = None,
    at: Iterable[int] = (),
    head: Head | None = None,
    criterion: Criterion = "confidence",
    risk: float = 0.0,
    depth: float | None = None,
    decay: float = 1.0,
    pool: Pool = "mean",
    batch_mode: BatchMode = "per-sample",
    seed: int = 0,
    settings: Settings | None = None,
    on_step: Told = lambda step: None,
) -> Exits:
    """Fit heads and thresholds after `at` layers (none: every layer) to `data`, by default a sample text.

    `head` is a classifier of the pooled stream ("ridge", "logistic"), the model's own ("own") or a map to
    its last stream before that ("translator"); by default the model's own, and where there are labels the
    map, or "ridge" for a model without a head. With labels the rule is held to the best single layer, else to
    what the dense model says. `risk`, `depth` and `decay` are as in `Wish`; `pool` makes one vector of a row.
    `test` judges; without it a fifth of `data` does, which nothing is fitted to. Raises `SelectionError`,
    `RunError`, `LoadError`.
    """
    from graphprune.data.dataset import read_data

    wish = Wish(tuple(at), head, criterion, risk, depth, decay, pool)
    if batch_mode not in ("per-sample", "all"):
        raise SelectionError(f"there is no batch mode {batch_mode!r}: take per-sample or all")
    given, test = labelled(data or read_data(), test)
    on_step("loading the model")
    watch, kind = _watch(model, wish, settings, labels=given.labels is not None)
    parts = _parts(given, test, wish, kind, seed)
    evidence = _evidence(model, watch, parts, wish, kind, seed, on_step)
    tokens = evidence.told.following is not None
    goal: Goal = "agreement" if tokens or given.labels is None else "accuracy"
    rule = choose(evidence, wish, kind, goal, watch.layers)
    return Exits(Path(model), _with_examples(rule, evidence, parts.held), given.name, batch_mode)


def _watch(model: str | Path, wish: Wish, settings: Settings | None, *, labels: bool) -> tuple[Watch, Head]:
    """The model with what has to be looked at: for classifiers every layer, since the best one counts."""
    watch = open_watch(model, wish.at if wish.head in ("own", "translator") else (), settings)
    head: Head = wish.head or (("translator" if watch.tail else "ridge") if labels else "own")
    if head in ("own", "translator") and wish.at and not wish.head:
        watch = open_watch(model, wish.at, settings)
    boundaries(wish.at, watch.layers)
    return watch, head


def _parts(data: Data, test: Data | None, wish: Wish, head: Head, seed: int) -> Parts:
    train, held = data.split(_KEPT, seed) if test is None else (data, test)
    if not wish.risk and head != "translator":
        return Parts(train, None, held)
    fit, told = train.split(_OWN if head in ("own", "translator") else _FITTED, seed + 1)
    return Parts(fit, told, held)


def _evidence(
    model: str | Path,
    watch: Watch,
    parts: Parts,
    wish: Wish,
    head: Head,
    seed: int,
    on_step: Callable[[str], None],
) -> Evidence:
    if head in ("own", "translator"):
        return by_own_head(model, watch, parts, head, wish.pool, on_step)
    return classified(model, watch, parts, head, wish.pool, seed, on_step)


def _with_examples(rule: Rule, evidence: Evidence, held: Data) -> Rule:
    """The rule with a few of the texts that left at each exit, where samples are texts."""
    from graphprune.data.texts import Texts

    if not isinstance(held.contents, Texts) or evidence.held.following is not None:
        return rule
    samples = evidence.held.only([evidence.held.scores.at.index(k) for k in rule.at])
    leaves = left(rule.tuned.sure(samples.scores), rule.thresholds[: len(rule.at) - 1])
    found = []
    for place, k in enumerate(rule.at):
        for sample in np.flatnonzero(leaves == place)[:_EXAMPLES]:
            text = " / ".join(held.contents.told(held.chosen[samples.rows[sample : sample + 1]]))
            answer = int(samples.scores.answers[place, sample])
            named = held.classes[answer] if answer < len(held.classes) else str(answer)
            found.append(Example(k, text, named, bool(samples.right[place, sample])))
    return replace(rule, held=replace(rule.held, examples=tuple(found)))
