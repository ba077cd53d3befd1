"""From a chain of blocks to layers: which blocks the model repeats as one."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from graphprune.architecture import BlockKind

MIXERS = {"attention", "parallel", "conv", "other"}


def group(
    kinds: Sequence[BlockKind], signatures: Sequence[Hashable], linear: Collection[int] = ()
) -> list[range]:
    """Ranges of block indices, one a layer.

    The shortest pattern that repeats through the whole chain is a layer; with equal weight
    shapes first (two FFNs in a row may be token and channel mixing), by kinds alone next, and then
    with blocks that are `linear` (their indices), which may stand for any: healing puts such blocks in
    the place of others. A chain without a pattern (something was dropped before) is cut before every
    block that mixes tokens.
    """
    any_kind = [None if index in linear else kind for index, kind in enumerate(kinds)]
    for items in (list(zip(kinds, signatures, strict=True)), list(kinds), any_kind):
        length = _period(items)
        if length is not None:
            return [range(i, i + length) for i in range(0, len(kinds), length)]
    return _by_mixers(kinds)


def _period(items: Sequence[Hashable]) -> int | None:
    """The length of the shortest pattern that repeats at least twice; None stands for any item."""
    total = len(items)
    for length in range(1, total // 2 + 1):
        places = ({item for item in items[start::length] if item is not None} for start in range(length))
        if total % length == 0 and all(len(found) < 2 for found in places):
            return length
    return None


def _by_mixers(kinds: Sequence[BlockKind]) -> list[range]:
    starts = [0]
    for i in range(1, len(kinds)):
        repeats = kinds[i] in kinds[starts[-1] : i]
        if repeats or kinds[i] in MIXERS:
            starts.append(i)
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(kinds)], strict=True)]
