"""How far the outputs of the model are from the dense model's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphprune.play import is_cache
from graphprune.report.numbers import clip, percent, significant
from graphprune.report.render import render
from graphprune.report.subject import Section

if TYPE_CHECKING:
    from graphprune.compare import Difference
    from graphprune.report.subject import Subject


def agreement(subject: Subject) -> Section | None:
    """A row for every output; None where there was nothing to compare."""
    found, dense = subject.agreement, subject.dense
    if found is None or dense is None:
        return None
    several = len({one.file for one in found.differences}) > 1
    titles = ["max |Δ|", "mean |Δ|", "Cosine"]
    if any(one.kl is not None for one in found.differences):
        titles += ["KL", "Top-1"]
    columns = [("Output", ""), ("Step", "number"), *((title, "number") for title in titles)]
    rows = [_row(one, several)[: len(columns)] for one in found.differences]
    html = render(
        "agreement.html",
        inputs=subject.inputs, columns=columns, rows=rows,
        alone=[(dense.name, _no_caches(found.only_in_a)), (subject.model.name, _no_caches(found.only_in_b))],
    )  # fmt: skip
    return Section("agreement", "Agreement", html)


def _no_caches(names: Iterable[str]) -> list[str]:
    return [name for name in names if not is_cache(name.rpartition(":")[2])]


def _row(one: Difference, several: bool) -> list[str]:
    output = clip(f"{one.file}: {one.output}" if several else one.output)
    kl = "" if one.kl is None else significant(one.kl)
    top1 = "" if one.top1 is None else percent(one.top1)
    apart = (significant(one.max_abs), significant(one.mean_abs), f"{one.cosine:.6f}")
    return [output, str(one.step), *apart, kl, top1]
