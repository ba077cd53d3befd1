"""How fast the model that was found really is: timed against the dense one, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.play import Source
    from graphprune.settings import Settings
    from graphprune.timing import Timing

# Seconds that timing may take, about; and how many rounds it has at least and at most.
_SECONDS, _FEWEST, _MOST, _LOADS = 12.0, 8, 60, 4


@dataclass(frozen=True)
class TimedSize:
    """One size and phase: milliseconds of both models, their ratio, and its 95% interval if known."""

    batch: int
    sequence: int
    phase: str
    dense_ms: float
    ms: float
    ratio: float
    low: float | None = None
    high: float | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model."""
        return 1 / self.ratio


@dataclass(frozen=True)
class Timed:
    """All sizes; `share` is the mean of their ratios, which is what costs are in, too."""

    sizes: tuple[TimedSize, ...]

    @property
    def share(self) -> float:
        """The latency as a share of the dense model's."""
        return sum(one.ratio for one in self.sizes) / len(self.sizes)

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model."""
        return 1 / self.share

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"speedup": self.speedup, "sizes": [asdict(one) for one in self.sizes]}

    @staticmethod
    def of_json(said: Mapping[str, Any]) -> Timed:
        """What `to_json` made."""
        return Timed(tuple(TimedSize(**one) for one in said["sizes"]))


def time_both(
    dense: Path, model: Path, sources: Sequence[Source], settings: Settings, steps: int, seconds: float
) -> Timed:
    """Time a model against the dense one, whose calls take `seconds`. Raises `LoadError`, `RunError`."""
    from graphprune.timing import bench

    rounds = int(min(max(_SECONDS / max(2 * seconds * len(sources), 1e-6), _FEWEST), _MOST))
    found = bench(
        [dense, model], sources, rounds=rounds, loads=_LOADS, steps=steps, settings=settings, footprint=False
    )
    before = {_cell(one): one for one in found.timings if one.ratio is None}
    after = [one for one in found.timings if one.ratio is not None]
    return Timed(tuple(_size(before[_cell(one)], one) for one in after))


def _cell(one: Timing) -> tuple[int, int, str]:
    return one.batch, one.sequence, one.phase


def _size(dense: Timing, one: Timing) -> TimedSize:
    ratio = one.ratio if one.ratio is not None else one.median / dense.median
    return TimedSize(one.batch, one.sequence, one.phase, dense.median, one.median, ratio, one.low, one.high)
