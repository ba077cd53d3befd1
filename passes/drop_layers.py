"""Delete whole layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Layer, Stack
from graphprune.prunepass import Edit, Skipped, select_layers, size_of
from graphprune.surgery import drop_block


@dataclass(frozen=True)
class DropLayers:
    """Delete layers with all their blocks, norms and caches; the stream is wired past them.

    `layers` takes numbers and ranges, and policies: `last:2`, `first:2`, `early:2`, `middle:2`,
    `every:2`, `random:2:7` (with a seed), `all-but:0,5`; within one stack as `decoder.last:2`.
    Layer pruning: Men et al., 2024 (ShortGPT), https://arxiv.org/abs/2403.03853; Gromov et al.,
    2024, https://arxiv.org/abs/2403.17887.
    """

    name: ClassVar[str] = "drop_layers"
    layers: str | tuple[int | str, ...]

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected layer."""
        for stack, layer in select_layers(architecture, self.layers):
            target = f"{stack.name}.{layer.index}"
            fixed = next((block for block in layer.blocks if not block.droppable), None)
            if fixed is not None:
                yield Skipped(target, f"{fixed.id}: {fixed.reason}")
            else:
                apply = partial(_drop, layer, stack, architecture)
                yield Edit(target, f"drop the layer: {size_of(*layer.blocks)}", apply, removes=layer.blocks)


def _drop(layer: Layer, stack: Stack, architecture: Architecture) -> None:
    for block in layer.blocks:
        drop_block(block, stack, architecture.model, norm=True)
