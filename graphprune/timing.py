"""Time models against each other: speed, size on the disk, time to load, memory.

How they are timed is in `turns`, how sure a ratio is in `intervals`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.measuring import Asked, Measured, Progress, measure
from graphprune.play import Source
from graphprune.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Timing:
    """One model at one size of input: `median` and `spread` (half the range between the quartiles), in ms.

    `phase` is `prefill` (all that comes before the first new token) and `decode` (one further token) for
    models with a cache, else `run`. `ratio` is that of the times to those of the baseline in the same
    rounds, `low` and `high` its 95% interval, which takes `intervals.MIN_LOADS` loads; all three are None
    for the baseline, and where it has no times. `peak_mb` is the most memory that loading the
    model and one pass take (`footprint.Usage`), `macs` counts the multiply-accumulates of what is timed,
    and `of_peak` is the share of the machine's peak at which it computes them (`roofline.peak`); None where
    they were not measured.
    """

    model: str
    batch: int
    sequence: int
    phase: str
    rounds: int
    median: float
    spread: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    peak_mb: float | None = None
    macs: float | None = None
    of_peak: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens read in the prefill, or made; None for models without a cache."""
        tokens = {"prefill": self.batch * self.sequence, "decode": self.batch}.get(self.phase)
        return tokens / self.median * 1e3 if tokens and self.median else None

    @property
    def gmacs_per_s(self) -> float | None:
        """Billions of multiply-accumulates a second."""
        return self.macs / self.median / 1e6 if self.macs and self.median else None


@dataclass(frozen=True)
class ModelCost:
    """One model, at any size of input: bytes on the disk, and the median of the times to load it.

    `load_ms` and its `spread`, as of a timing, are those of fresh processes, files in the system's cache;
    `loaded_mb` is the memory that it takes then. None where they were not measured.
    """

    model: str
    bytes: int
    load_ms: float | None = None
    spread: float | None = None
    loaded_mb: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A size of input that a model was not timed at, and why."""

    model: str
    batch: int
    sequence: int
    reason: str


@dataclass(frozen=True)
class Bench:
    """What `bench` found. Timings are in the order of sources, phases and models; ratios are to `baseline`.

    `notes` say what could not be measured.
    """

    baseline: str
    timings: tuple[Timing, ...]
    models: tuple[ModelCost, ...]
    left_out: tuple[LeftOut, ...]
    settings: Settings
    loads: int
    warmup: int
    steps: int
    notes: tuple[str, ...] = ()


def bench(
    models: Sequence[str | Path],
    source: Source | Sequence[Source] | None = None,
    *,
    rounds: int = 50,
    loads: int = 10,
    warmup: int = 2,
    steps: int = 0,
    baseline: int = 0,
    settings: Settings | None = None,
    footprint: bool = True,
    roofline: bool = False,
    on_progress: Progress = lambda what, share: None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Bench:
    """Time one pass over the files of each model, in turns, on one source or on several.

    Every model is loaded `loads` times, and runs each time so many rounds, after `warmup` others, that
    there are `rounds` in all, or a few more. `steps` tokens with the cache are part of it for models that
    take one. `baseline` is the place among the models of the one that ratios are to. `settings` say on what
    and how they run; one thread on the CPU by default. `footprint` asks for the memory and the time to
    load, in processes of their own; `roofline` for the multiply-accumulates, and the share of the machine's
    peak at which they are computed. `on_progress` is told what is going on, and the share that is done.
    `clock` tells nanoseconds; `time.process_time_ns` makes CPU time of it, which other programs hardly
    change, but threads that wait do.

    Raises `LoadError`; `RunError`, also where a model takes none of the sources or fails after it has run.
    """
    from graphprune.turns import Plan

    if rounds < 2 or loads < 1 or warmup < 0 or steps < 0:
        raise RunError("a benchmark takes 2 rounds and 1 load at least, and no negative warm-up or steps")
    if not 0 <= baseline < len(models):
        raise RunError(f"the baseline is one of the {len(models)} models, counted from 0, not {baseline}")
    given = (source,) if isinstance(source, Source) else tuple(source or (Source(),))
    loads = min(loads, rounds)
    plan = Plan(-(-rounds // loads), loads, warmup, steps, settings or Settings(threads=1), clock)
    asked = Asked(tuple(map(Path, models)), given, plan, footprint=footprint, roofline=roofline)
    return _found(asked, measure(asked, on_progress), baseline)


def _found(asked: Asked, found: Measured, baseline: int) -> Bench:
    names = [str(path) for path in asked.models]
    plan = asked.plan
    return Bench(
        names[baseline],
        tuple(_timings(asked, found, baseline)),
        tuple(_cost(name, found, model) for model, name in enumerate(names)),
        tuple(
            LeftOut(names[model], asked.sources[cell].batch, asked.sources[cell].sequence, reason)
            for (cell, model), reason in sorted(found.turns.left_out.items())
        ),
        plan.settings, plan.loads, plan.warmup, plan.steps, tuple(found.notes),
    )  # fmt: skip


def _timings(asked: Asked, found: Measured, baseline: int) -> Iterator[Timing]:
    for cell, source in enumerate(asked.sources):
        times = {model: found.turns.times.get((cell, model), {}) for model in range(len(asked.models))}
        for phase in dict.fromkeys(phase for one in times.values() for phase in one):
            for model, path in enumerate(asked.models):
                if phase not in times[model]:
                    continue
                figures = _figures(times[model][phase], times[baseline].get(phase))
                used = found.usages.get((cell, model))
                products = found.products.get((cell, model), {}).get(phase)
                yield Timing(
                    str(path), source.batch, source.sequence, phase, *figures,
                    peak_mb=used.peak_mb if used else None,
                    macs=products.macs if products else None,
                    of_peak=products.least_ms / figures[1] if products else None,
                )  # fmt: skip


def _figures(
    times: list[list[float]], base: list[list[float]] | None
) -> tuple[int, float, float, float | None, float | None, float | None]:
    """How many rounds, median, spread, ratio, and its interval."""
    import numpy as np

    from graphprune.intervals import ratio_interval

    own = np.asarray(times)
    ratio = (None,) * 3 if base is None or base is times else ratio_interval(own, np.asarray(base))
    return own.size, *_median(own.ravel()), *ratio


def _cost(name: str, found: Measured, model: int) -> ModelCost:
    import numpy as np

    usages = found.loads.get(model, [])
    if not usages:
        return ModelCost(name, found.bytes[model])
    loaded = [one.loaded_mb for one in usages if one.loaded_mb is not None]
    return ModelCost(
        name, found.bytes[model], *_median([one.load_ms for one in usages]),
        float(np.median(loaded)) if loaded else None,
    )  # fmt: skip


def _median(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The median, and half the range between the quartiles."""
    import numpy as np

    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return median, (high - low) / 2
