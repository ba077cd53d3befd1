"""All that `bench` measures of models, on all sources: memory, times, products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import GraphpruneError, RunError
from graphprune.session import runnable
from graphprune.turns import Plan, Runnable, Turns, phase_names, take_turns

if TYPE_CHECKING:
    from graphprune.footprint import Usage
    from graphprune.play import Source
    from graphprune.turns import Pair

# Told what is going on, and the share that is done.
Progress = Callable[[str, float], None]
# Fresh processes that load each model, at least.
_PROCESSES = 3


@dataclass(frozen=True)
class Products:
    """Multiply-accumulates, and the milliseconds that the machine would take for them at its peak."""

    macs: float
    least_ms: float

    def __add__(self, other: Products) -> Products:
        return Products(self.macs + other.macs, self.least_ms + other.least_ms)

    def by(self, calls: int) -> Products:
        """One of so many calls."""
        return Products(self.macs / calls, self.least_ms / calls)


@dataclass(frozen=True)
class Asked:
    """Which models on which sources, how often, and what beside the time."""

    models: tuple[Path, ...]
    sources: tuple[Source, ...]
    plan: Plan
    footprint: bool
    roofline: bool

    def pairs(self) -> Iterator[Pair]:
        """Every source with every model."""
        return ((cell, model) for cell in range(len(self.sources)) for model in range(len(self.models)))


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found: by the place of the model, and by those of source and model (`Pair`).

    `loads` has every fresh process, `usages` one for each pair; `notes` say what could not be measured.
    """

    turns: Turns
    bytes: tuple[int, ...]
    loads: dict[int, list[Usage]] = field(default_factory=dict)
    usages: dict[Pair, Usage] = field(default_factory=dict)
    products: dict[Pair, dict[str, Products]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(asked: Asked, on_progress: Progress) -> Measured:
    """Measure all of it. Raises `LoadError`, `RunError` (`turns.take_turns`)."""
    from graphprune.footprint import disk_bytes

    models = [Runnable(path, runnable(path)) for path in asked.models]
    found = Measured(Turns(), tuple(disk_bytes(path) for path in asked.models))
    work = _Work(asked, on_progress)
    failed = _footprints(asked, found, work) if asked.footprint else {}
    if asked.footprint and asked.plan.settings.providers != ("cpu",):
        found.notes.append("memory is the computer's own: that of another device is not measured")
    take_turns(models, asked.sources, asked.plan, found.turns, lambda: work.done("timing"))
    for (cell, model), reason in failed.items():
        if (cell, model) in found.turns.times:
            found.notes.append(f"memory was not measured: {reason}")
    if asked.roofline:
        for pair in found.turns.times:
            work.done("counting")
            _count(asked, pair, found)
    return found


class _Work:
    """How much there is to do, in rounds and the like, and how much is done."""

    def __init__(self, asked: Asked, on_progress: Progress) -> None:
        pairs, plan = len(list(asked.pairs())), asked.plan
        processes = len(_cells(asked)) * len(asked.models)
        self._all = plan.loads * (plan.warmup + plan.rounds) * len(asked.sources)
        self._all += (processes if asked.footprint else 0) + (pairs if asked.roofline else 0)
        self._done, self._tell = 0, on_progress

    def done(self, what: str) -> None:
        """Tell that one more piece of `what` is done."""
        self._done += 1
        self._tell(what, min(self._done / self._all, 1.0))


def _footprints(asked: Asked, found: Measured, work: _Work) -> dict[Pair, str]:
    """Run every pair in a process of its own, some again where there are few; say what failed.

    What the system ends there it would end here, too, and all with it: such a pair is left out.
    """
    from graphprune.footprint import EndedError, usage

    failed: dict[Pair, str] = {}
    for cell in _cells(asked):
        for model, path in enumerate(asked.models):
            work.done("measuring memory")
            if (cell, model) in found.turns.left_out | failed:
                continue
            try:
                one = usage(path, asked.sources[cell], asked.plan.settings, steps=asked.plan.steps)
            except EndedError as error:
                found.turns.left_out[cell, model] = str(error)
            except RunError as error:
                failed[cell, model] = str(error)
            else:
                found.usages.setdefault((cell, model), one)
                found.loads.setdefault(model, []).append(one)
    return failed


def _cells(asked: Asked) -> list[int]:
    """The sources to run in processes of their own, the first ones again where there are few."""
    count = len(asked.sources)
    return [cell % count for cell in range(max(_PROCESSES, count))]


def _count(asked: Asked, pair: Pair, found: Measured) -> None:
    """The products of every phase, by the kernels and shapes of one profiled run."""
    from graphprune.profiler import profile
    from graphprune.roofline import computing_us, peak

    cell, model = pair
    path, source, plan = asked.models[model], asked.sources[cell], asked.plan
    try:
        profiled = profile(path, source, rounds=1, steps=plan.steps, settings=plan.settings).phases
        products: dict[str, Products] = {}
        calls: Counter[str] = Counter()
        for phase, name in zip(profiled, phase_names([one.name for one in profiled]), strict=True):
            if phase.file in found.turns.files[model]:
                calls[name] += phase.calls
                for kernel in (k for part in (*phase.blocks, *phase.outside) for k in part.kernels):
                    least = computing_us(kernel, partial(peak, plan.settings))
                    one = products.get(name, Products(0, 0))
                    products[name] = one + Products(kernel.macs * phase.calls, least * phase.calls / 1e3)
    except GraphpruneError as error:
        found.notes.append(f"the multiply-accumulates of {path} were not counted: {error}")
        return
    found.products[pair] = {
        name: one.by(calls[name]) if name == "decode" else one for name, one in products.items()
    }
