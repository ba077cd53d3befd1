"""Labels: what kind they are, and what a metric asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import LoadError, SelectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from graphprune.data.dataset import Data
    from graphprune.data.task import Task

_SHOWN = 5
_FEWEST_PAIRS = 3


def read_labels(cells: Sequence[str], where: Sequence[str]) -> NDArray[Any]:
    """Labels as int64 where all are whole numbers, as float64 where all are numbers, else as names.

    `where` says where each cell stands. Raises `LoadError` where one is empty or not finite.
    """
    numbers = []
    for cell, place in zip(cells, where, strict=True):
        if not cell.strip():
            raise LoadError(f"{place}: the label is empty: fill it in or leave the row out")
        try:
            numbers.append(float(cell))
        except ValueError:
            return np.array([cell.strip() for cell in cells], np.str_)
        if not np.isfinite(numbers[-1]):
            raise LoadError(f"{place}: the label {cell.strip()} is not finite: mend it or leave the row out")
    labels = np.array(numbers)
    whole = bool(len(labels)) and np.array_equal(labels, labels.round()) and float(abs(labels).max()) < 2**53
    return labels.astype(np.int64) if whole else labels


def require_labels(data: Data) -> None:
    """Raise `SelectionError` where the data has not the labels that its metric needs."""
    if data.metric is None or not data.metric.needs_labels:
        return
    if data.labels is None:
        raise SelectionError(f"{data.name}: {data.metric.name} needs labels: name the column with --label")
    if data.metric.name == "spearman":
        require_ranks(data.name, data.labels)


def require_ranks(name: str, labels: NDArray[Any]) -> None:
    """Raise `SelectionError` where no rank correlation with labels can be had."""
    if labels.dtype.kind not in "iuf":
        raise SelectionError(
            f"{name}: spearman needs labels that are numbers, not {_listed(labels)}: name another column "
            "with --label"
        )
    if len(labels) < _FEWEST_PAIRS:
        raise SelectionError(
            f"{name}: {len(labels)} pairs are too few for a rank correlation: give at least {_FEWEST_PAIRS}"
        )
    if np.ptp(labels) == 0:
        raise SelectionError(
            f"{name}: all {len(labels)} labels are {labels[0]}: there is nothing to correlate with"
        )


def numbered(data: Data, task: Task) -> NDArray[Any] | None:
    """The labels of the data; for accuracy as the model numbers its classes. Raises `SelectionError`."""
    if data.labels is None or task.metric.name != "accuracy":
        return data.labels
    if data.labels.dtype.kind in "iu":
        return data.labels
    if data.labels.dtype.kind == "f":
        raise SelectionError(f"{data.name}: labels of classes are whole numbers, not {_listed(data.labels)}")
    return _by_name(data, task.classes or {name: number for number, name in enumerate(data.classes)})


def _by_name(data: Data, known: Mapping[str, int]) -> NDArray[np.int64]:
    labels = data.labels
    assert labels is not None
    numbers = {name.casefold(): number for name, number in known.items()} | dict(known)
    unknown = [name for name in dict.fromkeys(map(str, labels)) if _found(numbers, name) is None]
    if unknown:
        told = f"it knows {_listed(list(known))}" if known else "its config.json names no classes (label2id)"
        raise SelectionError(
            f"{data.name}: the model has no class {_listed(unknown)}: {told}: give such names or numbers"
        )
    return np.array([_found(numbers, str(name)) for name in labels], np.int64)


def _found(numbers: Mapping[str, int], name: str) -> int | None:
    return numbers.get(name, numbers.get(name.casefold()))


def _listed(found: Sequence[Any] | NDArray[Any]) -> str:
    shown = [str(one) for one in dict.fromkeys(found)]
    return ", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else "")
