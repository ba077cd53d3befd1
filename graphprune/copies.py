"""Whether the copies of a decoder, in several files or in the branches of one, are still one decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from graphprune.survey import same_weights

if TYPE_CHECKING:
    from graphprune.architecture import Stack
    from graphprune.survey import SurveyedFile


def differences(files: Sequence[SurveyedFile]) -> Iterator[str]:
    """One sentence for every two copies of a decoder that have other blocks or other weights.

    Weights are told apart by the first of each FFN, as far as both are floats and of one type.
    """
    found: dict[str, list[Stack]] = {}
    for file in files:
        for stack in file.architecture.stacks:
            if any(block.kind == "cross_attention" or block.caches for block in stack.blocks):
                place = f"{file.name} ({stack.path})" if stack.path else file.name
                found.setdefault(place, []).append(stack)
    for (one, first), (other, second) in pairwise(found.items()):
        if _kinds(first) != _kinds(second):
            yield f"{one} has {_said(first)}, and {other} has {_said(second)}: they are not one decoder"
        elif not all(same_weights(a, b, floats=True) for a, b in zip(first, second, strict=True)):
            yield f"{one} and {other} hold different weights: they are not one decoder"


def _kinds(stacks: Sequence[Stack]) -> list[list[str]]:
    return [[block.kind for block in stack.blocks] for stack in stacks]


def _said(stacks: Sequence[Stack]) -> str:
    layers = sum(len(stack.layers) for stack in stacks)
    counts = Counter(kind for kinds in _kinds(stacks) for kind in kinds)
    blocks = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{layers} layer{'s' if layers > 1 else ''} ({blocks})"
