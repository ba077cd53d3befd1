"""Time by layer and by part of a block, and how near the machine's limits the blocks are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphprune.report.plots import Dot, Row, parts_plot, roofline_plot
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.drawing import DrawnBlock
    from graphprune.report.subject import Subject


def layers(subject: Subject) -> Section | None:
    """The plots; None where no times were measured. Its numbers are in the table of blocks."""
    rows = [
        Row(_label(subject, stack.name, f"{layer.index}", layer.run), _parts(layer.blocks))
        for stack in subject.stacks
        for layer in stack.layers
    ]
    rows = [row for row in rows if row.parts]
    if not rows:
        return None
    html = render("layers.html", plot=parts_plot(rows), roofline=_roofline(subject))
    return Section("layers", "Where the time goes", html)


def _roofline(subject: Subject) -> str:
    """The blocks against the machine's limits; "" where these are not known."""
    if subject.peak is None:
        return ""
    drawn = (block for stack in subject.stacks for layer in stack.layers for block in layer.blocks)
    there = [(block, block.now) for block in drawn if not block.removed]
    dots = [
        Dot(block.name, block.block.kind, now.macs, now.bytes, now.us)
        for block, now in there
        if now is not None
    ]
    peak = subject.peak
    return roofline_plot(dots, peak.macs_per_s, peak.bytes_per_s, peak.cache_bytes_per_s)


def _label(subject: Subject, stack: str, index: str, run: int) -> str:
    name = f"{stack}.{index}" if len(subject.stacks) > 1 else f"layer {index}"
    return name if run == 1 else f"{name}, run {run}"


def _parts(blocks: Iterable[DrawnBlock]) -> dict[tuple[str, str], float]:
    """Microseconds by kind of block and part, of what is there."""
    parts: dict[tuple[str, str], float] = defaultdict(float)
    for block in blocks:
        for part in block.now.parts if block.now and not block.removed else ():
            parts[block.block.kind, part.name] += part.us
    return dict(parts)
