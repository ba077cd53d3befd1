"""What an exit says of samples: how sure it is, and what they would leave with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.surgery.excerpt import Excerpt
from graphprune.surgery.exitfile import ExitHead
from graphprune.surgery.exitsite import Site
from graphprune.surgery.surety import agreeing, cosine, linear, stored, sureness


@dataclass(frozen=True, eq=False)
class Verdict:
    """`sure`, float [n], is how sure an exit is of each sample, `carried` what the next exit compares with.

    `result` is what samples leave with: scores [n, C] of a classifier, else a stream [n, tokens, d].
    """

    sure: ir.Value
    carried: tuple[ir.Value, ...]
    result: ir.Value


def judge(
    site: Site, excerpt: Excerpt, head: ExitHead, stream: ir.Value, before: Sequence[ir.Value]
) -> Verdict:
    """Write what an exit says of a stream; `before` is what the exit before it carried, none for the first.

    Raises `EditError` where the model's own head is needed and there is none.
    """
    write, criterion = excerpt.write, site.heads.criterion
    result = result_of(site, excerpt, head, stream)
    if criterion == "saturation":
        pooled = site.pooled(excerpt, stream, head.pool)
        given = before[0] if before else _first_pooled(site, excerpt, head)
        return Verdict(cosine(write, pooled, given), (pooled,), result)
    scores = result if head.weight is not None else site.own_scores(excerpt, result, head.pool)
    if criterion == "patience":
        label, count = agreeing(write, scores, (before[0], before[1]) if before else None)
        return Verdict(count, (label, count), result)
    return Verdict(sureness(write, scores, head, criterion), (), result)


def _first_pooled(site: Site, excerpt: Excerpt, head: ExitHead) -> ir.Value:
    """The pooled stream before the first layer; the first exit has all samples."""
    start = site.excerpt(excerpt.write, 0, site.streams[0], None)
    return site.pooled(start, site.streams[0], head.pool)


def result_of(site: Site, excerpt: Excerpt, head: ExitHead, stream: ir.Value) -> ir.Value:
    """What samples leave with at an exit."""
    weight = head.weight if head.weight is not None else head.translator
    if weight is None or head.bias is None:
        return stream
    name = f"exits/after.{head.after}"
    given = stored(site.graph, f"{name}/weight", weight), stored(site.graph, f"{name}/bias", head.bias)
    if head.weight is None:
        return linear(excerpt.write, stream, *given, site.kind)
    return linear(excerpt.write, site.pooled(excerpt, stream, head.pool), *given)
