"""The rows of data that healing sees: which positions count, which are fitted to and which are held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.healing.spool import Spool
from graphprune.importance.streams import MASKS, fitting

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Lot:
    """The inputs of one batch; `held` says that it is not fitted to, but judges what was."""

    number: int
    names: tuple[str, ...]
    inputs: Spool
    held: bool

    @staticmethod
    def of(number: int, feeds: Mapping[str, Array], inputs: Spool, *, held: bool) -> Lot:
        """Put the inputs of a batch away into `inputs`."""
        for name, array in feeds.items():
            inputs.put((number, name), array)
        return Lot(number, tuple(feeds), inputs, held)

    @property
    def feeds(self) -> dict[str, Array]:
        """The inputs by their names."""
        return {name: self.inputs.get((self.number, name)) for name in self.names}

    def rows(self, stream: Array) -> NDArray[np.float32]:
        """A stream [batch, tokens, width] (or of other leading axes) as rows [n, width], without padding."""
        flat = stream.reshape(-1, stream.shape[-1])
        kept = self._kept(stream.shape[:-1])
        return np.asarray(flat if kept is None else flat[kept], np.float32)

    def _kept(self, grid: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Which positions of a stream are not padding; None where all count, or no mask fits."""
        mask = next((self.inputs.get((self.number, name)) for name in MASKS if name in self.names), None)
        if mask is None or mask.ndim != 2 or mask.all():
            return None
        laid = fitting(mask.astype(bool), grid)
        return None if laid is None else laid.reshape(-1)
