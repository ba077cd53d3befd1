"""The first look: what was removed, what that saved, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.report.numbers import clip, duration, percent, short, size
from graphprune.report.render import render
from graphprune.report.sections.latency import cell
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.subject import Subject


_TIMES = {"run": "A call", "prefill": "Prefill", "decode": "A token"}


@dataclass(frozen=True)
class Figure:
    """A number with its name, and what it is measured against."""

    name: str
    value: str
    note: str = ""


def summary(subject: Subject) -> Section:
    """The figures, and the notes of all that could not be measured."""
    html = render("summary.html", figures=list(_figures(subject)), notes=subject.notes)
    return Section("summary", "At a glance", html)


def _figures(subject: Subject) -> Iterator[Figure]:
    yield _blocks(subject)
    yield from _time(subject)
    sizes = [side.sizes for side in subject.sides]
    for name, say, what in (("Parameters", short, "parameters"), ("Weights", size, "bytes")):
        before, now = getattr(sizes[0], what), getattr(sizes[-1], what)
        note = f"{percent(now / before)} of {say(before)}" if len(sizes) > 1 and before else ""
        yield Figure(name, say(now), note)
    if subject.agreement is not None:
        # Not-a-number is the worst of all.
        found = subject.agreement.differences
        worst = min(found, key=lambda one: one.cosine if one.cosine == one.cosine else -2)
        step = f", step {worst.step}" if worst.step else ""
        yield Figure("Least agreement", f"{worst.cosine:.4f}", f"cosine of {clip(worst.output)}{step}")


def _blocks(subject: Subject) -> Figure:
    drawn = [block for stack in subject.stacks for block in stack.blocks]
    kept = sum(not block.removed for block in drawn)
    layers = sum(len(stack.layers) for stack in subject.stacks)
    if kept == len(drawn):
        return Figure("Blocks", f"{kept}", f"in {layers} layer{'s' * (layers != 1)}")
    return Figure("Blocks", f"{kept} of {len(drawn)}", f"{len(drawn) - kept} removed")


def _time(subject: Subject) -> Iterator[Figure]:
    timings = subject.bench.timings if subject.bench else ()
    own = [one for one in timings if one.model == str(subject.model.path)]
    if own:
        for one in own:
            if (one.batch, one.sequence) == (own[0].batch, own[0].sequence):
                ratio = "" if one.ratio is None else f"{percent(one.ratio)} of the dense model’s, "
                yield Figure(_TIMES[one.phase], duration(one.median * 1e3), f"{ratio}{cell(one, subject)}")
    elif subject.model.profile:
        yield Figure("Kernels", duration(subject.model.profile.total_us), subject.inputs)
