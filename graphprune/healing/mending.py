"""Walking one block with a changed stream: fit what can be fitted there, keep what helps, go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.choice import SHARES, Action
from graphprune.healing.moments import Affine, Moments
from graphprune.healing.norming import PlainNorm
from graphprune.healing.patching import Magnitudes
from graphprune.healing.pieces import Piece
from graphprune.healing.repairs import (
    Fit,
    Gathered,
    Repairs,
    Side,
    fitted_linear,
    fitted_narrow,
    fitted_output,
    moved,
)
from graphprune.healing.rows import Lot
from graphprune.healing.spool import Spool

Array = NDArray[Any]
Streams = Callable[[int], Array]  # by the number of a lot


@dataclass(frozen=True)
class HealStep:
    """What became of one block, and what mending did there.

    `before` and `after` are what is wrong with the stream behind the block, without and with the `repair`
    ("none" where it was not worth keeping, "taken over" where the block before makes up for this one): the
    squared difference from the dense model's as a share of the latter's variance, on held-out rows. `note`
    says where the data were too few to fit freely.
    """

    block: str
    action: Action
    repair: str
    before: float
    after: float
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether a repair was kept."""
        return self.repair != "none"


@dataclass(frozen=True, eq=False)
class Mended:
    """A block as it is from now on: its map (of what its action reads), its norm where that changed.

    A map without rows in its weight is a bias alone; `neurons` are the rows that stay of it, if not all.
    `norm` is in the place of the one behind the block `norm_of`: itself, or the last of dropped ones that it
    took over, with a norm each; then the norms before that one go.
    """

    step: HealStep
    map: Affine | None = None
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    neurons: NDArray[np.int64] | None = None
    norm: PlainNorm | None = None
    norm_of: str = ""

    @property
    def nbytes(self) -> int:
        """The bytes of the map."""
        return 0 if self.map is None else self.map.weight.nbytes


@dataclass(frozen=True, eq=False)
class Place:
    """A block in the walk: the streams that come in, and the dense model's values that should come out.

    `sums` should be at its join, `ends` behind `norm` (without one they are the same); `spread` is
    Σ‖y − ȳ‖² of `ends` over the rows that errors are told of. `shapes` are those of the streams behind it.
    `norm_of` is the block that the norm is behind of; `taken` says that a block before this one has been
    fitted to what both should give.
    """

    piece: Piece
    action: Action
    lots: Sequence[Lot]
    streams: Streams
    sums: Streams
    ends: Streams
    shapes: Callable[[int], tuple[int, ...]]
    spread: float
    tried: Repairs
    norm: PlainNorm | None
    norm_of: str
    taken: bool = False


@dataclass(frozen=True, eq=False)
class _Work:
    """A place with its map as it is without repair, what maps read, and the sums with that map, by lot."""

    place: Place
    own: Affine
    read: Spool = field(default_factory=Spool)
    plain: Spool = field(default_factory=Spool)

    def sum(self, number: int, map: Affine) -> Array:
        """The sum at the join with `map` in it; a map of no inputs is a constant."""
        plain = self.plain.get(number)
        if map is self.own:
            return plain
        if map.weight is self.own.weight:
            return plain + (map.bias - self.own.bias).astype(np.float32)
        stream = np.asarray(self.place.streams(number), np.float32).reshape(plain.shape)
        return stream + map(self.read.get(number)).reshape(plain.shape)


def mend(place: Place) -> tuple[Mended, Iterator[Array]]:
    """Fit a block's repairs; and the streams behind it, lot by lot.

    Raises `RunError` where values are not finite.
    """
    try:
        return _mend(place)
    except RunError as error:
        raise RunError(f"{place.piece.id}: {error}") from error


def _mend(place: Place) -> tuple[Mended, Iterator[Array]]:
    piece = place.piece
    if place.action == "keep" and piece.projections is None:
        return _left_alone(place)
    work = _Work(place, _own(place))
    gathered = _gather(work)
    fit = _chosen(work, gathered)
    note = _note(gathered, fit)
    if place.norm is None:
        name = "taken over" if place.taken and place.action == "drop" else fit.name
        step = HealStep(
            piece.id, place.action, name,
            gathered.unhealed / place.spread, fit.error / place.spread, note,
        )  # fmt: skip
        return _mended(place, step, fit, None), (work.sum(n, fit.map) for n in range(len(place.lots)))
    fit, norm, step, normalized = _with_norm(work, fit, note)
    ends = (norm.applied(normalized.get(number)) for number in range(len(place.lots)))
    return _mended(place, step, fit, norm), ends


def _left_alone(place: Place) -> tuple[Mended, Iterator[Array]]:
    """A block that cannot be read as a sum of linears stays what it is."""
    step = HealStep(place.piece.id, "keep", "none", 0.0, 0.0, f"not refitted: {place.piece.fixed}")
    streams = (place.piece.leaves(lot.feeds, place.streams(n)) for n, lot in enumerate(place.lots))
    return Mended(step), streams


def _gather(work: _Work) -> Gathered:
    """What the block's map reads, and what it should add to what it adds already."""
    place = work.place
    for number in range(len(place.lots)):
        value = _read(place, number)
        if value is not None:
            work.read.put(number, value)
        work.plain.put(number, _plain(work, number, value))
    gathered = Gathered(Moments(), partial(_rows, work, held=True))
    for inputs, missing in _rows(work, held=False):
        gathered.fit.add(inputs, missing)
    return gathered


def _rows(work: _Work, *, held: bool) -> Iterator[tuple[Array, Array]]:
    """What the map reads [n, inputs] and what is missing [n, width], lot by lot."""
    place = work.place
    for number, lot in enumerate(place.lots):
        if lot.held == held:
            missing = lot.rows(place.sums(number)) - lot.rows(work.plain.get(number))
            read = lot.rows(work.read.get(number)) if number in work.read else missing[:, :0]
            yield read, missing


def _read(place: Place, number: int) -> Array | None:
    """What a weight that is fitted reads; None where none is."""
    if place.action == "keep" and not place.tried.output:
        return None
    return place.piece.reads(place.action, place.lots[number].feeds, place.streams(number))


def _plain(work: _Work, number: int, value: Array | None) -> Array:
    """The sum at the join without any repair."""
    place, stream = work.place, work.place.streams(number)
    if place.action != "keep":
        return np.asarray(stream, np.float32).reshape(place.shapes(number))
    if value is None:
        return place.piece.sums(place.lots[number].feeds, stream)
    shape = place.shapes(number)
    return np.asarray(stream, np.float32).reshape(shape) + work.own(value).reshape(shape)


def _own(place: Place) -> Affine:
    """The map without any repair: the block's own, or nothing at all in its place."""
    if place.action == "keep":
        assert place.piece.output is not None
        return place.piece.output
    width = place.sums(0).shape[-1]
    return Affine(np.zeros((0, width)), np.zeros(width))


def _chosen(work: _Work, gathered: Gathered) -> Fit:
    place, own = work.place, work.own
    if place.action == "keep":
        return fitted_output(gathered, own, place.tried)
    if place.action == "linear":
        return fitted_linear(gathered, place.tried)
    if place.action in SHARES:
        assert place.piece.output is not None
        count = int(SHARES[place.action] * place.piece.neurons)
        return fitted_narrow(gathered, place.piece.output, count, place.tried)
    if place.action == "mean":
        return moved(gathered, own, "mean")
    if place.action == "patch":
        return _patch(place, gathered)
    return Fit("none", own, gathered.unhealed)


def _patch(place: Place, gathered: Gathered) -> Fit:
    """The map that brings the stream's magnitudes to those that it should have behind the block."""
    magnitudes = Magnitudes.of(place.sums(0).shape[-1])
    for number, lot in enumerate(place.lots):
        if not lot.held:
            magnitudes.add(lot.rows(place.streams(number)), lot.rows(place.sums(number)))
    map = magnitudes.patch()
    return Fit("patch", map, gathered.error(map))


def _note(gathered: Gathered, fit: Fit) -> str:
    inputs = len(gathered.fit.gram)
    if fit.name in ("output", "linear", "neurons") and gathered.fit.count <= inputs:
        return f"{gathered.fit.count} rows for {inputs} inputs: the fit rests on its regularization"
    return ""


def _with_norm(work: _Work, fit: Fit, note: str) -> tuple[Fit, PlainNorm, HealStep, Spool]:
    """Choose the norm behind the join along with the map: whether either is kept shows behind the norm.

    Returns the normalized sums, too.
    """
    place, norm = work.place, work.place.norm
    assert norm is not None
    unhealed, sums = _side(work, work.own, norm)
    found = []
    if fit.name == "none" or place.action == "keep":
        found.append((Fit("none", work.own, 0.0), sums, *unhealed.best(norm, place.tried)))
    if fit.name != "none":
        side, other = _side(work, fit.map, norm)
        found.append((fit, other, *side.best(norm, place.tried)))
    chosen, normalized, best, error, refitted = min(found, key=lambda one: one[3])
    names = [name for name, kept in ((chosen.name, chosen.name != "none"), ("norm", refitted)) if kept]
    step = HealStep(
        place.piece.id, place.action, " + ".join(names) or "none",
        unhealed.error(norm) / place.spread, error / place.spread, note,
    )  # fmt: skip
    return chosen, best, step, normalized


def _side(work: _Work, map: Affine, norm: PlainNorm) -> tuple[Side, Spool]:
    """The channel moments of the sums with a map, normalized; and these."""
    side, kept = Side(), Spool()
    for number, lot in enumerate(work.place.lots):
        normalized = norm.normalized(work.sum(number, map))
        kept.put(number, normalized)
        side.of(lot.held).add(lot.rows(normalized), lot.rows(work.place.ends(number)))
    return side, kept


def _mended(place: Place, step: HealStep, fit: Fit, norm: PlainNorm | None) -> Mended:
    """What has changed, and nothing else."""
    moved = norm if norm is not place.norm else None
    norm_of = "" if norm is None else place.norm_of
    if fit.name == "none":
        return Mended(step, norm=moved, norm_of=norm_of)
    if place.piece.output is not None and fit.map.weight is place.piece.output.weight:
        bias = Affine(np.zeros((0, len(fit.map.bias))), fit.map.bias)
        return Mended(step, bias, norm=moved, norm_of=norm_of)
    return Mended(step, fit.map.narrow, fit.factors, fit.neurons, moved, norm_of)
