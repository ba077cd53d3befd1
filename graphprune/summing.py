"""From the kernels of many calls to the time of every block: how the numbers of a profile come about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphprune.attribution import AFTER, BEFORE, UNREAD, Place
from graphprune.errors import RunError
from graphprune.phases import KernelTime, PartTime, Phase, Span

if TYPE_CHECKING:
    from graphprune.kernels import SessionRun
    from graphprune.play import Call
    from graphprune.profiled import Profiled
    from graphprune.profilercost import Cost
    from graphprune.workload import Shape, Work

# Rounds that are run, and not counted, before those that are.
WARMUP = 2


@dataclass(eq=False)
class _Sums:
    """What one kernel took in the calls of one round."""

    op: str
    provider: str
    type: str
    us: float = 0.0
    count: int = 0
    macs: int = 0
    bytes: int = 0


@dataclass(eq=False)
class _Round:
    """All calls of one phase in one round."""

    kernels: dict[str, _Sums] = field(default_factory=dict)
    session_us: int = 0
    first: SessionRun | None = None

    @property
    def kernel_us(self) -> float:
        return sum(sums.us for sums in self.kernels.values())


def phases_of(
    file: Profiled, calls: Sequence[Call], rounds: int, cost: Cost, bare: Sequence[Sequence[int]] = ()
) -> list[Phase]:
    """The phases of one file, whose session ran `calls` for `rounds` times after `WARMUP` more.

    `cost` is taken off every kernel. `bare` has for each round the nanoseconds of its calls without the
    profiler, where they were timed.
    Ends the file's profile. Raises `RunError` where that cannot be read, or holds no whole round.
    """
    names = [call.phase for call in calls]
    found: dict[str, dict[int, _Round]] = {name: {} for name in names}
    known: dict[tuple[str, tuple[Shape, ...]], Work] = {}
    runs = 0
    for runs, run in enumerate(file.finish(), 1):
        turn, position = divmod(runs - 1, len(calls))
        if turn >= WARMUP:
            _add(found[names[position]].setdefault(turn, _Round()), run, file, cost, known)
    whole = runs // len(calls)
    if whole <= WARMUP:
        raise RunError(f"{file.session.name}: ONNX Runtime's profile holds no whole round: {runs} calls")
    phases = []
    for name, turns in found.items():
        complete = [one for turn, one in turns.items() if turn < whole]
        phase = _summed(file, name, names.count(name), complete)
        phases.append(_compared(phase, complete, _of_phase(bare, names, name)))
    return phases


def _of_phase(bare: Sequence[Sequence[int]], names: Sequence[str], name: str) -> list[float]:
    """Microseconds of all calls of the phase `name` in every round, from those of all phases."""
    return [sum(ns for ns, one in zip(each, names, strict=True) if one == name) / 1e3 for each in bare]


def _compared(phase: Phase, rounds: Sequence[_Round], bare: Sequence[float]) -> Phase:
    """The phase, beside what its calls took in the rounds without the profiler."""
    if not bare:
        return phase
    unprofiled = _middle(bare)
    agreement = _middle(one.kernel_us for one in rounds) / unprofiled
    return replace(phase, unprofiled_us=unprofiled / phase.calls, agreement=agreement)


def _add(
    one: _Round, run: SessionRun, file: Profiled, cost: Cost, known: dict[tuple[str, tuple[Shape, ...]], Work]
) -> None:
    one.session_us += run.us
    one.first = one.first or run
    for kernel in run.kernels:
        sums = one.kernels.setdefault(kernel.node, _Sums(kernel.op, kernel.provider, kernel.type))
        work = file.work(kernel, known)
        sums.us += kernel.us - cost.of(kernel)
        sums.count += 1
        sums.macs += work.macs
        sums.bytes += work.bytes


def _summed(file: Profiled, name: str, calls: int, rounds: list[_Round]) -> Phase:
    kernels = _means(file, rounds, calls)
    total = sum(kernel.us for _, kernel in kernels)
    blocks, outside = _grouped(kernels, file.blocks, total)
    lost = sum(kernel.us for place, kernel in kernels if place.owner == UNREAD)
    usual = sorted(rounds, key=lambda one: one.session_us)[len(rounds) // 2]
    return Phase(
        file.session.name, name, calls, len(rounds), total,
        _middle(one.session_us - one.kernel_us for one in rounds) / calls,
        1 - lost / total if total else 0.0, blocks, outside, _timeline(file, usual),
    )  # fmt: skip


def _middle(values: Iterable[float]) -> float:
    """The mean of the middle half: as steady as a median, and finer than whole microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return sum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def _means(file: Profiled, rounds: Sequence[_Round], calls: int) -> list[tuple[Place, KernelTime]]:
    """All kernels with their places, in the order in which they ran."""
    found = []
    for node in dict.fromkeys(node for one in rounds for node in one.kernels):
        sums = [one.kernels[node] for one in rounds if node in one.kernels]
        us = max(0.0, _middle([one.us for one in sums] + [0.0] * (len(rounds) - len(sums))) / calls)
        each = len(rounds) * calls
        count, macs, moved = (
            sum(getattr(one, what) for one in sums) / each for what in ("count", "macs", "bytes")
        )
        name, first = file.readable(node), sums[0]
        kernel = KernelTime(name, first.op, us, count, macs, moved, first.provider, first.type)
        found.append((file.place(node), kernel))
    return found


def _grouped(
    kernels: Sequence[tuple[Place, KernelTime]], order: Sequence[str], total: float
) -> tuple[tuple[PartTime, ...], tuple[PartTime, ...]]:
    """Blocks in the model's order, and what is around them in the order in which it mostly runs."""
    inside = [(place, kernel) for place, kernel in kernels if place.inside]
    around = [(place, kernel) for place, kernel in kernels if not place.inside]
    blocks = _parts(inside, lambda place: place.owner, order, total, split=True)
    return blocks, _parts(around, lambda place: place.owner, (*BEFORE, *AFTER, UNREAD), total)


def _parts(
    kernels: Iterable[tuple[Place, KernelTime]],
    name: Callable[[Place], str],
    order: Sequence[str],
    total: float,
    *,
    split: bool = False,
) -> tuple[PartTime, ...]:
    groups: dict[str, list[tuple[Place, KernelTime]]] = {one: [] for one in order}
    for place, kernel in kernels:
        groups.setdefault(name(place), []).append((place, kernel))
    return tuple(_part(one, group, total, split) for one, group in groups.items() if group)


def _part(name: str, group: Sequence[tuple[Place, KernelTime]], total: float, split: bool) -> PartTime:
    kernels = tuple(sorted((kernel for _, kernel in group), key=lambda kernel: -kernel.us))
    us = sum(kernel.us for kernel in kernels)
    parts = _parts(group, lambda place: place.part, (), total) if split else ()
    return PartTime(
        name, us, us / total if total else 0.0,
        sum(kernel.macs for kernel in kernels), sum(kernel.bytes for kernel in kernels), kernels, parts,
    )  # fmt: skip


def _timeline(file: Profiled, one: _Round) -> tuple[Span, ...]:
    run = one.first
    if run is None:
        return ()
    spans = []
    for kernel in sorted(run.kernels, key=lambda kernel: (kernel.start, kernel.depth)):
        place = file.place(kernel.node)
        name = file.readable(kernel.node)
        start = kernel.start - run.start
        spans.append(Span(name, kernel.op, place.owner, place.part, start, kernel.span, kernel.depth))
    return tuple(spans)
