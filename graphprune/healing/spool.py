"""Arrays of many batches: in memory as long as they are few, then in files that go away with the spool."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError

MEMORY = 64 << 20


@dataclass(eq=False)
class Spool:
    """Arrays by key: at most `memory` bytes of them in memory, those that were asked for last."""

    memory: int = field(default_factory=lambda: MEMORY)
    _here: OrderedDict[Hashable, NDArray[Any]] = field(default_factory=OrderedDict)
    _there: dict[Hashable, Path] = field(default_factory=dict)
    _shapes: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)
    _in_memory: int = 0
    _written: int = 0
    _folder: Path | None = None

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
        return np.asarray(np.load(self._there[key]))

    def shape(self, key: Hashable) -> tuple[int, ...]:
        """The shape of the array kept under a key."""
        return self._shapes[key]

    def forget(self, key: Hashable) -> None:
        """Let an array go, if it is there."""
        if key in self._here:
            self._in_memory -= self._here.pop(key).nbytes
        elif key in self._there:
            self._there.pop(key).unlink()
        self._shapes.pop(key, None)

    def _store(self, key: Hashable, array: NDArray[Any]) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="graphprune-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{self._written}.npy"
        try:
            np.save(path, array)
        except OSError as error:
            raise RunError(
                f"{self._folder}: the streams of the data cannot be kept there: {error}"
            ) from error
        self._written += 1
        self._there[key] = path
