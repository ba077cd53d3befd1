"""What a metric asks of the outputs for each batch, and what the answers to all of them come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from graphprune.data import measures
from graphprune.data.dataset import Batch
from graphprune.data.metrics import Metric, own_function
from graphprune.errors import RunError, SelectionError
from graphprune.healing.spool import Spool

Outputs = Mapping[str, NDArray[Any]]
# Of a batch: [rows, 2] sums and counts over the positions of each row; or their vectors; or all outputs.
Part = Any
One = TypeVar("One")

# What the dense model scores where it is compared with itself.
PERFECT = {"cosine": 1.0, "kl": 0.0, "top1": 1.0}
_MASKS = ("attention_mask", "input_mask")
_IDS = ("input_ids", "decoder_input_ids")


class NotFiniteError(RunError):
    """An output holds NaN or infinity."""


@dataclass(frozen=True, eq=False)
class Side:
    """What a batch says beside the outputs: the numbers of its rows, its tokens and which are no padding."""

    rows: NDArray[np.int64]
    mask: NDArray[np.bool_] | None
    ids: NDArray[Any] | None


def side_of(batch: Batch, questions: Questions) -> Side:
    """What of a batch is needed to judge outputs for it."""
    arrays = batch.source.arrays
    mask = next((arrays[name].astype(bool) for name in _MASKS if name in arrays), None)
    ids = next((arrays[name] for name in _IDS if name in arrays), None)
    return Side(batch.rows, mask, ids if questions.metric.name == "perplexity" else None)


@dataclass(frozen=True, eq=False)
class Questions:
    """A metric, the batches that it is about, and what to compare with: labels, the dense model's outputs."""

    metric: Metric
    labels: NDArray[Any] | None
    sides: tuple[Side, ...] = ()
    dense: Spool = field(default_factory=lambda: Spool())

    def score(self, outputs: Iterable[Outputs]) -> float:
        """The score of outputs, one mapping a batch. Raises `NotFiniteError`, `RunError`."""
        pairs = paired(self.sides, outputs)
        return self.total([self.part(number, *pair) for number, pair in enumerate(pairs)])

    def remember(self, number: int, side: Side, outputs: Outputs) -> None:
        """Keep what the dense model put out for a batch. Raises as `part`."""
        flat, _ = self._positions(side, outputs)
        if self.metric.name != "cosine" and flat.shape[-1] < 2:
            raise SelectionError(
                f"{self.metric.name} compares scores of several classes, and the model puts out one number a "
                "row: use spearman or a function of your own, with labels"
            )
        self.dense.put(number, flat.argmax(axis=-1) if self.metric.name == "top1" else flat)

    def part(self, number: int, side: Side, outputs: Outputs) -> Part:
        """What the outputs for one batch come to. Raises `NotFiniteError`, `RunError`, `SelectionError`."""
        if self.metric.is_own:
            masks = {} if side.mask is None else {_MASKS[0]: side.mask.astype(np.int64)}
            return masks | {name: _finite(name, array) for name, array in outputs.items()}
        if self.metric.name == "spearman":
            name, array = self._output(side, outputs)
            return _finite(name, measures.pooled(array, side.mask)).astype(np.float32)
        values, counts = self._values(number, side, outputs)
        ends = np.cumsum(counts)
        until = np.concatenate([[0.0], np.cumsum(_finite(self.metric.name, values))])
        sums = np.diff(until[ends], prepend=0)
        return np.stack([sums, counts], axis=1)

    def _values(
        self, number: int, side: Side, outputs: Outputs
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values of all positions, row after row, and how many each row has."""
        if self.metric.name == "accuracy":
            return self._hits(side, outputs), np.ones(len(side.rows), np.int64)
        if self.metric.name == "perplexity":
            return self._losses(side, outputs)
        flat, counts = self._positions(side, outputs)
        dense = self.dense.get(number)
        if len(dense) != len(flat) or (self.metric.name != "top1" and dense.shape != flat.shape):
            raise RunError(
                f"outputs of shape {list(flat.shape)}, and the dense model's are {list(dense.shape)}"
            )
        compare = {"cosine": measures.cosine, "kl": measures.kl, "top1": measures.top1}[self.metric.name]
        return compare(dense, flat), counts

    def _hits(self, side: Side, outputs: Outputs) -> NDArray[np.float64]:
        name, scores = self._output(side, outputs)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise SelectionError(
                f"accuracy reads scores [rows, classes], and {name} has the shape {list(scores.shape)}"
            )
        assert self.labels is not None
        labels = _of_rows(self.labels, side.rows)
        beyond = labels[(labels < 0) | (labels >= scores.shape[1])]
        if len(beyond):
            raise SelectionError(
                f"the label {beyond[0]} is none of the model's {scores.shape[1]} classes, which begin "
                "at 0: name another column of labels"
            )
        return measures.top1(labels, _finite(name, scores))

    def _losses(self, side: Side, outputs: Outputs) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of every token but the first of its row."""
        name, scores = self._output(side, outputs)
        if side.ids is None or scores.ndim != 3 or scores.shape[:2] != side.ids.shape:
            told = "no input_ids are there" if side.ids is None else f"input_ids are {list(side.ids.shape)}"
            raise RunError(
                f"perplexity reads a score for each token: {name} is {list(scores.shape)}, and {told}"
            )
        mask = np.ones(side.ids.shape, bool) if side.mask is None else side.mask
        said = mask[:, 1:] & mask[:, :-1]
        flat = _finite(name, scores[:, :-1][said])
        return measures.losses(side.ids[:, 1:][said], flat), said.sum(axis=1)

    def _positions(self, side: Side, outputs: Outputs) -> tuple[NDArray[Any], NDArray[np.int64]]:
        name, array = self._output(side, outputs)
        flat, counts = measures.positions(array, side.mask)
        return _finite(name, flat), counts

    def _output(self, side: Side, outputs: Outputs) -> tuple[str, NDArray[Any]]:
        name = measures.choose_output(self.metric, outputs)
        array = outputs[name]
        if array.ndim < 1 or len(array) != len(side.rows):
            raise RunError(f"{name} has the shape {list(array.shape)} for a batch of {len(side.rows)} rows")
        return name, array

    def total(self, parts: Sequence[Part]) -> float:
        """What the parts of all batches come to, each row once. NaN where there is nothing to say."""
        if self.metric.is_own:
            return _called(self.metric.name, self._joined(parts), self.labels)
        table = _by_row(parts, [side.rows for side in self.sides])
        if self.metric.name == "spearman":
            return self._correlation(table)
        count = float(table[:, 1].sum())
        mean = float(table[:, 0].sum()) / count if count else math.nan
        return math.exp(min(mean, 700.0)) if self.metric.name == "perplexity" else mean

    def _correlation(self, vectors: NDArray[Any]) -> float:
        """Of the labels with the cosines of pairs, or with the one number of each row."""
        from scipy.stats import spearmanr

        assert self.labels is not None
        count, width = vectors.shape
        if width == 1 and count == len(self.labels):
            similar = vectors[:, 0]
        elif count == 2 * len(self.labels):
            similar = measures.cosine(vectors[0::2], vectors[1::2])
        else:
            raise SelectionError(
                f"spearman compares two rows for each of the {len(self.labels)} labels, and there are {count}"
            )
        return float(spearmanr(similar, self.labels).statistic) if np.ptp(similar) > 0 else math.nan

    def _joined(self, parts: Sequence[Part]) -> dict[str, NDArray[Any]]:
        """All rows of every output; shorter rows are filled up with zeros."""
        rows = [side.rows for side in self.sides]
        return {name: _by_row([part[name] for part in parts], rows) for name in parts[0]}


def paired(ones: Sequence[One], outputs: Iterable[Outputs]) -> Iterator[tuple[One, Outputs]]:
    """Each batch with the outputs for it. Raises `RunError` where there are not as many."""
    given = iter(outputs)
    for number in range(len(ones)):
        found = next(given, None)
        if found is None:
            raise RunError(f"outputs for {number} batches, and there are {len(ones)}")
        yield ones[number], found
    if next(given, None) is not None:
        raise RunError(f"outputs for more than the {len(ones)} batches that there are")


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotFiniteError(f"{name} holds NaN or infinity")
    return array


def _of_rows(labels: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    if len(rows) and rows.max() >= len(labels):
        raise SelectionError(f"there are {len(labels)} labels, and rows up to number {rows.max()}")
    chosen: NDArray[Any] = labels[rows]
    return chosen


def _by_row(parts: Sequence[Any], rows: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """The rows of parts [rows, …] in their own order; zeros fill up the ends of axes that differ."""
    sizes = {part.ndim for part in parts}
    if len(sizes) > 1 or 0 in sizes:
        raise RunError(f"outputs have {', '.join(map(str, sorted(sizes)))} axes: they cannot be put together")
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    table = np.zeros((1 + max(int(numbers.max()) for numbers in rows), *shape), parts[0].dtype)
    for part, numbers in zip(parts, rows, strict=True):
        places: Any = (numbers, *map(slice, part.shape[1:]))
        table[places] = part
    return table


def _called(name: str, outputs: Outputs, labels: NDArray[Any] | None) -> float:
    """What the user's function says. Raises `RunError` with the message of its error."""
    try:
        return float(own_function(name)(outputs, labels))
    except Exception as error:  # a function of the user's may raise anything
        raise RunError(f"the metric {name} failed: {type(error).__name__}: {error}") from error
