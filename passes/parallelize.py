"""Let consecutive layers, or the blocks of a layer, run side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

from graphprune.architecture import Architecture, Block, Layer, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, select_layers
from graphprune.surgery import run_beside, why_not_parallel


@dataclass(frozen=True)
class Parallelize:
    """Let layers run in pairs, or blocks side by side: what follows one another reads one input instead.

    With `what` "layers", those of `layers` that follow each other go in pairs: both attentions read one
    value, then both FFNs do: `a = x + A1(x) + A2(x)`, `a + F1(a) + F2(a)`. With "blocks", the blocks of each
    of `layers` read one value: `x + A(x) + F(x)`. Nothing becomes smaller: it is what runs at the same time
    that does the work. KV caches stay as they are; pre-norm models only. Pairs of layers: González et al.,
    2025, https://arxiv.org/abs/2502.02790.
    """

    name: ClassVar[str] = "parallelize"
    layers: str | tuple[int | str, ...]
    what: Literal["layers", "blocks"] = "layers"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected layer."""
        chosen: dict[Stack, list[Layer]] = {}
        for stack, layer in select_layers(architecture, self.layers):
            chosen.setdefault(stack, []).append(layer)
        if self.what == "layers" and not any(
            _follow(a, b) for run in chosen.values() for a, b in pairwise(run)
        ):
            raise SelectionError("parallelize: no two of the selected layers follow each other in a stack")
        for stack, layers in chosen.items():
            yield from _pairs(stack, layers) if self.what == "layers" else _alone(stack, layers)


def _follow(one: Layer, other: Layer) -> bool:
    return other.index == one.index + 1


def _pairs(stack: Stack, layers: list[Layer]) -> Iterator[Edit | Skipped]:
    """The edits that run layers in pairs, in order; one that is left over runs alone."""
    left = list(layers)
    while left:
        one = left.pop(0)
        target = f"{stack.name}.{one.index}"
        if not left or not _follow(one, left[0]):
            yield Skipped(target, "no other selected layer is left beside it")
            continue
        other = left.pop(0)
        kinds = [[block.kind for block in layer.blocks] for layer in (one, other)]
        if kinds[0] != kinds[1]:
            yield Skipped(target, f"layer {other.index} has other kinds of blocks")
            continue
        groups = [*zip(one.blocks, other.blocks, strict=True)]
        yield _edit(
            target, f"run it side by side with layer {other.index}", (*one.blocks, *other.blocks), groups
        )


def _alone(stack: Stack, layers: list[Layer]) -> Iterator[Edit | Skipped]:
    """The edits that run the blocks of each layer side by side."""
    for layer in layers:
        target = f"{stack.name}.{layer.index}"
        if len(layer.blocks) < 2:
            yield Skipped(target, "it has one block only")
        else:
            yield _edit(
                target, f"run its {len(layer.blocks)} blocks side by side", layer.blocks, [layer.blocks]
            )


def _edit(
    target: str, summary: str, blocks: tuple[Block, ...], groups: Sequence[tuple[Block, ...]]
) -> Edit | Skipped:
    reason = why_not_parallel(blocks)
    return Skipped(target, reason) if reason else Edit(target, summary, partial(run_beside, groups))
