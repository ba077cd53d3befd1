"""A profile as a trace for Perfetto (<https://ui.perfetto.dev>) or `chrome://tracing`.

The format is Google's Trace Event Format, in JSON. Every phase is a process with four tracks: layers,
blocks, parts and kernels, above one another, so that each kernel lies below the block that it serves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune import storage

if TYPE_CHECKING:
    from graphprune.phases import Phase, Span
    from graphprune.profiler import Profile

Event = dict[str, Any]


def write_trace(profile: Profile, path: str | Path) -> None:
    """Write one call of every phase to `path`, whole or not at all; an existing file is replaced.

    Raises `SaveError`.
    """
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": trace_events(profile)}, ensure_ascii=False)
    storage.write_text(Path(path), text)


def trace_events(profile: Profile) -> list[Event]:
    """The events of all phases."""
    return [event for pid, phase in enumerate(profile.phases, 1) for event in _phase(phase, pid)]


def _phase(phase: Phase, pid: int) -> Iterator[Event]:
    tracks: list[tuple[str, Callable[[Span], str]]] = [
        ("layers", lambda span: _layer(span.owner)),
        ("blocks", lambda span: span.owner),
        ("parts", lambda span: f"{span.owner} {span.part}".strip()),
    ]
    yield _named("process_name", f"{phase.file}: {phase.name}", pid, 0)
    leaves = _leaves(phase.timeline)
    for tid, (name, label) in enumerate(tracks, 1):
        yield _named("thread_name", name, pid, tid)
        for text, spans in groupby(leaves, key=label):
            run = list(spans)
            yield _event(text, pid, tid, run[0].start, run[-1].start + run[-1].us, {"kernels": len(run)})
    tid = len(tracks) + 1
    yield _named("thread_name", "kernels", pid, tid)
    for span in phase.timeline:
        about = {"node": span.name, "block": span.owner, "part": span.part}
        yield _event(span.op, pid, tid, span.start, span.start + span.us, about)


def _leaves(spans: Sequence[Span]) -> list[Span]:
    """The kernels that contain no others."""
    inner = [after.depth > before.depth for before, after in pairwise(spans)]
    return [span for span, contains in zip(spans, [*inner, False], strict=True) if not contains]


def _layer(owner: str) -> str:
    """`encoder.3` of `encoder.3.ffn`; what is around the blocks as it is called."""
    stack, dot, _ = owner.rpartition(".")
    return stack if dot else owner


def _named(what: str, name: str, pid: int, tid: int) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _event(name: str, pid: int, tid: int, start: int, end: int, about: dict[str, Any]) -> Event:
    return {"name": name, "ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": end - start, "args": about}
