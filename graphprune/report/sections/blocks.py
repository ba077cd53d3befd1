"""Every block by itself: a row in a table, and its parts, kernels, norms and caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from graphprune.describe import node_name
from graphprune.report.numbers import NONE, clip, duration, formula, percent, short, significant, size, whole
from graphprune.report.render import render
from graphprune.report.sections.stream import placement
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.phases import PartTime, Phase
    from graphprune.report.drawing import DrawnBlock
    from graphprune.report.subject import Subject

# The slowest kernels of a block that are listed; in all, and at least and at most of one block.
_KERNELS, _FEWEST, _MOST = 2400, 2, 12


_PHASES = (
    ("Phase", ""),
    ("File", ""),
    ("Calls", "number"),
    ("Kernels", "number"),
    ("Between kernels", "number"),
    ("Without the profiler", "number"),
    ("Named", "number"),
)


def blocks(subject: Subject) -> Section | None:
    """The blocks; None where none was found."""
    drawn = [block for stack in subject.stacks for block in stack.blocks]
    if not drawn:
        return None
    listed = min(_MOST, max(_FEWEST, _KERNELS // len(drawn)))
    outside = subject.model.profile.outside if subject.model.profile else ()
    phases = subject.model.profile.phases if subject.model.profile else ()
    html = render(
        "blocks.html",
        phase_columns=_PHASES,
        phases=[_phase(one) for one in phases],
        limited=any(block.limit for block in drawn),
        said=_said(subject),
        columns=_columns(subject),
        rows=[_row(block, subject) for block in drawn],
        outside_columns=[("Where", ""), ("Time", "number"), ("Share", "number"), ("Kernels", "number")],
        outside=[(one.name, duration(one.us), percent(one.share), f"{len(one.kernels)}") for one in outside],
        blocks=[_details(block, subject, listed) for block in drawn],
    )
    return Section("blocks", "Block by block", html)


def _said(subject: Subject) -> str:
    """What the times are of."""
    profile = subject.model.profile
    if profile is None:
        return "Times were not measured."
    calls = sum(phase.calls for phase in profile.phases)
    of = "one call" if calls == 1 else f"one pass over {calls} calls ({_phases(subject)})"
    return f"Times are of {of} on {subject.inputs}; {percent(profile.attributed)} of it has a named place."


def _phases(subject: Subject) -> str:
    phases = subject.model.profile.phases if subject.model.profile else ()
    several = len({phase.file for phase in phases}) > 1
    return ", ".join(f"{phase.file + ' ' if several else ''}{phase.name} × {phase.calls}" for phase in phases)


def _phase(one: Phase) -> list[str]:
    """How the times of a call add up."""
    whole = NONE if one.unprofiled_us is None else f"{duration(one.unprofiled_us)}"
    times = (duration(one.kernel_us), duration(one.between_us), whole)
    return [one.name, one.file, str(one.calls), *times, percent(one.attributed)]


def _columns(subject: Subject) -> list[tuple[str, str]]:
    numbers = ["Time", "Share", "MMAC", "GFLOP/s", "Of the limit", "Bytes moved", "Parameters", "Influence"]
    if subject.dense is not None:
        numbers.insert(1, "Dense")
    return [("Block", ""), ("Norm", ""), *((name, "number") for name in numbers)]


def _row(block: DrawnBlock, subject: Subject) -> list[str]:
    time = block.now
    dense = [duration(block.before.us if block.before else None)] if subject.dense is not None else []
    return [
        block.name, block.block.placement, "removed" if block.removed else _us(time), *dense,
        percent(time.share if time else None),
        significant(time.macs / 1e6 if time else None), significant(time.gflops if time else None),
        _of_limit(block),
        size(time.bytes if time else None), whole(block.block.parameters), significant(block.importance),
    ]  # fmt: skip


def _of_limit(block: DrawnBlock) -> str:
    """The share of the limit that a block reaches, and what sets it."""
    one = block.limit
    return NONE if one is None or not one.bound else f"{percent(one.share)} ({one.bound})"


def _us(time: PartTime | None) -> str:
    return duration(time.us if time else None)


def _details(block: DrawnBlock, subject: Subject, listed: int) -> dict[str, Any]:
    """A block by itself, with so many of its kernels `listed`."""
    time = block.time
    of = f" ({subject.dense.name})" if block.removed and subject.dense else ""
    kernels = time.kernels[:listed] if time else ()
    more = time is not None and len(time.kernels) > listed
    slowest = f"The {listed} slowest of {len(time.kernels)} kernels" if time and more else "Kernels"
    return {
        "number": block.number, "id": block.name, "removed": block.removed, "figure": _us(time),
        "says": " ".join(_sentences(block)), "facts": list(_facts(block)),
        "parts_caption": f"Parts{of}",
        "kernels_caption": f"{slowest}{of}",
        "parts": [_part(part, time.us) for part in time.parts] if time else [],
        "kernels": [
            {"op": one.op, "name": clip(one.name), "time": duration(one.us), "count": f"{one.count:g}"}
            for one in kernels
        ],
    }  # fmt: skip


def _part(part: PartTime, total: float) -> dict[str, str]:
    share = part.us / total if total else 0.0
    gflops = significant(part.gflops) if part.macs else NONE
    return {
        "name": part.name, "time": duration(part.us), "share": f"{share:.3f}", "percent": percent(share),
        "gflops": gflops,
    }  # fmt: skip


def _sentences(block: DrawnBlock) -> Iterator[str]:
    """What a block is, in words."""
    one = block.block
    yield f"{placement(block).capitalize()}; joins the stream at {clip(node_name(one.join))}."
    if block.removed:
        yield "It was removed; its numbers are those of the dense model."
    elif block.name != block.id:
        yield f"In the model it is now {block.id}."
    if not one.droppable:
        yield f"It cannot be dropped: {one.reason}."
    yield from (f"Changed: {change}." for change in block.changes)
    for cache in one.caches:
        names = ", ".join((*cache.input_names, *cache.output_names))
        yield f"{cache.kind.capitalize()} cache: {clip(names)}."


def _facts(block: DrawnBlock) -> Iterator[tuple[str, str]]:
    time, one = block.time, block.block
    if time is not None:
        yield "Time", f"{duration(time.us)}, {percent(time.share)}"
    if block.before and block.now:
        yield "Time in the dense model", duration(block.before.us)
    several = len({measured.phase.file for measured in block.phases}) > 1
    for measured in block.phases if len(block.phases) > 1 else ():
        phase, part = measured.phase, measured.time
        call = f"{phase.name.capitalize()}, a call" + (f" of {phase.file}" if several else "")
        yield call, f"{duration(part.us)}, {percent(part.share)}"
    if time is not None:
        yield "Multiply-accumulates", short(time.macs)
        yield "Speed", f"{significant(time.gflops)} GFLOP/s"
        if block.limit:
            yield "Of the machine’s limit", _of_limit(block)
        yield "Bytes moved", size(time.bytes)
    else:
        yield "Multiply-accumulates", formula(one.macs)
    yield "Parameters", whole(one.parameters)
    yield "Nodes", whole(len(one.nodes))
    if block.importance is not None:
        yield "Influence", significant(block.importance)
