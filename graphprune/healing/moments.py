"""What least squares needs of data, gathered batch after batch: memory does not grow with the data.

Sums are kept in float64, of values less the mean of the first batch: streams of language models have
channels whose mean is a thousand times their spread, and the square of such a mean swallows all else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """A map x → x @ `weight` + `bias`: [inputs, outputs] and [outputs]."""

    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    def __call__(self, x: Array) -> Array:
        """The map of [..., inputs], in float32."""
        rows: Array = x.reshape(-1, x.shape[-1]) @ self.narrow.weight + self.narrow.bias
        return rows.reshape(*x.shape[:-1], -1)

    @cached_property
    def narrow(self) -> Affine:
        """The same in float32."""
        return Affine(self.weight.astype(np.float32), self.bias.astype(np.float32))


@dataclass(eq=False)
class Moments:
    """Of pairs of rows x [inputs] and y [outputs]: how many, their sums, and the sums of their products.

    `gram` is Σ xxᵀ, `cross` Σ xyᵀ, `square` Σ y² by output, all less `origin`s (those of the first batch).
    """

    count: int = 0
    origin_x: Wide = field(default_factory=lambda: np.zeros(0))
    origin_y: Wide = field(default_factory=lambda: np.zeros(0))
    sum_x: Wide = field(default_factory=lambda: np.zeros(0))
    sum_y: Wide = field(default_factory=lambda: np.zeros(0))
    gram: Wide = field(default_factory=lambda: np.zeros((0, 0)))
    cross: Wide = field(default_factory=lambda: np.zeros((0, 0)))
    square: Wide = field(default_factory=lambda: np.zeros(0))

    def add(self, x: Array, y: Array) -> None:
        """Count rows [n, inputs] and [n, outputs] in. Raises `RunError` where one is not finite."""
        if not len(x):
            return
        _require_finite(x, y)
        if not self.count:
            self._begin(x, y)
        x, y = x - self.origin_x.astype(np.float32), y - self.origin_y.astype(np.float32)
        self.count += len(x)
        self.sum_x += x.sum(0, dtype=np.float64)
        self.sum_y += y.sum(0, dtype=np.float64)
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.square += np.einsum("ij,ij->j", y, y, dtype=np.float64)

    def _begin(self, x: Array, y: Array) -> None:
        inputs, outputs = x.shape[1], y.shape[1]
        # Rounded to float32, in which they are taken off.
        self.origin_x = x.mean(0, dtype=np.float64).astype(np.float32).astype(np.float64)
        self.origin_y = y.mean(0, dtype=np.float64).astype(np.float32).astype(np.float64)
        self.sum_x, self.sum_y, self.square = np.zeros(inputs), np.zeros(outputs), np.zeros(outputs)
        self.gram, self.cross = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))

    @property
    def mean_y(self) -> Wide:
        """The mean of y [outputs]."""
        return self.origin_y + self.sum_y / max(self.count, 1)

    def covariances(self) -> tuple[Wide, Wide]:
        """Σ (x − x̄)(x − x̄)ᵀ and Σ (x − x̄)(y − ȳ)ᵀ."""
        share = 1 / max(self.count, 1)
        return (
            self.gram - share * np.outer(self.sum_x, self.sum_x),
            self.cross - share * np.outer(self.sum_x, self.sum_y),
        )

    def through_mean(self, weight: Wide) -> Affine:
        """The map with `weight` [inputs, outputs] and the bias by which it maps x̄ to ȳ."""
        mean_x = self.origin_x + self.sum_x / max(self.count, 1)
        return Affine(weight, self.mean_y - mean_x @ weight)

    def error(self, fitted: Affine) -> float:
        """Σ ‖y − fitted(x)‖², without another look at the data."""
        # y − ŷ = y' − x' W + e, with e what the origins are off by.
        weight, off = fitted.weight, self.origin_y - self.origin_x @ fitted.weight - fitted.bias
        quadratic = 0.0
        if weight.any():
            quadratic = np.einsum("ij,ij->", self.gram @ weight - 2 * self.cross, weight)
        linear = off @ (self.sum_y - self.sum_x @ weight)
        return float(max(self.square.sum() + quadratic + 2 * linear + self.count * (off @ off), 0.0))

    @property
    def spread(self) -> float:
        """Σ ‖y − ȳ‖²."""
        return float(self.square.sum() - (self.sum_y @ self.sum_y) / max(self.count, 1))


@dataclass(eq=False)
class Channels:
    """Of pairs of rows x and y of one width, channel by channel: what γ and β are fitted from."""

    count: int = 0
    sums: dict[str, Wide] = field(default_factory=dict)

    def add(self, x: Array, y: Array) -> None:
        """Count rows [n, width] in. Raises `RunError` where one is not finite."""
        if not len(x):
            return
        _require_finite(x, y)
        found = {
            "x": x.sum(0, dtype=np.float64), "y": y.sum(0, dtype=np.float64),
            "xx": np.einsum("ij,ij->j", x, x, dtype=np.float64),
            "xy": np.einsum("ij,ij->j", x, y, dtype=np.float64),
            "yy": np.einsum("ij,ij->j", y, y, dtype=np.float64),
        }  # fmt: skip
        self.count += len(x)
        self.sums = {name: self.sums.get(name, 0) + one for name, one in found.items()}

    def error(self, scale: Wide, shift: Wide) -> float:
        """Σ (y − (scale · x + shift))²."""
        s = self.sums
        each = s["yy"] - 2 * scale * s["xy"] - 2 * shift * s["y"] + scale**2 * s["xx"]
        return float(max((each + 2 * scale * shift * s["x"] + self.count * shift**2).sum(), 0.0))

    @property
    def spread(self) -> float:
        """Σ (y − ȳ)²."""
        return float((self.sums["yy"] - self.sums["y"] ** 2 / max(self.count, 1)).sum())


def _require_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise RunError("values that are not finite came out of the model: nothing can be fitted to them")
