"""Normalization in numpy, as the graph's own norms do it: of rows, over the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class PlainNorm:
    """A layer norm (or, with `rms`, an RMS norm) with γ `scale` and β `shift` [width]; None for no β."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64] | None
    epsilon: float
    rms: bool

    def normalized(self, x: Array) -> NDArray[np.float32]:
        """Rows without mean (unless `rms`) and with unit mean square, before γ and β: [..., width]."""
        x = np.asarray(x, np.float32)
        if not self.rms:
            x = x - x.mean(-1, keepdims=True)
        variance = np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]
        result: NDArray[np.float32] = x / np.sqrt(variance + np.float32(self.epsilon))
        return result

    def applied(self, normalized: Array) -> NDArray[np.float32]:
        """γ and β on what `normalized` gave."""
        result = normalized * self.scale.astype(np.float32)
        if self.shift is not None:
            result = result + self.shift.astype(np.float32)
        return np.asarray(result, np.float32)
