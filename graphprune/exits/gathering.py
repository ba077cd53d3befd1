"""Run a model over data and keep of each sample what exits are fitted to and judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import RunError
from graphprune.exits.criteria import Scores, likeness_of
from graphprune.exits.watching import Pool, Seen, Watch, pooled
from graphprune.healing.fits import ridge
from graphprune.healing.moments import Affine, Moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.data.dataset import Batch

    Array = NDArray[Any]
    Wide = NDArray[np.float64]
    Ids = NDArray[np.int64]
    Told = Callable[[str], None]

# What the scores of all exits may take in memory.
_BYTES = 1 << 29
# The regularization of translators, as a share of the mean eigenvalue.
_STRENGTH = 1e-3


@dataclass(frozen=True, eq=False)
class Rows:
    """The pooled streams [rows, width] by the number of layers that have run, float64.

    `dense` [rows] are the classes that the model's own scores say, None where it has no such.
    """

    pooled: Mapping[int, Wide]
    dense: Ids | None
    classes: int

    def part(self, rows: Ids) -> Rows:
        """Only some of the rows."""
        dense = None if self.dense is None else self.dense[rows]
        return Rows({k: one[rows] for k, one in self.pooled.items()}, dense, self.classes)


@dataclass(frozen=True, eq=False)
class Own:
    """What the model's own head says at every exit, of rows or of tokens.

    `rows` [samples] are their rows in the data; `dense` the classes that the model itself says; `following`
    the tokens that come next, None where samples are rows.
    """

    scores: Scores
    rows: Ids
    dense: Ids
    following: Ids | None


def gather_rows(watch: Watch, batches: Sequence[Batch], pool: Pool, told: Told) -> Rows:
    """One pass: the pooled streams of every row. Raises `RunError`."""
    count = 1 + max(int(batch.rows.max()) for batch in batches)
    found: dict[int, Wide] = {}
    dense, classes = np.full(count, -1, np.int64), 0
    for batch, seen in _seen(watch, batches, told):
        for k, stream in seen.streams.items():
            found.setdefault(k, np.zeros((count, stream.shape[-1])))[batch.rows] = pooled(
                stream, seen.mask, pool
            )
        if seen.own is not None and seen.own.ndim == 2:
            dense[batch.rows], classes = seen.own.argmax(-1), seen.own.shape[-1]
    return Rows(found, dense if classes > 1 else None, classes)


def fit_translators(watch: Watch, batches: Sequence[Batch], told: Told) -> dict[int, Affine]:
    """For every boundary, the affine map from its stream to the last layer's, by ridge.

    Din et al., 2023, https://arxiv.org/abs/2303.09435. Raises `RunError`.
    """
    exits = [k for k in watch.names if 0 < k < watch.layers]
    moments = {k: Moments() for k in exits}
    for _, seen in _seen(watch, batches, told):
        last = seen.streams[watch.layers][seen.mask]
        for k in exits:
            moments[k].add(seen.streams[k][seen.mask], last)
    return {k: ridge(one, _STRENGTH) for k, one in moments.items()}


def gather_own(
    watch: Watch,
    batches: Sequence[Batch],
    translators: Mapping[int, Affine],
    pool: Pool,
    told: Told,
) -> Own:
    """One pass: what the model's own head says at every exit, on the stream or on its translation.

    Of tokens, no more than go into half a gigabyte, evenly from all batches. Raises `RunError`.
    """
    parts = []
    for batch, seen in _seen(watch, batches, told):
        parts.append(_own_part(watch, batch, seen, translators, pool, len(batches)))
    at = tuple(k for k in watch.names if k)
    scores = Scores(
        at,
        np.concatenate([one.scores.scores for one in parts], 1),
        np.concatenate([one.scores.likeness for one in parts], 2),
    )
    following = [one.following for one in parts if one.following is not None]
    rows = np.concatenate([one.rows for one in parts])
    if not following:  # a file of a fixed number of rows gets its last row several times
        _, kept = np.unique(rows, return_index=True)
        dense = np.concatenate([one.dense for one in parts])
        return Own(scores.part(kept), rows[kept], dense[kept], None)
    return Own(
        scores, rows, np.concatenate([one.dense for one in parts]), np.concatenate(following)
    )  # fmt: skip


def _own_part(
    watch: Watch, batch: Batch, seen: Seen, translators: Mapping[int, Affine], pool: Pool, batches: int
) -> Own:
    if seen.own is None:
        raise RunError(f"{watch.name} has no head of its own: fit one, as ridge or logistic")
    exits = [k for k in seen.streams if k]
    laid = (_translated(seen.streams[k], translators.get(k)) for k in exits)
    if seen.own.ndim == 2:
        found = np.stack([watch.scores(seen, stream) for stream in laid])
        streams = [pooled(stream, seen.mask, pool) for stream in seen.streams.values()]
        scores = Scores(tuple(exits), found.astype(np.float32), likeness_of(streams))
        return Own(scores, batch.rows, seen.own.argmax(-1), None)
    rows, places = _positions(seen, len(exits) * batches)
    found = np.stack([watch.scores(seen, stream)[rows, places] for stream in laid])
    streams = [stream[rows, places].astype(np.float64) for stream in seen.streams.values()]
    scores = Scores(tuple(exits), found.astype(np.float32), likeness_of(streams))
    ids = seen.feeds.get("input_ids")
    following = None if ids is None else ids[rows, places + 1].astype(np.int64)
    return Own(scores, batch.rows[rows], seen.own[rows, places].argmax(-1), following)


def _positions(seen: Seen, parts: int) -> tuple[Ids, Ids]:
    """The tokens that have a next one, at most as many as one of `parts` may keep: rows and places."""
    assert seen.own is not None
    rows, places = np.nonzero(seen.mask[:, :-1] & seen.mask[:, 1:])
    most = max(_BYTES // (4 * seen.own.shape[-1] * parts), 1)
    kept = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)
    return rows[kept], places[kept]


def _translated(stream: Array, translator: Affine | None) -> Array:
    return stream if translator is None else translator(stream)


def _seen(watch: Watch, batches: Sequence[Batch], told: Told) -> Iterator[tuple[Batch, Seen]]:
    for number, batch in enumerate(batches, 1):
        told(f"running the model, batch {number} of {len(batches)}")
        yield batch, watch.see(batch.source)
