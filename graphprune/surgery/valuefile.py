"""The file of fitted values that some passes read: one .npz of arrays called `<block id>/<key>`.

===================================  ================================================================
`scale` [d], `shift` [d]             γ and β of the norm behind a block's join
`weight.<i>` [k, d], `bias` [d]      the output projection of a block's branch `i`, as `x @ weight`, and
                                     all that is added to the sum of them besides the stream
`linear` [d, d]                      what stands in a block's place: `x @ linear + constant`; as two
`linear.a` [d, r], `linear.b` [r, d] factors, `x @ a @ b + constant`
`constant` [d]
`neurons` [n], integers              those of an FFN's neurons that stay, ascending; and, if given, the
`neurons.weight` [n, d]              weight of its last linear then
===================================  ================================================================
"""

from __future__ import annotations

import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.architecture import Architecture
from graphprune.errors import RecipeError

_CHUNK = 1 << 20
# What numpy and zipfile raise on files that they cannot make sense of.
_UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, SyntaxError, MemoryError,
    ArithmeticError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class FittedValues:
    """The values in one file. Only names are held; each array is read when it is asked for."""

    path: Path
    keys: frozenset[str]

    @staticmethod
    def open(path: str | Path, sha256: str = "") -> FittedValues:
        """Read the names in a file, which has to have this SHA-256 if one is given. Raises `RecipeError`."""
        path = Path(path)
        _require_file(path)
        if sha256 and fingerprint(path) != sha256:
            raise RecipeError(
                f"{path}: these are other values than the recipe was made with: {sha256} is asked for"
            )
        try:
            with _opened(path) as file:
                names = frozenset(file.files)
        except _UNREADABLE as error:
            raise RecipeError(f"{path}: no file of fitted values (.npz): {_told(error)}") from error
        return FittedValues(path, names)

    def of(self, block: str) -> frozenset[str]:
        """The keys that the file has for a block."""
        return frozenset(key.removeprefix(f"{block}/") for key in self.keys if key.startswith(f"{block}/"))

    def require_known(self, architecture: Architecture) -> None:
        """Raise `RecipeError` where no block of the model is called as any of the file's."""
        stacks = architecture.numbering or architecture.stacks
        known = {block.id for stack in stacks for block in stack.blocks}
        found = {key.rpartition("/")[0] for key in self.keys}
        if found and known and not found & known:
            raise RecipeError(
                f"{self.path}: its values are for other blocks than the model's: for '{min(found)}'"
            )

    def read(self, block: str, key: str, shape: Sequence[int | None]) -> npt.NDArray[np.float32]:
        """One array of a block; None in `shape` stands for any size.

        Raises `RecipeError` where it is missing, of another shape, or holds what is no finite number.
        """
        where = f"{self.path}: '{block}/{key}'"
        array = self._read(block, key, shape)
        if not np.issubdtype(array.dtype, np.floating):
            raise RecipeError(f"{where} is of type {array.dtype}, and floating-point numbers are needed")
        if not np.isfinite(array).all():
            raise RecipeError(f"{where} holds {int((~np.isfinite(array)).sum())} numbers that are not finite")
        return np.asarray(array, np.float32)

    def read_numbers(self, block: str, key: str, below: int) -> npt.NDArray[np.int64]:
        """Some of the numbers from 0 on that are `below` a limit, ascending, each once; one at least.

        Raises `RecipeError` where they are missing, or something else.
        """
        where = f"{self.path}: '{block}/{key}'"
        array = self._read(block, key, [None])
        if not np.issubdtype(array.dtype, np.integer):
            raise RecipeError(f"{where} is of type {array.dtype}, and integers are needed")
        if not len(array) or array[0] < 0 or array[-1] >= below or (np.diff(array.astype(object)) <= 0).any():
            raise RecipeError(f"{where} has to hold ascending numbers from 0 to {below - 1}, one at least")
        return np.asarray(array, np.int64)

    def _read(self, block: str, key: str, shape: Sequence[int | None]) -> npt.NDArray[Any]:
        """An array of a block of this shape."""
        where, array = self._array(block, key)
        fits = len(array.shape) == len(shape) and all(
            size in {None, found} for size, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise RecipeError(f"{where} has the shape {list(array.shape)}, and [{wanted}] is needed")
        return array

    def read_text(self, block: str, key: str) -> str:
        """A word of a block, an array of no axes. Raises `RecipeError` where it is missing, or no word."""
        where, array = self._array(block, key)
        if array.shape or array.dtype.kind != "U":
            raise RecipeError(f"{where} is no text, but of type {array.dtype} and shape {list(array.shape)}")
        return str(array[()])

    def _array(self, block: str, key: str) -> tuple[str, npt.NDArray[Any]]:
        """How to call an array of a block in a message, and the array."""
        name = f"{block}/{key}"
        where = f"{self.path}: '{name}'"
        if name not in self.keys:
            raise RecipeError(f"{where} is missing")
        try:
            with _opened(self.path) as file:
                return where, np.asarray(file[name])
        except _UNREADABLE as error:
            raise RecipeError(f"{where} cannot be read: {_told(error)}") from error


def fingerprint(path: str | Path) -> str:
    """The SHA-256 of a file. Raises `RecipeError` where it cannot be read."""
    digest = hashlib.sha256()
    _require_file(Path(path))
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise RecipeError(f"{path}: the fitted values cannot be read: {_told(error)}") from error
    return digest.hexdigest()


def _require_file(path: Path) -> None:
    """Refuse what can be read for ever, or waits to be written: the path may be a stranger's."""
    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: no file of fitted values, but a folder or a device")


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays in a file, none of them read yet; numpy leaves files open that it refuses."""
    with path.open("rb") as raw:
        file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with file:
            yield file


def _told(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
