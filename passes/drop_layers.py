"""Delete whole layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Layer, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, norms_behind, select_layers, select_stack, size_of
from graphprune.surgery import drop_block


@dataclass(frozen=True)
class DropLayers:
    """Delete layers with all their blocks, norms and caches; the stream is wired past them.

    `layers` takes numbers and ranges, and policies: `last:2`, `first:2`, `early:2`, `middle:2`,
    `every:2`, `random:2:7` (with a seed), `all-but:0,5`; within one stack as `decoder.last:2`.
    Instead, `keep` says how many layers of a stack are left, at even distances, the first and
    the last among them (1: the first); `stack` names it where the model has several.
    Layer pruning: Men et al., 2024 (ShortGPT), https://arxiv.org/abs/2403.03853; Gromov et al.,
    2024, https://arxiv.org/abs/2403.17887. A deep encoder does with a shallow decoder: Kasai et
    al., 2020, https://arxiv.org/abs/2006.10369; which layers to keep: Shleifer and Rush, 2020,
    https://arxiv.org/abs/2010.13002.
    """

    name: ClassVar[str] = "drop_layers"
    layers: str | tuple[int | str, ...] = ""
    keep: int = 0
    stack: str = ""

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected layer."""
        if bool(self.layers) == bool(self.keep) or (self.stack and not self.keep):
            raise SelectionError(
                "drop_layers takes either layers (as decoder.0-2 within one stack), or how many to keep "
                "of a stack"
            )
        for stack, layer in self._chosen(architecture):
            target = f"{stack.name}.{layer.index}"
            fixed = next((block for block in layer.blocks if not block.droppable), None)
            if fixed is not None:
                yield Skipped(target, f"{fixed.id}: {fixed.reason}")
            else:
                apply = partial(_drop, layer, architecture)
                summary = f"drop the layer: {size_of(*layer.blocks)}"
                uncaches = tuple(block for block in layer.blocks if block.caches)
                yield Edit(
                    target, summary, apply,
                    removes=layer.blocks, uncaches=uncaches, norms=norms_behind(*layer.blocks),
                )  # fmt: skip

    def _chosen(self, architecture: Architecture) -> Iterator[tuple[Stack, Layer]]:
        """The layers to drop, copies included."""
        if not self.keep:
            yield from select_layers(architecture, self.layers)
            return
        for stack in select_stack(architecture, self.stack):
            if not 0 < self.keep < len(stack.layers):
                raise SelectionError(
                    f"drop_layers: {self.keep} layers cannot be kept of the {len(stack.layers)} of "
                    f"'{stack.name}': name fewer, at least 1"
                )
            kept = {id(layer) for _, layer in select_layers(architecture, f"{stack.name}.even:{self.keep}")}
            yield from ((stack, layer) for layer in stack.layers if id(layer) not in kept)


def _drop(layer: Layer, architecture: Architecture) -> None:
    for block in layer.blocks:
        drop_block(block, architecture, norm=True)
