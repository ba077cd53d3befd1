"""Healing any choice of blocks of one model: opened once, with the dense model's streams at hand.

Blocks are walked in running order. What a block is fitted to is the dense model's value there; what it
reads is the stream as the blocks before it, already healed, leave it. So each repair makes up for what
those before it left. Choices that begin alike share that part of the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphprune.data.dataset import Data
from graphprune.data.judging import Judge, open_judge
from graphprune.errors import RunError
from graphprune.healing.choice import SHARES, Action, Choice, require_choice
from graphprune.healing.healed import Healing
from graphprune.healing.mending import Mended, Place, mend
from graphprune.healing.pieces import Piece, pieces_of
from graphprune.healing.repairs import Repairs
from graphprune.healing.rows import Lot
from graphprune.healing.segments import Segment, cut, only_stack, prepared
from graphprune.healing.spool import Spool
from graphprune.play import first_feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.bundle import ModelFile
    from graphprune.settings import Settings

    Array = NDArray[Any]

# The way to a block: what became of each one up to it, and behind which block its target is.
_Way: TypeAlias = "tuple[tuple[Action, int], ...]"

# Of the data that are given, what is fitted to; the rest judges.
FITTED = 0.75
# How far, as a share of the largest value, a walk may be from what the model itself puts out.
_TOLERANCE = 2e-3


@dataclass(eq=False)
class _Walked:
    """The streams that healed ways have led to, as many as go into `limit` bytes.

    What was fitted on these ways is in memory, as much as goes into `weights` bytes.
    """

    limit: int = 4 << 30
    weights: int = 256 << 20
    ways: OrderedDict[_Way, tuple[Mended, int]] = field(default_factory=OrderedDict)
    spool: Spool = field(default_factory=Spool)
    size: int = 0
    fitted: int = 0

    def keep(self, way: _Way, mended: Mended, streams: Iterator[Array]) -> None:
        size = count = 0
        for number, stream in enumerate(streams):
            self.spool.put((way, number), stream)
            size, count = size + stream.nbytes, number + 1
        self.ways[way] = (mended, size)
        self.size += size
        self.fitted += mended.nbytes
        while (self.size > self.limit or self.fitted > self.weights) and len(self.ways) > 1:
            old, (gone, freed) = self.ways.popitem(last=False)
            self.size -= freed
            self.fitted -= gone.nbytes
            for number in range(count):
                self.spool.forget((old, number))

    def find(self, way: _Way) -> Mended | None:
        if way not in self.ways:
            return None
        self.ways.move_to_end(way)
        return self.ways[way][0]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A model cut into its blocks, batches of data, and what the dense model computes on them.

    `lots` are the batches to fit to, then those that judge; `dense` holds the streams of the dense model by
    (0 for sums, 1 for streams, block number, lot). `spreads` are Σ‖x − x̄‖² of the streams before each block
    and behind the last one, over the rows that judge.
    """

    path: Path
    pieces: tuple[Piece, ...]
    lots: tuple[Lot, ...]
    dense: Spool
    spreads: tuple[float, ...]
    tail: Segment
    judge: Judge
    repairs: Repairs = field(default_factory=Repairs)
    walked: _Walked = field(default_factory=_Walked)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that can go, in running order."""
        return tuple(piece.id for piece in self.pieces if piece.actions)

    @cached_property
    def declined(self) -> Mapping[str, str]:
        """The blocks that cannot go, and why."""
        return {piece.id: piece.reason for piece in self.pieces if piece.reason}

    @cached_property
    def actions(self) -> Mapping[str, tuple[Action, ...]]:
        """What each block can become besides kept."""
        return {piece.id: piece.actions for piece in self.pieces if piece.actions}

    def heal(self, choice: Choice) -> Healing:
        """Heal a choice of blocks. Raises `SelectionError`, `RunError` where values are not finite."""
        require_choice(choice, self.actions, self.declined)
        ways = self._ways(choice)
        mended = tuple(self._mended(ways[number]) for number in range(len(ways)))
        last = ways[-1]
        outputs = (self._outputs(last, n) for n, lot in enumerate(self.lots) if lot.held)
        score = self.judge.score(outputs)
        return Healing(dict(choice), self.pieces, mended, self._error(last), score, self.judge.kept(score))

    def outputs(self, choice: Choice) -> Iterator[dict[str, Array]]:
        """What the healed model puts out for the batches that judge. Raises as `heal`."""
        self.heal(choice)
        last = self._ways(choice)[-1]
        return (self._outputs(last, n) for n, lot in enumerate(self.lots) if lot.held)

    def _ways(self, choice: Choice) -> list[_Way]:
        """The way to every block. A block before dropped ones aims at the stream behind these."""
        actions: list[Action] = [choice.get(piece.id, "keep") for piece in self.pieces]
        steps: list[tuple[Action, int]] = []
        for number, action in enumerate(actions):
            target = number + 1
            if self._takes_over(number, action):
                while target < len(actions) and actions[target] == "drop" and self._alike(number, target):
                    target += 1
            steps.append((action, target))
        return [tuple(steps[: number + 1]) for number in range(len(steps))]

    def _takes_over(self, number: int, action: Action) -> bool:
        """Whether a block is fitted to what it and the dropped ones behind it should give together.

        With a norm behind each the last norm is the one that stays: a block must be free to change for that.
        """
        piece, tried = self.pieces[number], self.repairs
        if piece.norm is None:
            return action != "drop"
        free = action in ("linear", *SHARES) or (
            action == "keep" and tried.output and piece.projections is not None
        )
        return free and tried.fold and tried.norm

    def _alike(self, number: int, other: int) -> bool:
        """Whether two blocks both have a norm behind them that can be refitted, or neither has."""
        return (self.pieces[number].norm is None) == (self.pieces[other].norm is None)

    def _mended(self, way: _Way) -> Mended | None:
        """The last block of a way, mended; None where all is as in the dense model."""
        if _is_dense(way):
            return None
        found = self.walked.find(way)
        if found is None:
            found, streams = mend(self._place(way))
            self.walked.keep(way, found, streams)
        return found

    def _place(self, way: _Way) -> Place:
        number, (action, target) = len(way) - 1, way[-1]
        piece, tried, last = self.pieces[number], self.repairs, self.pieces[target - 1]
        if target > number + 1 and piece.norm is None:
            tried = replace(tried, output=tried.fold)
        taken = any(aim > number for _, aim in way[:-1])
        norm = None if taken else last.norm

        def sums(lot: int) -> Array:
            return self.dense.get((0, target - 1, lot)) if norm is not None else ends(lot)

        def ends(lot: int) -> Array:
            return self.dense.get((1, target, lot))

        return Place(
            piece, action, self.lots, lambda lot: self._stream(way[:-1], lot), sums, ends,
            lambda lot: self.dense.shape((1, number + 1, lot)), self.spreads[target], tried,
            norm, last.id, taken,
        )  # fmt: skip

    def _stream(self, way: _Way, lot: int) -> Array:
        if _is_dense(way):
            return self.dense.get((1, len(way), lot))
        if (way, lot) not in self.walked.spool:
            self._mended(way)
        return self.walked.spool.get((way, lot))

    def _outputs(self, way: _Way, lot: int) -> dict[str, Array]:
        values = self.tail.run(self.lots[lot].feeds, self._stream(way, lot))
        return dict(zip(self.tail.names, values, strict=True))

    def _error(self, way: _Way) -> float:
        total = 0.0
        for number, lot in enumerate(self.lots):
            if lot.held:
                gone = lot.rows(self._stream(way, number)) - lot.rows(self.dense.get((1, len(way), number)))
                total += float(np.einsum("ij,ij->", gone, gone, dtype=np.float64))
        return total / self.spreads[-1]


def _is_dense(way: _Way) -> bool:
    return all(action == "keep" and target == number + 1 for number, (action, target) in enumerate(way))


def open_calibration(
    path: str | Path,
    fit: Data,
    judged: Data | None = None,
    *,
    settings: Settings | None = None,
    batch: int = 32,
    repairs: Repairs | None = None,
) -> Calibration:
    """Cut a model into its blocks, and run it dense over data to fit to and over data to judge by.

    Without `judged` a quarter of `fit` judges. The file must have one stack of blocks, in its main graph; a
    decoder is given an empty cache. The dense streams lie in temporary files, two for each block.
    Raises `LoadError`, `RunError` where the model cannot be walked or its values are not finite, and what
    reading the data raises.
    """
    from graphprune.bundle import load

    if judged is None:
        fit, judged = fit.split(FITTED)
    bundle = load(path)
    file = bundle.only("healed")
    architecture = prepared(file.model)
    stack = only_stack(architecture, file.name)
    pieces = tuple(pieces_of(file, architecture, tuple(stack.blocks), settings))
    batches = judged.batches(path, batch)
    lots, judge = _run_whole(file, fit.batches(path, batch), batches, judged, settings)
    dense = Spool()
    start = cut(file, architecture.model, "", [pieces[0].block.stream_in.name or ""], settings)
    for number, lot in enumerate(lots):
        dense.put((1, 0, number), start.run(lot.feeds)[0])
    pieces = tuple(_walk_dense(pieces, lots, dense))
    outputs = [value.name or "" for value in file.model.graph.outputs]
    tail = cut(file, architecture.model, pieces[-1].block.stream_out.name or "", outputs, settings)
    spreads = tuple(_spread(lots, dense, number) for number in range(len(pieces) + 1))
    return Calibration(Path(path), pieces, lots, dense, spreads, tail, judge, repairs or Repairs())


def _run_whole(
    file: ModelFile, fitted: Sequence[Any], judged: Sequence[Any], data: Data, settings: Settings | None
) -> tuple[tuple[Lot, ...], Judge]:
    """The inputs of all batches, and the judge of what the model puts out; it is loaded for that alone."""
    from graphprune.changed import open_changed

    session = open_changed(file, file.model.clone(), settings)
    inputs = Spool()
    lots = []
    for number, one in enumerate((*fitted, *judged)):
        lots.append(Lot.of(number, first_feeds(session, one.source), inputs, held=number >= len(fitted)))
    held = [lot for lot in lots if lot.held]
    return tuple(lots), open_judge(data, judged, (session.run(lot.feeds) for lot in held))


def _walk_dense(pieces: Sequence[Piece], lots: Sequence[Lot], dense: Spool) -> Iterator[Piece]:
    """Store the dense sums and streams; pieces whose reading is not borne out are left as they are."""
    for number, piece in enumerate(pieces):
        segment = piece.dense()
        for index, lot in enumerate(lots):
            total, end = segment.run(lot.feeds, dense.get((1, number, index)))
            if piece.norm is not None:
                dense.put((0, number, index), total)
            dense.put((1, number + 1, index), end)
        yield _borne_out(piece, lots[0], *(dense.get((1, at, 0)) for at in (number, number + 1)))


def _borne_out(piece: Piece, lot: Lot, stream: Array, end: Array) -> Piece:
    """A piece whose parts, put together, give what the model gives; else one that is left alone."""
    if piece.projections is not None and piece.output is not None:
        added = piece.output(piece.inner(lot.feeds, stream))
        found = np.asarray(stream, np.float32).reshape(end.shape) + added.reshape(end.shape)
        if piece.norm is not None:
            found = piece.norm.applied(piece.norm.normalized(found))
        off = float(np.abs(lot.rows(found) - lot.rows(end)).max()) / float(np.abs(lot.rows(end)).max())
        if not off <= _TOLERANCE:
            why = f"its parts put together differ by {off:.1%} from what it gives"
            return replace(
                piece, projections=None, output=None, fixed=why, reason=piece.reason or why, neurons=0
            )
    return piece


def _spread(lots: Sequence[Lot], dense: Spool, number: int) -> float:
    """Σ‖x − x̄‖² of the streams at a place, over the rows that judge."""
    count, total, square = 0, np.zeros(1), 0.0
    for index, lot in enumerate(lots):
        if lot.held:
            rows = lot.rows(dense.get((1, number, index))).astype(np.float64)
            count, total = count + len(rows), total + rows.sum(0)
            square += float(np.einsum("ij,ij->", rows, rows))
    spread = square - float(total @ total) / max(count, 1)
    if not np.isfinite(spread):
        raise RunError(
            f"the stream before block {number} is not finite: the model itself does not work on these data"
        )
    return max(spread, 1e-30)
