"""What `profile` gives to other programs: one JSON object, or rows for a CSV file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.phases import PartTime, Phase
    from graphprune.profiler import Profile
    from graphprune.roofline import Limit, Peak

    Limits = Callable[[PartTime], Limit | None]

FORMAT = 1


def to_json(
    found: Profile, limit_of: Limits | None = None, peaks: Mapping[str, Peak] | None = None
) -> dict[str, Any]:
    """What `profile --json` prints: one pass over all calls, and every phase, per call, by itself.

    `limit_of` adds the machine's limit to all times, `peaks` what it comes from. Format 1: scripts read
    it, so keys may be added, never changed or taken away.
    """
    told = _Told(limit_of)
    return {
        "format": FORMAT,
        "providers": list(found.settings.providers),
        "level": found.settings.level,
        "threads": found.settings.threads,
        "attributed": found.attributed,
        "total_us": found.total_us,
        "profiler_us": found.profiler_us,
        "peaks": {element: asdict(one) for element, one in (peaks or {}).items()},
        "stacks": [told.whole(part) for part in found.stacks],
        "layers": [told.whole(part) for part in found.layers],
        "blocks": [told.block(part) for part in found.blocks],
        "outside": [told.outside(part) for part in found.outside],
        "phases": [_phase(phase, told) for phase in found.phases],
    }


def to_rows(found: Profile, limit_of: Limits | None = None) -> list[dict[str, Any]]:
    """A row for every block, every part of one, and every place around the blocks, of every phase."""
    told = _Told(limit_of)
    return [
        {"file": phase.file, "phase": phase.name, "calls": phase.calls, **place, **told.times(part)}
        for phase in found.phases
        for place, part in _places(phase)
    ]


def _places(phase: Phase) -> Iterator[tuple[dict[str, str], PartTime]]:
    for block in phase.blocks:
        yield {"where": block.name, "part": ""}, block
        for part in block.parts:
            yield {"where": block.name, "part": part.name}, part
    for one in phase.outside:
        yield {"where": one.name, "part": ""}, one


def _phase(phase: Phase, told: _Told) -> dict[str, Any]:
    return {
        "file": phase.file,
        "phase": phase.name,
        "calls": phase.calls,
        "rounds": phase.rounds,
        "attributed": phase.attributed,
        "total_us": phase.kernel_us,
        "between_us": phase.between_us,
        "session_us": phase.session_us,
        "unprofiled_us": phase.unprofiled_us,
        "agreement": phase.agreement,
        "stacks": [told.whole(part) for part in phase.stacks],
        "layers": [told.whole(part) for part in phase.layers],
        "blocks": [told.block(part) for part in phase.blocks],
        "outside": [told.outside(part) for part in phase.outside],
    }


@dataclass(frozen=True, eq=False)
class _Told:
    """The figures of parts by their names, with the machine's limit where that is asked for."""

    limit_of: Limits | None

    def times(self, part: PartTime) -> dict[str, Any]:
        """The figures alone."""
        times = {
            "us": part.us,
            "share": part.share,
            "macs": round(part.macs),
            "bytes": round(part.bytes),
            "gflops": part.gflops,
        }
        return times | (self._limit(part) if self.limit_of is not None else {})

    def _limit(self, part: PartTime) -> dict[str, Any]:
        limit = self.limit_of(part) if self.limit_of is not None else None
        if limit is None:
            return {"limit_us": None, "of_limit": None, "bound": ""}
        return {"limit_us": limit.us, "of_limit": limit.share, "bound": limit.bound}

    def whole(self, part: PartTime) -> dict[str, Any]:
        """A layer or a stack."""
        return {"id": part.name} | self.times(part)

    def block(self, part: PartTime) -> dict[str, Any]:
        """A block, with its parts and kernels."""
        parts = [{"name": one.name} | self.times(one) for one in part.parts]
        return {"id": part.name} | self.times(part) | {"parts": parts, "kernels": _kernels(part)}

    def outside(self, part: PartTime) -> dict[str, Any]:
        """What stands around the blocks, with its kernels."""
        return {"name": part.name} | self.times(part) | {"kernels": _kernels(part)}


def _kernels(part: PartTime) -> list[dict[str, Any]]:
    return [asdict(kernel) for kernel in part.kernels]
