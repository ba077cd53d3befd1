"""Samples with what every exit says of them, by classifiers fitted to them or by the model's own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphprune.data.metrics import BETTER, Metric
from graphprune.errors import SelectionError
from graphprune.exits.criteria import Scores, likeness_of
from graphprune.exits.gathering import Rows, fit_translators, gather_own, gather_rows
from graphprune.exits.heads import Head, Linear, fit_head, folds_of
from graphprune.healing.moments import Affine

if TYPE_CHECKING:
    from graphprune.data.dataset import Data
    from graphprune.exits.watching import Pool, Watch

Ids = NDArray[np.int64]
Told = Callable[[str], None]
# Rows with their classes.
Truths = tuple[Rows, Ids]
BATCH = 32


@dataclass(frozen=True, eq=False)
class Samples:
    """What every exit says of samples: `truth` are the classes to be said, `rows` their rows in the data.

    `dense` are the classes that the model itself says, where it says some; `following` the next tokens, where
    samples are tokens.
    """

    scores: Scores
    truth: Ids
    rows: Ids
    dense: Ids | None = None
    following: Ids | None = None

    def only(self, places: list[int]) -> Samples:
        """Only some of the exits."""
        return replace(self, scores=self.scores.only(places))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Where each exit is right: [exits, samples]."""
        found: NDArray[np.bool_] = self.scores.answers == self.truth
        return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """Heads by the number of layers that have run, and samples: to tune by, to find thresholds by, held out.

    `tuned` and `told` are one and the same where thresholds need no samples of their own; classifiers' scores
    there are those that each fold got from heads that were fitted to the others.
    """

    heads: Mapping[int, Linear | Affine]
    tuned: Samples
    told: Samples
    held: Samples


@dataclass(frozen=True, eq=False)
class Parts:
    """The data to fit heads to, to find thresholds by (None: the same), and held out."""

    fit: Data
    told: Data | None
    held: Data


def labelled(data: Data, test: Data | None) -> tuple[Data, Data | None]:
    """The data with labels as classes; names that are labels are numbered as they sort, in both alike.

    Raises `SelectionError` where the second has a label that the first has not.
    """
    if data.labels is None:
        return data, test
    names = sorted(set(data.labels.tolist())) if data.labels.dtype.kind == "U" else []
    found = [_numbered(one, names) for one in (data, test) if one is not None]
    return found[0], found[1] if test is not None else None


def _numbered(data: Data, names: list[str]) -> Data:
    labels = data.labels
    if labels is None:
        raise SelectionError(f"{data.name} has no labels, and the data to fit to has: name their column")
    data = replace(data, metric=Metric("accuracy", BETTER["accuracy"]))
    if names:
        numbers = {name: number for number, name in enumerate(names)}
        unknown = next((name for name in labels.tolist() if str(name) not in numbers), None)
        if unknown is not None:
            raise SelectionError(f"{data.name}: no example to fit to has the label {unknown!r}")
        found = np.array([numbers[str(name)] for name in labels.tolist()], np.int64)
        return replace(data, labels=found, classes=tuple(names))
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise SelectionError(f"{data.name}: labels of classes are whole numbers from 0, or names")
    return data


def classified(
    path: str | Path, watch: Watch, parts: Parts, head: Head, pool: Pool, seed: int, on_step: Told
) -> Evidence:
    """Fit a classifier at every boundary that is watched. Raises `SelectionError` without classes."""

    def gathered(data: Data) -> Truths:
        batches = data.batches(path, BATCH)
        rows = gather_rows(watch, batches, pool, on_step)
        truth = data.labels if data.labels is not None else rows.dense
        if truth is None:
            raise SelectionError(
                f"{head} heads are fitted to classes, and {watch.name} puts none out: name labels (--label)"
            )
        return rows, truth.astype(np.int64)

    fit, held = gathered(parts.fit), gathered(parts.held)
    told = None if parts.told is None else gathered(parts.told)
    on_step("fitting heads")
    return fit_classifiers(head, fit, told, held, seed)


def fit_classifiers(head: Head, fit: Truths, told: Truths | None, held: Truths, seed: int = 0) -> Evidence:
    """Fit a classifier at every boundary of rows that were gathered, each with the classes of its rows.

    Raises `SelectionError` where labels are no numbers of classes.
    """
    rows, truth = fit
    classes = max(int(truth.max()) + 1, rows.classes)
    if classes > max(rows.classes, len(truth)):
        raise SelectionError(
            f"labels go up to {classes - 1}, and there are {len(truth)} examples to fit to: count from 0"
        )
    folds = folds_of(len(truth), seed)
    fitted = {k: fit_head(head, one, truth, classes, folds) for k, one in rows.pooled.items() if k}
    heads = {k: one.head for k, one in fitted.items()}
    tuned = _samples(np.stack([one.unseen for one in fitted.values()]), rows, truth)
    return Evidence(heads, tuned, tuned if told is None else _answered(heads, *told), _answered(heads, *held))


def _answered(heads: Mapping[int, Linear], rows: Rows, truth: Ids) -> Samples:
    return _samples(np.stack([head(rows.pooled[k]) for k, head in heads.items()]), rows, truth)


def _samples(scores: NDArray[np.float64], rows: Rows, truth: Ids) -> Samples:
    at = tuple(k for k in rows.pooled if k)
    kept = Scores(at, scores.astype(np.float32), likeness_of(list(rows.pooled.values())))
    return Samples(kept, truth, np.arange(len(truth)), rows.dense)


def by_own_head(
    path: str | Path, watch: Watch, parts: Parts, head: Head, pool: Pool, on_step: Told
) -> Evidence:
    """Ask the model's own head at every boundary that is watched, with "translator" of a fitted map."""
    translators: dict[int, Affine] = {}
    if head == "translator":
        translators = fit_translators(watch, parts.fit.batches(path, BATCH), on_step)

    def gathered(data: Data) -> Samples:
        own = gather_own(watch, data.batches(path, BATCH), translators, pool, on_step)
        if own.following is not None and data.labels is not None:
            raise SelectionError(
                f"{data.name}: labels belong to rows, and the head of {watch.name} speaks of every token: "
                "leave them out, or fit a head to them, as ridge or logistic"
            )
        truth = own.dense if data.labels is None else data.labels[own.rows]
        classes = own.scores.scores.shape[-1]
        if truth.max() >= classes:
            raise SelectionError(
                f"{data.name}: there is a label {truth.max()}, and {watch.name} knows 0 … {classes - 1}"
            )
        return Samples(own.scores, truth.astype(np.int64), own.rows, own.dense, own.following)

    tuned = gathered(parts.fit)
    told = tuned if parts.told is None else gathered(parts.told)
    return Evidence(translators, tuned, told, gathered(parts.held))
