"""One linear map of the stream that gives its channels other magnitudes: LinearPatch.

Chen et al., 2025, "A Simple Linear Patch Revives Layer-Pruned Large Language Models",
https://arxiv.org/abs/2505.24680: rotate the stream so that no channel stands out, scale each channel by
the ratio of mean magnitudes behind and before what was removed, and rotate back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.healing.moments import Affine

Wide = NDArray[np.float64]


@dataclass(eq=False)
class Magnitudes:
    """Sums of the magnitudes of rotated rows, before and behind what was removed: [width] each."""

    rotation: Wide
    before: Wide
    behind: Wide

    @staticmethod
    def of(width: int) -> Magnitudes:
        """No rows yet, of streams with this many channels."""
        return Magnitudes(rotation_of(width), np.zeros(width), np.zeros(width))

    def add(self, before: NDArray[np.float32], behind: NDArray[np.float32]) -> None:
        """Count rows [n, width] in."""
        self.before += np.abs(before @ self.rotation).sum(0)
        self.behind += np.abs(behind @ self.rotation).sum(0)

    def patch(self) -> Affine:
        """What is to be added to the stream x for it to be patched: x @ (H diag(ratio) Hᵀ − 1)."""
        moves = self.before > 0
        ratio = np.where(moves, self.behind / np.where(moves, self.before, 1), 1.0)
        weight = (self.rotation * (ratio - 1)) @ self.rotation.T
        return Affine(weight, np.zeros(len(ratio)))


def rotation_of(width: int) -> Wide:
    """An orthogonal matrix [width, width] whose columns spread over all channels.

    A Hadamard matrix (Sylvester's) where the width is a power of two; else its product with a cosine
    transform of the odd part of the width.
    """
    from scipy.fft import dct
    from scipy.linalg import hadamard

    even = width & -width
    turned = hadamard(even) / np.sqrt(even)
    rest = dct(np.eye(width // even), norm="ortho", axis=0)
    result: Wide = np.kron(turned, rest)
    return result
