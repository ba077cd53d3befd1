"""Run layers more than once, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, select_layers
from graphprune.surgery import arrange_layers, why_not_again


@dataclass(frozen=True)
class RepeatLayers:
    """Run layers `times` times, each right after itself, over the same weights: deeper, not larger.

    With `together`, layers that follow each other repeat as one run: `0 1 0 1`, not `0 0 1 1`.
    Each further run has KV caches of its own, all are numbered as the layers run. Sharing layers:
    Lan et al., 2019 (ALBERT), https://arxiv.org/abs/1909.11942; repeating them: Kim et al., 2023
    (depth up-scaling), https://arxiv.org/abs/2312.15166.
    """

    name: ClassVar[str] = "repeat_layers"
    layers: str | tuple[int | str, ...]
    times: int = 2
    together: bool = False

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every stack that has selected layers."""
        if self.times < 2:
            raise SelectionError(
                f"repeat_layers: times is {self.times}; a layer that is repeated runs at least 2 times"
            )
        chosen: dict[Stack, list[int]] = {}
        for stack, layer in select_layers(architecture, self.layers):
            chosen.setdefault(stack, []).append(layer.index)
        for stack, positions in chosen.items():
            yield self._edit(architecture, stack, positions)

    def _edit(self, architecture: Architecture, stack: Stack, positions: list[int]) -> Edit | Skipped:
        for block in (b for position in positions for b in stack.layers[position].blocks):
            if not block.droppable:
                return Skipped(stack.name, f"{block.id} cannot be run twice: {block.reason}")
        reason = why_not_again(stack, architecture, positions)
        if reason:
            return Skipped(stack.name, f"it cannot run layers twice: {reason}")
        order = _order(len(stack.layers), positions, self.times, self.together)
        text = " ".join(map(str, order))
        apply = partial(arrange_layers, stack, architecture, order)
        return Edit(stack.name, f"run its layers as {text}", apply, order=tuple(order))


def _order(count: int, positions: list[int], times: int, together: bool) -> list[int]:
    """The run of layers: every chosen one (or every run of them) `times` times."""
    order: list[int] = []
    run: list[int] = []
    for position in range(count):
        if position not in positions:
            order.append(position)
            continue
        run.append(position)
        if not together or position + 1 not in positions:
            order += run * times
            run = []
    return order
