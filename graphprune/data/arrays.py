"""Arrays as data: a `.npz` file by the names of inputs, or a folder of `.npz` and `.npy` files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.data.texts import in_parts
from graphprune.errors import LoadError, SelectionError
from graphprune.play import Source
from graphprune.weights import sampled_sha256

if TYPE_CHECKING:
    from graphprune.data.task import Axes, Task

    Read = Mapping[str, NDArray[Any]]

_LABELS = ("labels", "label")
ONLY = ""  # the name of the array of a .npy file: the model's one input


@dataclass(frozen=True, eq=False)
class Arrays:
    """Rows of the arrays of some files, which are read when they are needed.

    `starts` are the numbers of the first examples of the files and, last, of how many there are in all;
    `shapes` those of one example, by the names of the arrays, for each file; `skip` is the array of labels,
    which is no input.
    """

    paths: tuple[Path, ...]
    starts: tuple[int, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    skip: str | None = None

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def run(self) -> int:
        """Examples are drawn one by one."""
        return 1

    def told(self, chosen: NDArray[np.int64]) -> Iterator[str]:
        """Hashes of all files."""
        return map(sampled_sha256, self.paths)

    def batches(
        self, path: str | Path, task: Task, chosen: NDArray[np.int64], size: int, length: int
    ) -> list[tuple[Callable[[], Source], NDArray[np.int64]]]:
        """Rows of the same shapes together, in the order of the files. Raises `SelectionError`."""
        files = np.searchsorted(self.starts, chosen, side="right") - 1
        for file in sorted(set(files.tolist())):
            _require_fit(self.paths[file], self.shapes[file], task.inputs, path)
        groups: dict[Any, list[int]] = {}
        for row, file in enumerate(files):
            groups.setdefault(tuple(sorted(self.shapes[file].items())), []).append(row)
        fixed = _fixed_rows(self.shapes[0], task.inputs)
        parts = [
            part
            for rows in groups.values()
            for part in in_parts(np.array(rows), fixed or size, full=fixed is not None)
        ]
        only = next(iter(task.inputs), ONLY)
        return [(partial(self._source, chosen[part], only), part) for part in parts]

    def _source(self, examples: NDArray[np.int64], only: str) -> Source:
        files = np.searchsorted(self.starts, examples, side="right") - 1
        rows: list[Read] = []
        for file, example in zip(files, examples, strict=True):
            arrays = _cached(self.paths[file], self.paths[file].stat().st_mtime_ns)
            rows.append({k: v[example - self.starts[file]] for k, v in arrays.items() if k != self.skip})
        stacked = {name or only: np.stack([row[name] for row in rows]) for name in rows[0]}
        ids = stacked.get("input_ids", next(iter(stacked.values())))
        return Source(stacked, *(ids.shape if ids.ndim == 2 else ids.shape[:1]))


def read_arrays(path: Path, label: str | int | None) -> tuple[Arrays, NDArray[Any] | None]:
    """The arrays of a `.npz` file, or of all files of a folder in the order of their names.

    An array called `label`, or `labels` where that is not said, has the labels. Raises `LoadError` where
    they cannot be read, differ in length or are not finite, `SelectionError` where there are no such labels.
    """
    paths = tuple(sorted(one for one in path.iterdir() if is_arrays(one))) if path.is_dir() else (path,)
    starts, shapes, found = [0], [], []
    skip = None if label is None else str(label)
    for one in paths:
        arrays = read_file(one)
        if label is not None and skip not in arrays:
            raise SelectionError(f"{one}: there is no array {label}: name one of {', '.join(arrays)}")
        skip = skip or next((known for known in _LABELS if known in arrays), None)
        inputs = {key: array for key, array in arrays.items() if key != skip}
        starts.append(starts[-1] + _length(one, arrays, inputs))
        shapes.append({key: array.shape[1:] for key, array in inputs.items()})
        found += [_flat(arrays[skip], one)] if skip in arrays else []
    if found and len(found) < len(paths):
        raise LoadError(f"{path}: {len(paths) - len(found)} of {len(paths)} files have no array {skip}")
    if any(set(one) != set(shapes[0]) for one in shapes):
        raise LoadError(f"{path}: the files hold different arrays: give each {', '.join(shapes[0])}")
    return Arrays(paths, tuple(starts), tuple(shapes), skip), np.concatenate(found) if found else None


def is_arrays(path: Path) -> bool:
    """Whether a file is one of arrays, by its suffix."""
    return path.suffix.lower() in (".npz", ".npy") and not path.name.startswith(".")


def read_file(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file by their names, or the one of a `.npy` file. Raises `LoadError`."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {ONLY: loaded}
            arrays = {str(name): loaded[name] for name in loaded.files}
    except Exception as error:  # numpy lets zipfile's, zlib's and its own errors out
        raise LoadError(f"{path}: not a file of arrays: {error}") from error
    if not arrays:
        raise LoadError(f"{path}: holds no arrays")
    return arrays


@lru_cache(maxsize=2)
def _cached(path: Path, _changed: int) -> dict[str, NDArray[Any]]:
    return read_file(path)


def _length(path: Path, arrays: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]]) -> int:
    """How many examples a file has. Raises `LoadError` where arrays differ in it, or are not finite."""
    if not inputs:
        raise LoadError(f"{path}: holds nothing but labels")
    flat = [key for key, array in inputs.items() if array.ndim < 1]
    if flat:
        raise LoadError(
            f"{path}: {_called(flat[0])} has no axes: the first axis of an array are the examples"
        )
    lengths = {key: len(array) if array.ndim else 1 for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{_called(key)} {length}" for key, length in lengths.items())
        raise LoadError(f"{path}: arrays must have as many examples as each other: {told}")
    for key, array in inputs.items():
        _require_finite(path, key, array)
    count = next(iter(lengths.values()))
    if not count:
        raise LoadError(f"{path} is empty: its arrays have no examples")
    return count


def _require_finite(path: Path, key: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise LoadError(f"{path}: {_called(key)} holds {array.dtype}, not numbers")
    if array.dtype.kind != "f":
        return
    for row, values in enumerate(array):
        if not np.isfinite(values).all():
            raise LoadError(
                f"{path}: {_called(key)} is not finite in row {row}: mend it or leave the row out"
            )


def _flat(labels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Labels [n] or [n, 1], finite."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biufU":
        raise LoadError(
            f"{path}: labels are {labels.dtype}{list(labels.shape)}: give one number or name a row"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise LoadError(f"{path}: the label of row {row} is not finite: mend it or leave the row out")
    return labels.astype(np.int64) if labels.dtype.kind == "b" else labels


def _called(key: str) -> str:
    return key or "the array"


def _require_fit(
    path: Path, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Axes | None], model: str | Path
) -> None:
    """Raise `SelectionError` where the model at `model` takes no such arrays."""
    if ONLY in shapes and len(inputs) != 1:
        raise SelectionError(
            f"{path}: a .npy file is for a model with one input, and {model} takes {', '.join(inputs)}: give "
            ".npz files with arrays of these names"
        )
    for key, shape in shapes.items():
        if key not in inputs and key != ONLY:
            raise SelectionError(
                f"{path}: {model} has no input {key}: it takes {', '.join(inputs)}; name an array of labels "
                "with --label"
            )
        axes = inputs[key or next(iter(inputs))]
        if axes is not None and not _fits(shape, axes[1:] if axes else (), len(axes)):
            told = ", ".join("any" if size is None else str(size) for size in axes)
            raise SelectionError(
                f"{path}: {_called(key)} has examples of shape {list(shape)}, and {model} takes [{told}]: "
                "the first axis are the examples, also where there is one"
            )


def _fits(shape: Sequence[int], axes: Sequence[int | None], rank: int) -> bool:
    return len(shape) == rank - 1 and all(
        size in (None, given) for given, size in zip(shape, axes, strict=True)
    )


def _fixed_rows(shapes: Mapping[str, Any], inputs: Mapping[str, Axes | None]) -> int | None:
    """How many rows the model takes, where it takes no other number."""
    known = [inputs.get(key or next(iter(inputs))) for key in shapes]
    return next((axes[0] for axes in known if axes and axes[0] is not None), None)
