"""The numbers of a profile: kernels, parts, blocks, layers, stacks, and the phases that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class KernelTime:
    """One node of the optimized graph: its name (original names where it has them), its op, and its share.

    `us` and `macs` are per call, as `count` is: how often it runs in one. `provider` is the short name of
    the provider that ran it, `type` ONNX Runtime's name of the element type of its first input.
    """

    name: str
    op: str
    us: float
    count: float
    macs: float
    bytes: float
    provider: str = "cpu"
    type: str = ""


@dataclass(frozen=True)
class PartTime:
    """The kernels of a stack, layer, block or part of one, or of what stands around the blocks, per call.

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

    `unprofiled_us` is a whole call of a session without the profiler, which ran in turns with this one,
    and `agreement` the time of all kernels by that: how well the profile adds up. Both are of whole rounds,
    with all that disturbed them, the mean over their middle half again; None where the model is
    too large to be loaded twice for it, or a provider compiles it.
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
    unprofiled_us: float | None = None
    agreement: float | None = None

    @property
    def session_us(self) -> float:
        """A whole call of the session that is profiled."""
        return self.kernel_us + self.between_us

    @property
    def layers(self) -> tuple[PartTime, ...]:
        """The blocks of every layer (`encoder.0`) together; its `parts` are the blocks."""
        return gathered(self.blocks)

    @property
    def stacks(self) -> tuple[PartTime, ...]:
        """The layers of every stack (`encoder`) together; its `parts` are the layers."""
        return gathered(self.layers)


def gathered(parts: Iterable[PartTime]) -> tuple[PartTime, ...]:
    """Blocks as layers, layers as stacks: parts whose names agree up to the last dot, together."""
    groups: dict[str, list[PartTime]] = {}
    for part in parts:
        groups.setdefault(part.name.rpartition(".")[0], []).append(part)
    return tuple(_whole(name, group, tuple(group)) for name, group in groups.items())


def merged(phases: Iterable[Phase], which: Literal["blocks", "outside"]) -> tuple[PartTime, ...]:
    """The same parts of several phases as one, for one pass over all their calls."""
    listed = list(phases)
    total = sum(phase.kernel_us * phase.calls for phase in listed)
    parts = [_scaled(part, phase.calls) for phase in listed for part in getattr(phase, which)]
    return _added(parts, total)


def _scaled(part: PartTime, calls: int) -> PartTime:
    """All calls of a round, from one."""
    kernels = tuple(
        replace(k, us=k.us * calls, count=k.count * calls, macs=k.macs * calls, bytes=k.bytes * calls)
        for k in part.kernels
    )
    return replace(
        part, us=part.us * calls, macs=part.macs * calls, bytes=part.bytes * calls, kernels=kernels,
        parts=tuple(_scaled(one, calls) for one in part.parts),
    )  # fmt: skip


def _added(parts: Iterable[PartTime], total: float) -> tuple[PartTime, ...]:
    groups: dict[str, list[PartTime]] = {}
    for part in parts:
        groups.setdefault(part.name, []).append(part)
    sums = []
    for name, group in groups.items():
        inner = _added((inner for part in group for inner in part.parts), total)
        whole = _whole(name, group, inner)
        sums.append(replace(whole, share=whole.us / total if total else 0.0))
    return tuple(sums)


def _whole(name: str, group: Sequence[PartTime], parts: tuple[PartTime, ...]) -> PartTime:
    kernels = sorted((kernel for part in group for kernel in part.kernels), key=lambda kernel: -kernel.us)
    us, share = sum(part.us for part in group), sum(part.share for part in group)
    macs, moved = sum(part.macs for part in group), sum(part.bytes for part in group)
    return PartTime(name, us, share, macs, moved, tuple(kernels), parts)
