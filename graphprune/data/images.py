"""Images as data: the files of a folder, with labels by its sub-folders or a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.data.labels import read_labels
from graphprune.data.pixels import Processor, image_library, read_processor
from graphprune.data.texts import in_parts
from graphprune.errors import LoadError
from graphprune.play import Source
from graphprune.weights import sampled_sha256

if TYPE_CHECKING:
    from graphprune.data.tables import Column, Table
    from graphprune.data.task import Task

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_LABELS = "labels.csv"


@dataclass(frozen=True, eq=False)
class Images:
    """The files of images; they are read when a batch is asked for."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def run(self) -> int:
        """Examples are drawn one by one."""
        return 1

    def told(self, chosen: NDArray[np.int64]) -> Iterator[str]:
        """Hashes of their files."""
        return (sampled_sha256(self.paths[example]) for example in chosen)

    def batches(
        self, path: str | Path, task: Task, chosen: NDArray[np.int64], size: int, length: int
    ) -> list[tuple[Callable[[], Source], NDArray[np.int64]]]:
        """Images in their order, as the model's image processor makes them. Raises as `read_processor`."""
        processor = read_processor(path)
        rows = processor.rows
        parts = in_parts(np.arange(len(chosen)), rows or size, full=rows is not None)
        return [(partial(self._source, chosen[part], processor), part) for part in parts]

    def _source(self, examples: NDArray[np.int64], processor: Processor) -> Source:
        arrays = [processor.array(self.paths[example]) for example in examples]
        return Source({processor.name: np.stack(arrays)}, len(arrays))


def read_images(folder: Path, label: Column | None) -> tuple[Images, NDArray[Any] | None, tuple[str, ...]]:
    """The images of a folder, their labels, and the names of the classes, sorted, where folders have them.

    Labels stand in `labels.csv` beside a file's name (in the column `label`, or the second one), or are the
    names of the sub-folders. Raises `LoadError` where an image cannot be read or has no label, and
    `MissingExtraError` without the extra `images`.
    """
    paths = sorted(path for path in folder.rglob("*") if _is_image(path.relative_to(folder)))
    if not paths:
        raise LoadError(f"{folder} holds neither images ({', '.join(_SUFFIXES)}) nor .npz or .npy files")
    for path in paths:
        _verify(path)
    if (folder / _LABELS).is_file():
        return Images(tuple(paths)), _tabled(folder, paths, label), ()
    folders = [path.relative_to(folder).parts[0] for path in paths if path.parent != folder]
    if not folders:
        return Images(tuple(paths)), None, ()
    if len(folders) < len(paths):
        stray = next(path for path in paths if path.parent == folder)
        raise LoadError(f"{stray} has no label: put it into a sub-folder, as the others, or write {_LABELS}")
    labels = read_labels(folders, [str(path) for path in paths])
    return Images(tuple(paths)), labels, tuple(sorted(set(folders)))


def _is_image(name: Path) -> bool:
    return name.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in name.parts)


def _verify(path: Path) -> None:
    pillow = image_library()
    try:
        with pillow.open(path) as image:
            image.verify()
    except Exception as error:  # its readers let any error out
        raise LoadError(f"{path} cannot be read as an image: {error}") from error


def _tabled(folder: Path, paths: list[Path], label: Column | None) -> NDArray[Any]:
    from graphprune.data.tables import read_cells

    table = read_cells(folder / _LABELS, label, lambda cell: _is_image(Path(cell)))
    cells = dict(zip(table.cells(0), table.cells(1 if label is None else label), strict=True))
    _require_all(table, cells, folder, paths)
    return read_labels([cells[path.relative_to(folder).as_posix()] for path in paths], list(map(str, paths)))


def _require_all(table: Table, cells: Mapping[str, str], folder: Path, paths: list[Path]) -> None:
    names = {path.relative_to(folder).as_posix() for path in paths}
    for name, place in zip(table.cells(0), table.places(), strict=True):
        if name not in names:
            raise LoadError(f"{place}: there is no image {name} in {folder}")
    missing = sorted(names - set(cells))
    if missing:
        raise LoadError(f"{folder / missing[0]} has no label in {_LABELS}: add a row for it")
