"""Where a model spends its time, block by block.

ONNX Runtime's own profiler times the kernels of the graph that its optimizer made. Every kernel is
followed back to the nodes that it was made from, and by them to the blocks that recovery found in
the original.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.play import Source, play
from graphprune.settings import Settings
from graphprune.starting import first_line

if TYPE_CHECKING:
    from graphprune.phases import PartTime, Phase
    from graphprune.play import Call
    from graphprune.profiled import Profiled
    from graphprune.profilercost import Cost
    from graphprune.session import Session

# Rounds in a row with the profiler, before as many without.
_STRETCH = 5
# Events that one profile may hold: ONNX Runtime drops what comes after a million, and they take memory.
_EVENTS = 200_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """What `profile` found: the phases of one pass over all files, in the order in which they run.

    `profiler_us` is what ONNX Runtime's profiler itself took within every kernel, and was taken off.
    """

    settings: Settings
    phases: tuple[Phase, ...]
    profiler_us: float = 0.0

    @property
    def total_us(self) -> float:
        """The kernels' time in one pass over all calls."""
        return sum(phase.kernel_us * phase.calls for phase in self.phases)

    @property
    def attributed(self) -> float:
        """The share of it that has a named place."""
        us = sum(phase.attributed * phase.kernel_us * phase.calls for phase in self.phases)
        return us / self.total_us if self.total_us else 0.0

    @property
    def layers(self) -> tuple[PartTime, ...]:
        """The same blocks, those of every layer together."""
        from graphprune.phases import gathered

        return gathered(self.blocks)

    @property
    def stacks(self) -> tuple[PartTime, ...]:
        """The same layers, those of every stack together."""
        from graphprune.phases import gathered

        return gathered(self.layers)

    @property
    def blocks(self) -> tuple[PartTime, ...]:
        """The blocks of all phases in one pass over all calls."""
        from graphprune.phases import merged

        return merged(self.phases, "blocks")

    @property
    def outside(self) -> tuple[PartTime, ...]:
        """What is around the blocks, in the same pass."""
        from graphprune.phases import merged

        return merged(self.phases, "outside")


def profile(
    path: str | Path,
    source: Source | None = None,
    *,
    rounds: int = 20,
    steps: int = 0,
    settings: Settings | None = None,
) -> Profile:
    """Time every kernel of all files of a bundle, and say which block it serves.

    After a warm-up, every call of `play` runs `rounds` times (fewer where the profile would become too
    large) on the inputs that it had, and as often in a session without the profiler, which tells how well
    the kernels add up (see `Phase.unprofiled_us`). `steps` are further tokens for models that take a cache.
    `settings` say on what and how it is run; one thread on the CPU by default. Everything is written to a
    temporary folder. Raises `LoadError`, `RunError`.
    """
    from tempfile import TemporaryDirectory

    from graphprune.bundle import load
    from graphprune.profiled import open_profiled
    from graphprune.profilercost import measure
    from graphprune.survey import inspect

    settings = settings or Settings(threads=1)
    if rounds < 1 or steps < 0:
        raise RunError("a profile takes 1 round at least, and no negative steps")
    bundle = load(path)
    surveys = {survey.name: survey.architecture for survey in inspect(bundle)}
    try:
        with TemporaryDirectory(prefix="graphprune.", ignore_cleanup_errors=True) as folder:
            files = [
                open_profiled(file, surveys[file.name], Path(folder) / str(i), settings)
                for i, file in enumerate(bundle.files)
            ]
            cost = measure(Path(folder) / "cost", settings)
            return _profiled(files, source or Source(), rounds, steps, settings, cost)
    except OSError as error:
        raise RunError(
            f"cannot write temporary files to profile {path}: {error.strerror or error}"
        ) from error


def _profiled(
    files: Sequence[Profiled], source: Source, rounds: int, steps: int, settings: Settings, cost: Cost
) -> Profile:
    from graphprune.session import in_turn
    from graphprune.summing import phases_of

    _warn_of_launches(files)
    by_name = {file.session.name: file for file in files}
    with _original_names(files):
        calls = play(in_turn(file.session for file in files), source, steps=steps)
        rounds = max(1, min(rounds, _EVENTS // max(1, sum(by_name[c.session.name].size for c in calls))))
        bare = _run(calls, by_name, rounds)
    phases: list[Phase] = []
    for name in dict.fromkeys(call.session.name for call in calls):
        own = [i for i, call in enumerate(calls) if call.session.name == name]
        times = [[each[i] for i in own] for each in bare] if by_name[name].bare else []
        phases += phases_of(by_name[name], [calls[i] for i in own], rounds, cost, times)
    return Profile(settings, tuple(phases), cost.within)


def _run(calls: Sequence[Call], files: Mapping[str, Profiled], rounds: int) -> list[list[int]]:
    """Run all calls of a play for `rounds` times after a warm-up; for each round, what each call takes bare.

    Sessions with and without the profiler take turns of a few rounds: so both meet the same disturbances,
    and mostly find in the processor's caches what they left there.
    """
    from graphprune.summing import WARMUP

    profiled = [_ready(call.session, call) for call in calls]
    bare = [_ready(files[call.session.name].bare, call) for call in calls]
    for _ in range(WARMUP - 1):  # the play was a round, too
        _timed(profiled)
    for _ in range(WARMUP):
        _timed(bare)
    times: list[list[int]] = []
    while len(times) < rounds:
        stretch = range(min(_STRETCH, rounds - len(times)))
        for _ in stretch:
            _timed(profiled)
        times += [_timed(bare) for _ in stretch]
    return times


def _ready(session: Session | None, call: Call) -> Callable[[], object]:
    """The call again, in this session; nothing without one."""
    if session is None:
        return lambda: None
    name, once = session.name, session.prepared(call.feeds)

    def run() -> object:
        try:
            return once()
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{name}: {first_line(error)}") from error

    return run


def _timed(calls: Iterable[Callable[[], object]]) -> list[int]:
    """Nanoseconds of each call."""
    times = []
    for call in calls:
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return times


def _warn_of_launches(files: Iterable[Profiled]) -> None:
    if os.environ.get("CUDA_LAUNCH_BLOCKING") != "1" and any(f.session.providers[0] == "cuda" for f in files):
        log.warning(
            "kernels on cuda are timed as they are started, not as they run, unless onnxruntime was built to "
            "profile CUDA: set CUDA_LAUNCH_BLOCKING=1"
        )


@contextmanager
def _original_names(files: Sequence[Profiled]) -> Iterator[None]:
    """The runtime's errors, with the names that the nodes have in the file."""
    try:
        yield
    except RunError as error:
        text = str(error)
        file = next((file for file in files if text.startswith(f"{file.session.name}: ")), None)
        raise RunError(file.trail.readable(text) if file else text) from error
