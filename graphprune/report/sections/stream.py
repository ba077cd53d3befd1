"""The residual stream: every block in its place, coloured by what it takes or does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.report.numbers import duration, percent, short, significant, whole
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.report.drawing import DrawnBlock, DrawnLayer, DrawnStack
    from graphprune.report.subject import Subject

# What stands in a block: its kind, as short as it has to be there.
KINDS = {"cross_attention": "cross-att."}


@dataclass(frozen=True)
class _Metric:
    """What blocks can be coloured by: the value of a block, and how it is said, shortly and in full."""

    id: str
    title: str
    what: str
    value: Callable[[DrawnBlock], float | None]
    short: Callable[[float], str]
    full: Callable[[float], str]


def stream(subject: Subject) -> Section | None:
    """The picture; None where no block was found."""
    blocks = [block for stack in subject.stacks for block in stack.blocks]
    if not blocks:
        return None
    metrics = _metrics(subject, blocks)
    largest = {one.id: max((one.value(b) or 0 for b in blocks), default=0) for one in metrics}
    removed = sum(block.removed for block in blocks)
    html = render(
        "stream.html",
        said=_said(len(blocks), removed),
        metrics=[_scale(one, largest[one.id]) for one in metrics],
        stacks=[_stack(stack, metrics, largest) for stack in subject.stacks],
        joins=sorted({_join(block) for block in blocks}),
        any_removed=bool(removed),
    )
    return Section("stream", "The stream", html)


def _said(blocks: int, removed: int) -> str:
    """What one looks at, in a sentence."""
    number = f"{blocks} blocks read" if blocks > 1 else "One block reads"
    gone = f" {removed} of them {'was' if removed == 1 else 'were'} removed." if removed else ""
    return f"{number} the residual stream and add to it, from left to right.{gone}"


def _metrics(subject: Subject, blocks: Sequence[DrawnBlock]) -> list[_Metric]:
    total = {id(side): side.profile.total_us for side in subject.sides if side.profile}
    now, before = total.get(id(subject.model)), total.get(id(subject.dense))

    def share(block: DrawnBlock) -> float | None:
        whole = before if block.removed else now
        return block.time.us / whole if block.time and whole else None

    metrics = []
    if any(share(block) is not None for block in blocks):
        metrics.append(_Metric("time", "Time", "of the model’s kernel time", share, percent,
                               lambda v: f"{percent(v)} of the time"))  # fmt: skip
    metrics.append(
        _Metric("parameters", "Parameters", "parameters", lambda b: b.block.parameters, short,
                lambda v: f"{whole(v)} parameters")
    )  # fmt: skip
    if any(block.importance is not None for block in blocks):
        metrics.append(
            _Metric("importance", "Importance", "influence: 1 − cosine of the stream before and after",
                    lambda b: b.importance, significant, lambda v: f"influence {significant(v)}")
        )  # fmt: skip
    return metrics


def _scale(one: _Metric, largest: float) -> dict[str, str]:
    return {
        "id": one.id, "title": one.title, "what": one.what, "least": one.short(0), "most": one.short(largest)
    }  # fmt: skip


def _stack(stack: DrawnStack, metrics: Sequence[_Metric], largest: dict[str, float]) -> dict[str, Any]:
    layers = [_layer(layer, metrics, largest) for layer in stack.layers]
    return {"name": stack.name, "said": _stack_said(stack), "layers": layers}


def _stack_said(stack: DrawnStack) -> str:
    number = len(stack.layers)
    parameters = sum(block.block.parameters for block in stack.kept)
    times = [block.now.us for block in stack.kept if block.now]
    took = f", {duration(sum(times))}" if times else ""
    return f"{number} layer{'s' * (number != 1)}, {short(parameters)} parameters{took}"


def _layer(layer: DrawnLayer, metrics: Sequence[_Metric], largest: dict[str, float]) -> dict[str, Any]:
    label = f"{layer.index}" + (f", run {layer.run}" if layer.run > 1 else "")
    return {"label": label, "blocks": [_block(block, metrics, largest) for block in layer.blocks]}


def _block(block: DrawnBlock, metrics: Sequence[_Metric], largest: dict[str, float]) -> dict[str, Any]:
    known = [(one, one.value(block)) for one in metrics]
    levels = {one.id: (value or 0) / largest[one.id] if largest[one.id] else 0.0 for one, value in known}
    said = [one.full(value) for one, value in known if value is not None]
    kind = block.block.kind
    label = ", ".join([f"{block.name}{', removed' if block.removed else ''}", placement(block), *said])
    return {
        "number": block.number,
        "kind": KINDS.get(kind, kind),
        "kind_class": kind,
        "join": _join(block)[0],
        "removed": block.removed,
        "label": label,
        "style": ";".join(f"--{id}:{level:.3f}" for id, level in levels.items()),
        "shown": [(one.id, "–" if value is None else one.short(value)) for one, value in known],
    }


def _join(block: DrawnBlock) -> tuple[str, str, bool]:
    """The drawing of a block's join: its id on the page, where norms stand, and whether it was removed."""
    at = block.block.placement
    if block.removed and not block.norm_stays:
        at = "none" if at == "post" else at
    return f"join-{at}{'-removed' if block.removed else ''}", at, block.removed


def placement(block: DrawnBlock) -> str:
    """Where the norms of a block stand, in words."""
    words = {
        "pre": "norm before the branch",
        "post": "norm after the join",
        "sandwich": "norms on both sides",
    }
    return words.get(block.block.placement, "no norm")
