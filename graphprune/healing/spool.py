"""Arrays of many batches: in memory as long as they are few, then in a file that nobody else sees.

The file has no name where the system allows that, so it is gone with its process, however that ends.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError

MEMORY = 64 << 20


@dataclass(frozen=True)
class _Stored:
    """Where in the file an array lies, and what it is."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(eq=False)
class Spool:
    """Arrays by key: at most `memory` bytes of them in memory, those that were asked for last."""

    memory: int = field(default_factory=lambda: MEMORY)
    _here: OrderedDict[Hashable, NDArray[Any]] = field(default_factory=OrderedDict)
    _there: dict[Hashable, _Stored] = field(default_factory=dict)
    _shapes: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)
    _in_memory: int = 0
    _file: IO[bytes] | None = None
    _end: int = 0
    # Places in the file that are free again, by their size: arrays of a batch have few different ones.
    _free: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __contains__(self, key: Hashable) -> bool:
        return key in self._here or key in self._there

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keep an array. Raises `RunError` where the disk is full."""
        self.forget(key)
        self._here[key] = array
        self._shapes[key] = array.shape
        self._in_memory += array.nbytes
        while self._in_memory > self.memory and self._here:
            old, moved = self._here.popitem(last=False)
            self._in_memory -= moved.nbytes
            self._store(old, moved)

    def get(self, key: Hashable) -> NDArray[Any]:
        """The array kept under a key. Raises `KeyError` where there is none."""
        if key in self._here:
            self._here.move_to_end(key)
            return self._here[key]
        stored = self._there[key]
        assert self._file is not None
        array = np.empty(stored.shape, stored.dtype)
        self._file.seek(stored.start)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return array

    def shape(self, key: Hashable) -> tuple[int, ...]:
        """The shape of the array kept under a key."""
        return self._shapes[key]

    def forget(self, key: Hashable) -> None:
        """Let an array go, if it is there."""
        if key in self._here:
            self._in_memory -= self._here.pop(key).nbytes
        elif key in self._there:
            stored = self._there.pop(key)
            self._free[stored.nbytes].append(stored.start)
        self._shapes.pop(key, None)

    def _store(self, key: Hashable, array: NDArray[Any]) -> None:
        free = self._free[array.nbytes]
        start = free.pop() if free else self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="graphprune-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.seek(start)
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{tempfile.gettempdir()}: the streams of the data cannot be kept there: "
                f"{error.strerror or error}"
            ) from error
        self._end = max(self._end, start + array.nbytes)
        self._there[key] = _Stored(start, array.shape, array.dtype)
