"""Merge layers into one before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from graphprune.architecture import Architecture, Layer, Stack
from graphprune.errors import SelectionError
from graphprune.prunepass import Edit, Skipped, norms_behind, select_layers, size_of
from graphprune.surgery import drop_block, merge_parameters, mergeable


@dataclass(frozen=True)
class MergeLayers:
    """Merge layers into one: what sets their parameters apart is added onto it, and they go.

    Of `layers`, each run is merged into the layer right before it, or all into the one layer `into`. With
    θ its parameters: `θ + Σ (θ_layer - θ)`. Only layers of equal structure, with weights of their own that
    are stored as floats. Yang et al., 2024 (LaCo), https://arxiv.org/abs/2402.11187.
    """

    name: ClassVar[str] = "merge_layers"
    layers: str | tuple[int | str, ...]
    into: str | int = ""

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected layer."""
        chosen = dict.fromkeys(layer for _, layer in select_layers(architecture, self.layers))
        named = [layer for _, layer in select_layers(architecture, self.into)] if self.into != "" else []
        if clash := next((layer for layer in named if layer in chosen), None):
            raise SelectionError(
                f"merge_layers: layer {clash.index} cannot be merged into itself: leave it out"
            )
        if len({layer.index for layer in named}) > 1:
            raise SelectionError(f"merge_layers: {self.into!r} names several layers to merge into: name one")
        for stack in architecture.stacks:
            kept: Layer | None = None
            for layer in stack.layers:
                if layer not in chosen:
                    kept = layer
                    continue
                into = next((one for one in stack.layers if one in named), None) if named else kept
                yield _edit(architecture, stack, layer, into)


def _edit(architecture: Architecture, stack: Stack, layer: Layer, into: Layer | None) -> Edit | Skipped:
    target = f"{stack.name}.{layer.index}"
    if into is None:
        return Skipped(target, "there is no layer of its stack that it could be merged into")
    fixed = next((block for block in layer.blocks if not block.droppable), None)
    pairs = f"{fixed.id}: {fixed.reason}" if fixed is not None else mergeable(layer, into)
    if isinstance(pairs, str):
        return Skipped(target, f"it cannot be merged into layer {into.index}: {pairs}")

    def apply() -> None:
        merge_parameters(pairs, f"{stack.name}.{into.index}", architecture)
        for block in layer.blocks:
            drop_block(block, architecture, norm=True)

    return Edit(
        target,
        f"merge the layer into layer {into.index}: {size_of(*layer.blocks)}",
        apply,
        removes=layer.blocks,
        uncaches=tuple(block for block in layer.blocks if block.caches),
        norms=norms_behind(*layer.blocks),
    )  # fmt: skip
