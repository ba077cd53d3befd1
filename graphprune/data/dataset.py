"""Data for a model: texts, arrays or images, with labels and the metric that they are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from graphprune.data.metrics import Metric, read_metric
from graphprune.errors import LoadError, SelectionError

if TYPE_CHECKING:
    from graphprune.data.task import Task
    from graphprune.data.texts import Texts
    from graphprune.play import Source

    Found = tuple["Contents", NDArray[Any] | None, tuple[str, ...]]

SAMPLE = "sample.txt"
_TABLES = (".csv", ".tsv")
_PLAIN = ("", ".txt", ".md")
_KINDS = ("text (.txt, .md)", ".csv", ".tsv", ".npz", ".npy")


class Contents(Protocol):
    """What examples are made of: texts, arrays, images."""

    def __len__(self) -> int:
        """How many examples there are."""

    @property
    def run(self) -> int:
        """How many examples in a row belong together, and are drawn together."""

    def told(self, chosen: NDArray[np.int64]) -> Iterator[str]:
        """What tells these examples from others: their texts, or hashes of their files."""

    def batches(
        self, path: str | Path, task: Task, chosen: NDArray[np.int64], size: int, length: int
    ) -> list[tuple[Callable[[], Source], NDArray[np.int64]]]:
        """Functions that make the batches of the examples `chosen`, with the numbers of their rows.

        Raises `SelectionError` where the examples do not fit the model or what it is asked.
        """


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a few rows, and their numbers in the data.

    An example with two texts that are compared has two rows: example i the rows 2i and 2i + 1. `task` says
    what is asked of the model, `labels` are those of the data as the model numbers them.
    """

    source: Source
    rows: NDArray[np.int64]
    task: Task | None = None
    labels: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Batch]):
    """Batches that are made when they are asked for."""

    makers: tuple[tuple[Callable[[], Source], NDArray[np.int64]], ...]
    task: Task
    labels: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.makers)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        """A batch, made now; or some of them."""
        if isinstance(index, slice):
            return replace(self, makers=self.makers[index])
        make, rows = self.makers[index]
        return Batch(make(), rows, self.task, self.labels)


@dataclass(frozen=True, eq=False)
class Data:
    """Examples for any model, with the metric that they are for (None: one that fits the model).

    `chosen` are the numbers of the examples in `contents`, in order; `labels` belong to these: numbers, or
    names; `classes` are these names as they are numbered, where the data says it. `length` is how many tokens
    a text, or a window of one, has at most.
    """

    name: str
    contents: Contents
    chosen: NDArray[np.int64]
    labels: NDArray[Any] | None = None
    classes: tuple[str, ...] = ()
    metric: Metric | None = None
    length: int = 128

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self.chosen)

    @property
    def fingerprint(self) -> str:
        """A hash of the examples, their labels, their length and the metric; not of where they lie."""
        labels = None if self.labels is None else self.labels.tolist()
        digest = hashlib.sha256(json.dumps([self.chosen.tolist(), labels, self.length]).encode())
        for text in (repr(self.metric), *self.contents.told(self.chosen)):
            digest.update(json.dumps(text).encode())
        return digest.hexdigest()[:16]

    def split(self, share: float, seed: int = 0) -> tuple[Data, Data]:
        """Two parts without a common example: this share of them, and the rest; each has at least one.

        Raises `SelectionError` where that cannot be.
        """
        if not 0 < share < 1 or self.examples < 2:
            raise SelectionError(
                f"{self.name}: {self.examples} examples cannot be split into {share} and the rest: give a "
                "share between 0 and 1, and two examples or more"
            )
        count = min(max(round(share * self.examples), 1), self.examples - 1)
        order = self._order(seed)
        return self._part(order[:count]), self._part(order[count:])

    def take(self, count: int, seed: int = 0) -> Data:
        """At most `count` examples, drawn without replacement. Raises `SelectionError` below one."""
        if count < 1:
            raise SelectionError(f"{self.name}: {count} examples are too few: take one or more")
        return self if count >= self.examples else self._part(self._order(seed)[:count])

    def batches(self, path: str | Path, size: int = 32) -> Sequence[Batch]:
        """The rows in batches of `size` for the bundle at `path`, of similar lengths together.

        Texts go through the bundle's tokenizer now, arrays and images are read when a batch is asked for.
        Raises `LoadError`, `RunError`, and `SelectionError` where the data does not fit the model.
        """
        from graphprune.data.labels import numbered
        from graphprune.data.task import read_task

        if size < 1:
            raise SelectionError(f"batches of {size} rows are too small: give one or more")
        task = read_task(path, self.metric)
        makers = self.contents.batches(path, task, self.chosen, size, self.length)
        return Batches(tuple(makers), task, numbered(self, task))

    def _order(self, seed: int) -> NDArray[np.int64]:
        """Places in `chosen`, shuffled; those that belong together stay so."""
        places = np.arange(self.examples)
        groups = np.split(places, np.flatnonzero(np.diff(self.chosen // self.contents.run)) + 1)
        shuffled = np.random.default_rng(seed).permutation(len(groups))
        return np.concatenate([groups[group] for group in shuffled])

    def _part(self, places: NDArray[np.int64]) -> Data:
        kept = np.sort(places)
        labels = None if self.labels is None else self.labels[kept]
        return replace(self, chosen=self.chosen[kept], labels=labels)


def read_data(
    path: str | Path | None = None,
    *,
    text: Sequence[str | int] | str | int = (),
    label: str | int | None = None,
    metric: str | None = None,
    length: int = 128,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Read data; without a path, a sample of plain English sentences.

    A text file has a text a line; a CSV or TSV file (with a header or without) has them in the columns
    `text`, by name or by number from 0: two are a pair; a `.npz` file has arrays by the names of inputs,
    their first axis the examples; a folder has `.npz` or `.npy` files, or images. `label` is the column or
    the array of labels; those of images are the names of their folders, or in a `labels.csv`. `metric` is
    one of `metrics`, `length` the most tokens of a text or the size of windows of a text, `limit` the most
    examples, drawn by `seed`. Raises `LoadError` where the data cannot be read, `SelectionError` where a
    column or a metric does not exist.
    """
    from graphprune.data.labels import require_labels

    chosen = read_metric(metric) if metric is not None else None
    if length < 2:
        raise SelectionError(f"texts of {length} tokens are too short: give a length of two or more")
    columns = (text,) if isinstance(text, (str, int)) else tuple(text)
    contents, labels, classes = _read(None if path is None else Path(path), columns, label)
    name = "the sample text" if path is None else Path(path).name
    data = Data(name, contents, np.arange(len(contents)), labels, classes, chosen, length)
    require_labels(data)
    return data if limit is None else data.take(limit, seed)


def _read(path: Path | None, text: tuple[str | int, ...], label: str | int | None) -> Found:
    """All examples at a path, their labels and the names of classes. Raises `LoadError`, `SelectionError`."""
    from graphprune.data.arrays import is_arrays, read_arrays
    from graphprune.data.images import read_images
    from graphprune.data.tables import read_table

    if path is not None and not path.exists():
        raise LoadError(f"{path} does not exist: name a file or a folder of data")
    if path is not None and path.is_file() and path.suffix.lower() in _TABLES:
        return (*read_table(path, text, label), ())
    if text:
        raise SelectionError(f"{path or SAMPLE} has no columns of texts: only .csv and .tsv files do")
    if path is not None and (is_arrays(path) or (path.is_dir() and any(map(is_arrays, path.iterdir())))):
        return (*read_arrays(path, label), ())
    if path is not None and path.is_dir():
        return read_images(path, label)
    return _plain(path, label), None, ()


def _plain(path: Path | None, label: str | int | None) -> Texts:
    """The texts of a plain file, or of the sample."""
    from graphprune.data.tables import lines_of, read_lines

    if label is not None:
        raise SelectionError(
            f"{path or SAMPLE} has no labels: only .csv and .tsv files, arrays and images do"
        )
    if path is None:
        return lines_of(sample(), SAMPLE)
    if path.suffix.lower() not in _PLAIN:
        raise LoadError(f"{path}: data comes as {', '.join(_KINDS)}, or as a folder of arrays or images")
    return read_lines(path)


def sample() -> str:
    """The text that is there without any data: plain English sentences, one a line."""
    return (Path(__file__).parent / SAMPLE).read_text(encoding="utf-8")
