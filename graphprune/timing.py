"""Time models against each other, fairly: in turns, warmed up, with an interval for each ratio.

Whatever drifts (clock speed, other programs) meets all models alike, because every round runs
each of them once, in an order drawn anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.play import Source, play

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from graphprune.play import Call
    from graphprune.settings import Settings

_RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """One model: `median` and `spread` (half the range between the quartiles), in milliseconds.

    `ratio` is its median by that of the first model, `low` and `high` the 95% interval of it;
    all three are None for the first.
    """

    model: str
    rounds: int
    median: float
    spread: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def bench(
    models: Sequence[str | Path],
    source: Source | None = None,
    *,
    rounds: int = 50,
    warmup: int = 5,
    settings: Settings | None = None,
    steps: int = 0,
    on_round: Callable[[], None] = lambda: None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> tuple[Timing, ...]:
    """Time one pass over all files of each model, `rounds` times after `warmup` more.

    `steps` tokens with the cache are part of it for models that take one. `on_round` is called
    after every round, warm-up included. `clock` tells nanoseconds; `time.process_time_ns` makes CPU
    time of it, which other programs hardly change, but threads that wait do. Raises `LoadError`, `RunError`.
    """
    from graphprune.session import open_sessions

    if rounds < 2 or warmup < 0:
        raise RunError("a benchmark takes 2 rounds at least, and no negative warm-up")
    plays = [play(open_sessions(path, settings), source or Source(), steps=steps) for path in models]
    times: list[list[float]] = [[] for _ in plays]
    order = list(range(len(plays)))
    shuffled = random.Random(0)
    for turn in range(warmup + rounds):
        shuffled.shuffle(order)
        for index in order:
            elapsed = _milliseconds(plays[index], clock)
            if turn >= warmup:
                times[index].append(elapsed)
        on_round()
    return tuple(_timing(str(path), one, times[0]) for path, one in zip(models, times, strict=True))


def _milliseconds(calls: Sequence[Call], clock: Callable[[], int]) -> float:
    """Run all calls of a play again, on the inputs that they had; only the runtime is timed."""
    total = 0
    for call in calls:
        runtime, feeds = call.session.runtime, {name: call.feeds[name] for name in call.session.inputs}
        start = clock()
        runtime.run(None, feeds)
        total += clock() - start
    return total / 1e6


def _timing(model: str, times: list[float], first: list[float]) -> Timing:
    import numpy as np

    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    if times is first:
        return Timing(model, len(times), median, (high - low) / 2)
    return Timing(model, len(times), median, (high - low) / 2, *ratio_interval(times, first))


def ratio_interval(times: Sequence[float], first: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and its 95% bootstrap interval over rounds (Efron, 1979).

    The rounds are resampled in pairs, since both times of a round were taken side by side.
    """
    import numpy as np
    from scipy.stats import bootstrap

    def ratio(one: NDArray[np.float64], other: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.median(one, axis=axis) / np.median(other, axis=axis)

    pairs = (np.asarray(times), np.asarray(first))
    interval = bootstrap(
        pairs,
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(ratio(*pairs)), float(interval.low), float(interval.high)
