"""A model that puts its stream out after some of its layers, in one session, and its own end by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from graphprune.data.task import LOGITS
from graphprune.errors import RunError, SelectionError
from graphprune.importance.streams import MASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.architecture import Stack
    from graphprune.healing.segments import Segment
    from graphprune.play import Source
    from graphprune.settings import Settings

    Array = NDArray[Any]
    Wide = NDArray[np.float64]

Pool = Literal["mean", "first", "last"]
POOLS: tuple[Pool, ...] = get_args(Pool)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a batch came to: `streams` [rows, positions, width] by the number of layers that have run.

    0 is the stream before the first layer. `own` are the model's own scores, [rows, classes] or
    [rows, positions, tokens], None where it has none; `mask` [rows, positions] is False where there is
    padding; `feeds` are the inputs. `flat`: the model itself has rows and positions as one axis.
    """

    feeds: Mapping[str, Array]
    streams: Mapping[int, Array]
    own: Array | None
    mask: Array
    flat: bool = False


@dataclass(frozen=True, eq=False)
class Watch:
    """A model loaded to be looked into: `names` are the streams by the number of layers that have run.

    `tail` takes the last layer's stream to the model's own scores: its final norm and head. None where the
    model puts out no scores.
    """

    name: str
    layers: int
    names: Mapping[int, str]
    body: Segment
    tail: Segment | None

    def see(self, source: Source) -> Seen:
        """Run one batch. Raises `RunError`, also where a stream is not finite."""
        from graphprune.play import first_feeds

        feeds = first_feeds(self.body.session, source)
        found = dict(zip(self.body.names, self.body.run(feeds), strict=True))
        rows = len(next(iter(feeds.values())))
        streams = {k: _by_rows(found[name], rows, self.name) for k, name in self.names.items()}
        broken = next((k for k, stream in streams.items() if not np.isfinite(stream).all()), None)
        if broken is not None:
            raise RunError(
                f"{self.name}: the stream after layer {broken} is not finite on these data: leave them out"
            )
        mask = _mask(feeds, streams[self.layers].shape[:2])
        return Seen(feeds, streams, found.get(LOGITS), mask, found[self.names[self.layers]].ndim == 2)

    def scores(self, seen: Seen, stream: Array) -> Array:
        """The model's own final norm and head on a stream: the logit lens, laid as `Seen.own`.

        Raises `RunError` where the model has no head.
        """
        if self.tail is None:
            raise RunError(
                f"{self.name} has no head of its own (no output '{LOGITS}'): fit one, as ridge or logistic"
            )
        laid = stream.reshape(-1, stream.shape[-1]) if seen.flat else stream
        found = self.tail.run(dict(seen.feeds), laid.astype(np.float32))[0]
        return found if seen.own is None else found.reshape(seen.own.shape)


def open_watch(path: str | Path, at: Sequence[int] = (), settings: Settings | None = None) -> Watch:
    """Load a model that puts out its stream before the first layer, after each of `at`, and after the last.

    Without `at`, after every layer. Raises `LoadError`, `RunError` where it is not one stack in the main
    graph, `SelectionError` where `at` names a boundary that there is not.
    """
    from graphprune.bundle import load
    from graphprune.healing.segments import cut, only_stack, prepared

    file = load(path).only("given exits")
    architecture = prepared(file.model)
    stack = only_stack(architecture, file.name)
    count = len(stack.layers)
    names = _streams(stack, boundaries(at, count))
    outputs = [value.name or "" for value in file.model.graph.outputs]
    body = cut(file, architecture.model, "", list(dict.fromkeys([*names.values(), *outputs])), settings)
    tail = None
    if LOGITS in outputs and names[count] != LOGITS:
        tail = cut(file, architecture.model, names[count], [LOGITS], settings)
    return Watch(file.name, count, names, body, tail)


def boundaries(at: Sequence[int], layers: int) -> tuple[int, ...]:
    """The boundaries `at`, sorted, or all of them where none is named. Raises `SelectionError`."""
    if layers < 2:
        raise SelectionError("a model of one layer has no place for an exit")
    wrong = next((k for k in at if not 1 <= k < layers), None)
    if wrong is not None:
        raise SelectionError(
            f"there is no exit after {wrong} layers: the model has {layers}, so name some of 1 … {layers - 1}"
        )
    return tuple(sorted(set(at))) or tuple(range(1, layers))


def _streams(stack: Stack, at: tuple[int, ...]) -> dict[int, str]:
    """The names of the streams before the first layer, after each of `at`, and after the last layer."""
    ends = [layer.blocks[-1].stream_out for layer in stack.layers]
    start = stack.layers[0].blocks[0].stream_in
    return {0: start.name or ""} | {k: ends[k - 1].name or "" for k in (*at, len(ends))}


def _by_rows(stream: Array, rows: int, name: str) -> Array:
    """A stream as [rows, positions, width]. Raises `RunError` where it is none of positions."""
    if stream.ndim == 2 and rows and len(stream) % rows == 0:
        stream = stream.reshape(rows, -1, stream.shape[-1])
    if stream.ndim != 3 or len(stream) != rows:
        raise RunError(
            f"{name}: its stream has the shape {list(stream.shape)}, and exits need [rows, positions, width]"
        )
    return stream


def _mask(feeds: Mapping[str, Array], grid: tuple[int, ...]) -> Array:
    """False where there is padding: [rows, positions]."""
    mask = next((feeds[name] for name in MASKS if name in feeds), None)
    return np.ones(grid, bool) if mask is None or mask.shape != grid else mask.astype(bool)


def pooled(stream: Array, mask: Array, pool: Pool) -> Wide:
    """One vector a row, float64 [rows, width]: mean, first or last of the positions that are no padding."""
    if pool == "mean":
        counted = mask.astype(np.float64)
        total = np.einsum("rpw,rp->rw", stream.astype(np.float64), counted)
        found: Wide = total / np.maximum(counted.sum(1, keepdims=True), 1)
        return found
    places = np.argmax(mask, 1) if pool == "first" else mask.shape[1] - 1 - np.argmax(mask[:, ::-1], 1)
    return np.asarray(stream[np.arange(len(stream)), places], np.float64)
