"""What blocks, layers and runs of layers do to the stream, added up batch by batch.

Only sums are kept, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from graphprune.importance.streams import TappedFile, open_tapped, play_tapped

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from graphprune.importance.streams import Rows, StreamRun
    from graphprune.play import Source
    from graphprune.settings import Settings
    from graphprune.taps import Tap

    Values = NDArray[np.float64]

# The most layers in a row that angular distances are taken over.
LONGEST = 8


@dataclass
class Mean:
    """The mean of what was added so far; without any, `why` says for what reason."""

    total: float = 0.0
    count: int = 0
    why: str = ""

    def add(self, values: Values) -> None:
        """Count further values."""
        self.total += float(values.sum())
        self.count += len(values)

    @property
    def finite(self) -> bool:
        """Whether all that was added were numbers."""
        return self.total - self.total == 0

    @property
    def value(self) -> float | None:
        """The mean; None without a value, or where one was no number."""
        return self.total / self.count if self.count and self.finite else None

    @property
    def reason(self) -> str:
        """Why there is no mean; "" where there is one."""
        if not self.finite:
            return "the stream is not finite"
        return "" if self.count else self.why


@dataclass(frozen=True, eq=False)
class Change:
    """What one block, one layer or a run of layers does in one file: the mean of each criterion.

    `id` is that of the block, or `encoder.2`; of a run, that of its first layer, and `length` their number.
    """

    file: str
    id: str
    kind: str
    means: dict[str, Mean]
    length: int = 1

    @property
    def finite(self) -> bool:
        """Whether the stream was finite so far."""
        return all(mean.finite for mean in self.means.values())


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures changes of the stream: `add` runs the model on further inputs.

    `blocks`, `layers` and `runs` (only where angular distances are asked for) hold what was found so far, in
    the order of the stream; in every file in which they ran. `broken` has the ids of those at which a stream
    was not finite, with the numbers of these rows in their batch.
    """

    files: tuple[TappedFile, ...]
    by: tuple[str, ...]
    found: dict[tuple[str, str, str, int], Change] = field(default_factory=dict)
    broken: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[Change, ...]:
        """The blocks."""
        return self._of("block")

    @property
    def layers(self) -> tuple[Change, ...]:
        """The layers."""
        return self._of("layer")

    @property
    def runs(self) -> tuple[Change, ...]:
        """Every run of one to `LONGEST` layers of a stack, but never all of them."""
        return self._of("run")

    def _of(self, level: str) -> tuple[Change, ...]:
        return tuple(change for key, change in self.found.items() if key[0] == level)

    def add(self, source: Source) -> None:
        """Run the files on `source` and count what happens. Raises `RunError` where they do not run."""
        for run in play_tapped(self.files, source):
            for tap in run.file.taps.blocks:
                self._count(run, self._change("block", run, tap, tap.block.kind), tap, tap)
            for tap in run.file.taps.layers:
                self._count(run, self._change("layer", run, tap, "layer"), tap, tap)
            if "angular" in self.by:
                for first, last, length in _stretches(run.file.taps.layers):
                    change = self._change("run", run, first, "layers", length)
                    self._angular(run, change.means["angular"], first, last)

    def _change(self, level: str, run: StreamRun, tap: Tap, kind: str, length: int = 1) -> Change:
        file = run.file.session.name
        names = ("angular",) if level == "run" else self.by
        made = Change(file, tap.id, kind, {name: Mean() for name in names}, length)
        return self.found.setdefault((level, file, tap.id, length), made)

    def _count(self, run: StreamRun, change: Change, first: Tap, last: Tap) -> None:
        """All criteria of a block or layer on one call."""
        finite = change.finite
        if "influence" in self.by:
            rows, reason = run.rows(last, first.before, last.after)
            _add(change.means["influence"], rows, reason, _turns)
        if "norm" in self.by:
            after = last.after if change.kind == "layer" else last.sum
            rows, reason = run.rows(last, first.before, after) if after or last.reason else ((), _INSIDE)
            _add(change.means["norm"], rows, reason, _growths)
        if "angular" in self.by:
            self._angular(run, change.means["angular"], first, last)
        if finite and not change.finite:
            self.broken[change.id] = run.broken(first.before) or run.broken(last.after)

    def _angular(self, run: StreamRun, mean: Mean, first: Tap, last: Tap) -> None:
        causal = last.stack.name.startswith("decoder")  # `naming` calls those so that look only back
        ends = last if not first.reason else first
        rows, reason = run.rows(ends, first.before, last.after, last=causal)
        _add(mean, rows, reason, _angles)


_INSIDE = "what its branch adds is inside of the node that joins it to the stream"


def open_meter(path: str | Path, by: tuple[str, ...], settings: Settings | None = None) -> Meter:
    """Load a bundle to measure the criteria `by` (of `criteria.STREAMED`). Raises `LoadError`, `RunError`."""
    return Meter(open_tapped(path, settings, sums="norm" in by), by)


def _stretches(layers: Sequence[Tap]) -> Iterator[tuple[Tap, Tap, int]]:
    """The first and the last layer of every run within a stack, and how many they are."""
    for _, group in groupby(layers, key=lambda tap: tap.stack):
        taps = list(group)
        for length in range(1, min(LONGEST, len(taps) - 1) + 1):
            for start in range(len(taps) - length + 1):
                yield taps[start], taps[start + length - 1], length


def _add(mean: Mean, rows: tuple[Rows, ...], reason: str, values: Callable[..., Values]) -> None:
    if reason:
        mean.why = reason
    else:
        mean.add(values(*rows))


def _turns(before: Rows, after: Rows) -> Values:
    """1 − cosine."""
    import numpy as np

    from graphprune.compare import cosines

    return np.maximum(1 - cosines(before, after), 0.0)


def _angles(before: Rows, after: Rows) -> Values:
    """The angle as a share of half a turn."""
    import numpy as np

    from graphprune.compare import cosines

    found: Values = np.arccos(np.clip(cosines(before, after), -1, 1)) / np.pi
    return found


def _growths(before: Rows, after: Rows) -> Values:
    """The length of what came to it, by its own; where that is 0 there is no such share."""
    import numpy as np

    lengths = np.linalg.norm(before, axis=-1)
    there = lengths != 0
    with np.errstate(invalid="ignore"):  # infinities
        found: Values = np.linalg.norm((after - before)[there], axis=-1) / lengths[there]
    return found
