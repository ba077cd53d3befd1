"""The repairs of one block: each is fitted on rows to fit to, and kept if it lowers the error on the others.

A block's place is told by what goes in (x, the stream as the pruned model has it), what its branches put
into their last linears (z), and what should come out, the dense model's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.fits import STRENGTHS, low_rank, narrowed, only_scale, ridges, scale_and_shift
from graphprune.healing.moments import Affine, Channels, Moments
from graphprune.healing.norming import PlainNorm

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Repairs:
    """Which repairs are tried.

    `norm`: γ and β of a post-norm that stays. `output`: the output projections of blocks that stay behind
    those that went, drawn toward their own weights. `fold`: the same of a block before dropped ones
    (pre-norm), which takes over what a linear map can of them. `bias`: the bias of either alone. `rank`: of
    the linears that stand for branches, 0 for full. `check`: keep a repair only where it lowers the error
    on rows that it was not fitted to. `strengths` of the ridge are tried in turn while that error falls.
    """

    norm: bool = True
    output: bool = True
    fold: bool = True
    bias: bool = True
    rank: int = 0
    check: bool = True
    strengths: tuple[float, ...] = STRENGTHS


@dataclass(frozen=True, eq=False)
class Fit:
    """A map that was chosen: what it is called, itself, and the error that it leaves.

    `factors` are its two factors, if it has any; `neurons` the inputs that it reads, if not all.
    """

    name: str
    map: Affine
    error: float
    factors: tuple[Wide, Wide] | None = None
    neurons: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a map reads and what is missing: moments of the rows to fit to, and the rows that are held out.

    `held` gives these lot by lot, each time anew, as [n, inputs] and [n, width].
    """

    fit: Moments
    held: Callable[[], Iterator[tuple[Array, Array]]]

    def error(self, map: Affine) -> float:
        """Σ‖y − map(x)‖² of the held rows; of the others where none are held.

        Raises `RunError` where it is not finite.
        """
        read = np.flatnonzero(map.weight.any(axis=1))
        weight = map.weight[read].astype(np.float32)
        error, rows = 0.0, 0
        for x, y in self.held():
            left = y - map.bias.astype(np.float32)
            if len(read):
                left -= (x if len(read) == x.shape[1] else x[:, read]) @ weight
            error += float(np.einsum("ij,ij->", left, left, dtype=np.float64))
            rows += len(x)
        if not np.isfinite(error):
            raise RunError("values that are not finite came out of the model: nothing can be fitted to them")
        return error if rows else self.fit.error(map)

    @cached_property
    def unhealed(self) -> float:
        """Σ‖y‖² of the same rows: what is missing without any repair."""
        return self.error(Affine(np.zeros(self.fit.cross.shape), np.zeros(self.fit.cross.shape[1])))


def moved(gathered: Gathered, own: Affine, name: str) -> Fit:
    """The same map with the bias that makes up for the mean of what is missing."""
    none = np.zeros(gathered.fit.cross.shape)
    shift = gathered.fit.through_mean(none)
    return Fit(name, Affine(own.weight, own.bias + shift.bias), gathered.error(shift))


def fitted_output(gathered: Gathered, own: Affine, tried: Repairs) -> Fit:
    """The output projection of a block that stays: its own, with another bias, or refitted toward its own."""
    fits = [Fit("none", own, gathered.unhealed)]
    if tried.bias:
        fits.append(moved(gathered, own, "bias"))
    if tried.output:
        fits.append(_while_better(_outputs(gathered, own, tried)))
    return fits[-1] if not tried.check else min(fits, key=lambda fit: fit.error)


def _outputs(gathered: Gathered, own: Affine, tried: Repairs) -> Iterator[Fit]:
    for more in ridges(gathered.fit, tried.strengths):
        map = Affine(own.weight + more.weight, own.bias + more.bias)
        yield Fit("output", map, gathered.error(more))


def fitted_linear(gathered: Gathered, tried: Repairs) -> Fit:
    """One linear for a branch, drawn toward 0: of the strengths tried, the best on held-out rows."""
    return _while_better(_linears(gathered, tried))


def _linears(gathered: Gathered, tried: Repairs) -> Iterator[Fit]:
    for full in ridges(gathered.fit, tried.strengths):
        factors = low_rank(gathered.fit, full, tried.rank) if tried.rank else None
        map = full if factors is None else gathered.fit.through_mean(factors[0] @ factors[1])
        yield Fit("linear", map, gathered.error(map), factors)


def fitted_narrow(gathered: Gathered, own: Affine, count: int, tried: Repairs) -> Fit:
    """The output projection of an FFN that keeps `count` neurons, drawn toward its own."""
    return _while_better(_narrow(gathered, own, count, tried))


def _narrow(gathered: Gathered, own: Affine, count: int, tried: Repairs) -> Iterator[Fit]:
    for strength in tried.strengths:
        neurons, map = narrowed(gathered.fit, own, count, strength)
        yield Fit("neurons", map, gathered.error(map), neurons=neurons)


def _while_better(fits: Iterator[Fit]) -> Fit:
    """The last of fits before the error rises again; later ones are not made."""
    best = next(fits)
    for fit in fits:
        if not fit.error < best.error:
            break
        best = fit
    return best


@dataclass(frozen=True, eq=False)
class Side:
    """Channel moments, by fit and held rows, of the normalized stream and of what should come out."""

    fit: Channels = field(default_factory=Channels)
    held: Channels = field(default_factory=Channels)

    def of(self, held: bool) -> Channels:
        """The moments that a batch counts for."""
        return self.held if held else self.fit

    def error(self, norm: PlainNorm) -> float:
        """Σ‖y − norm‖² of the held rows; of the others where none are held."""
        channels = self.held if self.held.count else self.fit
        return channels.error(norm.scale, np.zeros_like(norm.scale) if norm.shift is None else norm.shift)

    def refitted(self, norm: PlainNorm) -> PlainNorm:
        """The norm with the γ and β of least squares."""
        if norm.shift is None:
            return replace(norm, scale=only_scale(self.fit, norm.scale))
        scale, shift = scale_and_shift(self.fit, norm.scale, norm.shift)
        return replace(norm, scale=scale, shift=shift)

    def best(self, norm: PlainNorm, tried: Repairs) -> tuple[PlainNorm, float, bool]:
        """The norm as it is or refitted, the error that is left, and whether it was refitted."""
        own = self.error(norm)
        if tried.norm:
            fitted = self.refitted(norm)
            error = self.error(fitted)
            if error < own or not tried.check:
                return fitted, error, True
        return norm, own, False
