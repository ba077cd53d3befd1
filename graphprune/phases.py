"""From the kernels of many calls to the time of every block: the numbers of a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from graphprune.attribution import AFTER, BEFORE, UNREAD, Place
from graphprune.errors import RunError
from graphprune.play import is_cache

if TYPE_CHECKING:
    from graphprune.kernels import SessionRun
    from graphprune.play import Call
    from graphprune.profiled import Profiled
    from graphprune.workload import Shape, Work

# Rounds that are run, and not counted, before those that are.
WARMUP = 2


@dataclass(frozen=True)
class KernelTime:
    """One node of the optimized graph: its name (original names where it has them), its op, and its share.

    `us` and `macs` are per call, as `count` is: how often it runs in one.
    """

    name: str
    op: str
    us: float
    count: float
    macs: float
    bytes: float


@dataclass(frozen=True)
class PartTime:
    """The kernels of a block, of a part of one, or of what stands around the blocks, per call.

    `share` is of all kernels' time. Bytes are those of activations and weights, read and written.
    """

    name: str
    us: float
    share: float
    macs: float
    bytes: float
    kernels: tuple[KernelTime, ...]
    parts: tuple[PartTime, ...] = ()

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second, two for each multiply-accumulate."""
        return 2 * self.macs / self.us / 1e3 if self.us else 0.0


@dataclass(frozen=True)
class Span:
    """One kernel in one call, for a timeline: its place, and microseconds since the call began."""

    name: str
    op: str
    owner: str
    part: str
    start: int
    us: int
    depth: int


@dataclass(frozen=True)
class Phase:
    """All calls of one file that are alike: `prefill`, `decode` (one more token with a cache) or `run`.

    Times are microseconds per call; of every kernel the mean over the middle half of `rounds`. `calls`
    counts the calls of one round. `kernel_us` is the time of all kernels, `between_us` what the runtime
    spends between them (its profiler's own work too), a mean over the middle half as well. `timeline` is
    the first call of one round.
    """

    file: str
    name: str
    calls: int
    rounds: int
    kernel_us: float
    between_us: float
    attributed: float
    blocks: tuple[PartTime, ...]
    outside: tuple[PartTime, ...]
    timeline: tuple[Span, ...] = ()

    @property
    def session_us(self) -> float:
        """A whole call of the session."""
        return self.kernel_us + self.between_us


@dataclass(eq=False)
class _Sums:
    """What one kernel took in the calls of one round."""

    op: str
    us: int = 0
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
    def kernel_us(self) -> int:
        return sum(sums.us for sums in self.kernels.values())


def phases_of(file: Profiled, calls: Sequence[Call], rounds: int) -> list[Phase]:
    """The phases of one file, whose session ran `calls` for `rounds` times after `WARMUP` more.

    Ends the file's profile. Raises `RunError` where that cannot be read, or holds no whole round.
    """
    names = [_phase(call) for call in calls]
    found: dict[str, dict[int, _Round]] = {name: {} for name in names}
    known: dict[tuple[str, tuple[Shape, ...]], Work] = {}
    runs = 0
    for runs, run in enumerate(file.finish(), 1):
        turn, position = divmod(runs - 1, len(calls))
        if turn >= WARMUP:
            _add(found[names[position]].setdefault(turn, _Round()), run, file, known)
    whole = runs // len(calls)
    if whole <= WARMUP:
        raise RunError(f"{file.session.name}: ONNX Runtime's profile holds no whole round: {runs} calls")
    return [
        _summed(file, name, names.count(name), [one for turn, one in found[name].items() if turn < whole])
        for name in found
    ]


def _phase(call: Call) -> str:
    caches = [name for name in call.session.inputs if is_cache(name)]
    if caches and all(call.feeds[name].size for name in caches):
        return "decode"
    return "prefill" if caches or any(map(is_cache, call.session.outputs)) else "run"


def _add(
    one: _Round, run: SessionRun, file: Profiled, known: dict[tuple[str, tuple[Shape, ...]], Work]
) -> None:
    one.session_us += run.us
    one.first = one.first or run
    for kernel in run.kernels:
        sums = one.kernels.setdefault(kernel.node, _Sums(kernel.op))
        work = file.work(kernel, known)
        sums.us += kernel.us
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


def _middle(values: Iterable[int]) -> float:
    """The mean of the middle half: as steady as a median, and finer than whole microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return sum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def _means(file: Profiled, rounds: Sequence[_Round], calls: int) -> list[tuple[Place, KernelTime]]:
    """All kernels with their places, in the order in which they ran."""
    found = []
    for node in dict.fromkeys(node for one in rounds for node in one.kernels):
        sums = [one.kernels[node] for one in rounds if node in one.kernels]
        us = _middle([one.us for one in sums] + [0] * (len(rounds) - len(sums))) / calls
        each = len(rounds) * calls
        count, macs, moved = (
            sum(getattr(one, what) for one in sums) / each for what in ("count", "macs", "bytes")
        )
        kernel = KernelTime(file.trail.readable(node), sums[0].op, us, count, macs, moved)
        found.append((file.places.get(node, Place(UNREAD)), kernel))
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
    places: Mapping[str, Place] = file.places
    spans = []
    for kernel in sorted(run.kernels, key=lambda kernel: (kernel.start, kernel.depth)):
        place = places.get(kernel.node, Place(UNREAD))
        name = file.trail.readable(kernel.node)
        start = kernel.start - run.start
        spans.append(Span(name, kernel.op, place.owner, place.part, start, kernel.span, kernel.depth))
    return tuple(spans)


def merged(phases: Iterable[Phase], which: Literal["blocks", "outside"]) -> tuple[PartTime, ...]:
    """The same parts of several phases as one, for one pass over all their calls."""
    listed = list(phases)
    total = sum(phase.kernel_us * phase.calls for phase in listed)
    parts = [_scaled(part, phase.calls) for phase in listed for part in getattr(phase, which)]
    return _added(parts, total)


def _scaled(part: PartTime, calls: int) -> PartTime:
    kernels = tuple(
        KernelTime(k.name, k.op, k.us * calls, k.count * calls, k.macs * calls, k.bytes * calls)
        for k in part.kernels
    )
    parts = tuple(_scaled(one, calls) for one in part.parts)
    return PartTime(
        part.name, part.us * calls, part.share, part.macs * calls, part.bytes * calls, kernels, parts
    )


def _added(parts: Iterable[PartTime], total: float) -> tuple[PartTime, ...]:
    groups: dict[str, list[PartTime]] = {}
    for part in parts:
        groups.setdefault(part.name, []).append(part)
    return tuple(_sum(name, group, total) for name, group in groups.items())


def _sum(name: str, group: Sequence[PartTime], total: float) -> PartTime:
    us = sum(part.us for part in group)
    return PartTime(
        name, us, us / total if total else 0.0,
        sum(part.macs for part in group), sum(part.bytes for part in group),
        tuple(sorted((kernel for part in group for kernel in part.kernels), key=lambda kernel: -kernel.us)),
        _added((inner for part in group for inner in part.parts), total),
    )  # fmt: skip
