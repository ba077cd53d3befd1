"""Which blocks make a layer."""

from __future__ import annotations

import pytest

from graphprune.architecture import BlockKind
from graphprune.layers import group

A: BlockKind = "attention"
C: BlockKind = "cross_attention"
F: BlockKind = "ffn"
V: BlockKind = "conv"
P: BlockKind = "parallel"


@pytest.mark.parametrize(
    ("kinds", "sizes"),
    [
        ([A, F] * 3, [2, 2, 2]),
        ([A, C, F] * 2, [3, 3]),
        ([P] * 4, [1, 1, 1, 1]),
        ([F, A, V, F] * 2, [4, 4]),
        ([A, F], [2]),
        ([A, F, A, F, F, A, F], [2, 2, 1, 2]),
        ([A, A, F, A, F], [1, 2, 2]),
        ([F, A, F, A, F], [1, 2, 2]),
        ([F, F, F], [1, 1, 1]),
        ([A], [1]),
    ],
    ids=["encoder", "decoder", "parallel", "conformer", "one layer", "attention gone", "ffn gone",
         "first attention gone", "ffns", "one block"],
)  # fmt: skip
def test_group(kinds: list[BlockKind], sizes: list[int]) -> None:
    ranges = group(kinds, kinds)
    assert [len(r) for r in ranges] == sizes
    assert [i for r in ranges for i in r] == list(range(len(kinds)))


def test_shapes_tell_blocks_of_one_kind_apart() -> None:
    """Token mixing and channel mixing are both FFNs; their weights differ, and repeat in turn."""
    assert [len(r) for r in group([F] * 6, ["tokens", "channels"] * 3)] == [2, 2, 2]
    assert [len(r) for r in group([F] * 3, ["a", "a", "b"])] == [1, 1, 1]


@pytest.mark.parametrize(
    ("kinds", "linear", "sizes"),
    [
        ([A, F, F, F, A, F], {2}, [2, 2, 2]),
        ([A, F, F, F, F, F], {2, 3, 4}, [2, 2, 2]),
        ([F, C, F, A, C, F], {0}, [3, 3]),
        ([P, F, P], {1}, [1, 1, 1]),
        ([A, F, F, A, F], {2}, [2, 1, 2]),
    ],
    ids=["attention", "a layer and more", "with cross-attention", "parallel", "something dropped besides"],
)
def test_a_linear_stands_for_any_block(kinds: list[BlockKind], linear: set[int], sizes: list[int]) -> None:
    assert [len(r) for r in group(kinds, kinds, linear)] == sizes
