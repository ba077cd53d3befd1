"""What a model puts out without some of its blocks, for many choices of blocks, by one loaded session.

The blocks are gated (`surgery.gate_blocks`): no graph is built or loaded for a choice of them. The streams
in the middle of the model are kept, so that choices which begin alike share that part of the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError, SelectionError
from graphprune.play import Source, first_feeds, is_cache

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from graphprune.session import Feeds, Session
    from graphprune.settings import Settings
    from graphprune.surgery.gating import Gates
    from graphprune.surgery.resuming import Boundary

    Arrays = dict[str, NDArray[Any]]
    # The number of a batch, of the gate before which the stream is, and of those before it that do not run.
    Prefix = tuple[int, int, frozenset[int]]

MEMORY = 1 << 30


@dataclass(eq=False)
class Prefixes:
    """Streams in the middle of a model, as many as go into `limit` bytes; those longest unused go first."""

    limit: int = MEMORY
    size: int = 0
    _streams: OrderedDict[Prefix, NDArray[Any]] = field(default_factory=OrderedDict)

    def find(self, prefix: Prefix) -> NDArray[Any] | None:
        """The stream behind a prefix, if it is there."""
        stream = self._streams.get(prefix)
        if stream is not None:
            self._streams.move_to_end(prefix)
        return stream

    def keep(self, prefix: Prefix, stream: NDArray[Any]) -> None:
        """Keep a stream for as long as there is room."""
        if prefix in self._streams or stream.nbytes > self.limit:
            return
        self._streams[prefix] = stream
        self.size += stream.nbytes
        while self.size > self.limit:
            self.size -= self._streams.popitem(last=False)[1].nbytes


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model whose blocks can be left out, and the batches that it is asked about.

    `blocks` are the ids of the blocks in running order, `declined` says why others cannot be left out.
    """

    session: Session
    gates: Gates
    feeds: tuple[Feeds, ...]
    prefixes: Prefixes

    @property
    def blocks(self) -> tuple[str, ...]:
        """The ids of the blocks that can be left out, in running order."""
        return self.gates.blocks

    @property
    def declined(self) -> Mapping[str, str]:
        """The blocks that cannot be left out, and why."""
        return self.gates.declined

    def outputs(self, dropped: Collection[str] = ()) -> Iterator[Arrays]:
        """What the model puts out without the blocks `dropped`, batch by batch; no caches.

        The same as of a model from which they were pruned with the norms after them kept, up to the
        rounding of kernels that ONNX Runtime fuses in one of them only. Raises `SelectionError`, `RunError`.
        """
        off = self._numbers(dropped)
        return (self._run(batch, feeds, off) for batch, feeds in enumerate(self.feeds))

    def _numbers(self, dropped: Collection[str]) -> frozenset[int]:
        for id in dropped:
            if id not in self.blocks:
                reason = self.declined.get(
                    id, f"there is no such block: choose among {', '.join(self.blocks)}"
                )
                raise SelectionError(f"{self.session.name}: {id} cannot be left out: {reason}")
        return frozenset(map(self.blocks.index, dropped))

    def _run(self, batch: int, feeds: Feeds, off: frozenset[int]) -> Arrays:
        import numpy as np

        from graphprune.gates import MASK
        from graphprune.surgery.gating import RESUME, STREAM

        mask = np.array([number not in off for number in range(len(self.blocks))])
        given: dict[str, NDArray[Any]] = {name: feeds[name] for name in self.session.inputs}
        given[MASK] = mask
        begin, stream = self._longest(batch, off)
        if stream is not None:
            given |= {RESUME: np.array(begin, np.int64), STREAM: stream}
        later = [boundary for boundary in self.gates.boundaries if boundary.gate > begin]
        names = [*self.gates.settled, *(boundary.output for boundary in later)]
        values = dict(zip(names, self._values(names, given), strict=True))
        for boundary in later:
            self.prefixes.keep(_prefix(batch, boundary, off), values[boundary.output])
        return {name: values[name] for name in self.gates.settled}

    def _longest(self, batch: int, off: frozenset[int]) -> tuple[int, NDArray[Any] | None]:
        """The last place at which the run can begin, and the stream there; (0, None) where there is none."""
        for boundary in reversed(self.gates.boundaries):
            stream = self.prefixes.find(_prefix(batch, boundary, off))
            if stream is not None:
                return boundary.gate, stream
        return 0, None

    def _values(self, names: Sequence[str], given: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        from graphprune.starting import first_line

        try:
            values: list[NDArray[Any]] = self.session.runtime.run(names, given)
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.session.name}: {first_line(error)}") from error
        return values


def _prefix(batch: int, boundary: Boundary, off: frozenset[int]) -> Prefix:
    return batch, boundary.gate, frozenset(number for number in off if number < boundary.gate)


def open_scorer(
    path: str | Path, sources: Sequence[Source], settings: Settings | None = None, *, memory: int = MEMORY
) -> Scorer:
    """Load a model with gated blocks, to be asked about batches of inputs.

    `memory` bytes hold what choices of blocks have in common. A model that takes a cache begins with an
    empty one. Raises `LoadError`, `RunError` where there are several files or no block can be left out.
    """
    from graphprune.bundle import load
    from graphprune.changed import open_changed

    bundle = load(path)
    file = bundle.only("scored")
    gates = _gated(file.model)
    if not gates.blocks:
        reason = next(iter(gates.declined.values()), "no blocks were found")
        raise RunError(f"{file.name}: no block can be left out: {reason}")
    session = open_changed(file, file.model, settings)
    feeds = tuple(first_feeds(session, source) for source in sources)
    return Scorer(session, gates, feeds, Prefixes(memory))


def _gated(model: ir.Model) -> Gates:
    """Gate the blocks of a model in place; its caches are not put out any more, so that they go with them."""
    from graphprune.recover import recover
    from graphprune.surgery import gate_blocks, sweep

    outputs = model.graph.outputs
    for value in [value for value in outputs if is_cache(value.name or "")]:
        outputs.remove(value)
    sweep(model)
    gates = gate_blocks(recover(model), resumable=True)
    sweep(model)
    return gates


def batches_by_length(
    path: str | Path, texts: Sequence[str], size: int
) -> tuple[list[Source], NDArray[np.int64]]:
    """Texts in batches of `size` through the tokenizer of the bundle at `path`, similar lengths together.

    Returns the batches, and the number in `texts` of each text in them. Raises `LoadError`, `RunError`.
    """
    import numpy as np

    from graphprune.text import load_tokenizer, tokenize

    if not texts or size < 1:
        raise RunError("there must be texts, and one or more in a batch")
    lengths = [len(ids) for ids in tokenize(load_tokenizer(path), texts)]
    order = np.argsort(lengths, kind="stable")
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    return [Source.of_texts(path, [texts[number] for number in part]) for part in parts], order
