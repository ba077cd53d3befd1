"""Let neurons of FFN blocks go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from graphprune.architecture import Architecture, Block, BlockKind
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import (
    FittedValues,
    Neurons,
    ffn_neurons,
    fingerprint,
    keep_neurons,
    neuron_macs,
    read_neurons,
)

FFN: tuple[BlockKind, ...] = ("ffn",)


@dataclass(frozen=True)
class NarrowFfn:
    """Let neurons of FFN blocks go: the columns of the first linears, and the rows of the last one.

    `values` is the .npz file that says which stay: `<block>/neurons` are their numbers, and
    `<block>/neurons.weight` [neurons, width], if it is there, is the weight of the last linear then. `refit`
    gives it another bias. Weights that others share stay theirs. By default all blocks of which the file has
    neurons are narrowed.
    """

    name: ClassVar[str] = "narrow_ffn"
    values: str
    blocks: str | tuple[int | str, ...] = "all"
    sha256: str = ""

    def pinned(self) -> NarrowFfn:
        """The same, bound to the file as it is now."""
        return replace(self, sha256=self.sha256 or fingerprint(self.values))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected block. Raises `RecipeError` where the values do not fit."""
        values = FittedValues.open(self.values, self.sha256)
        values.require_known(architecture)
        for block in select_blocks(architecture, self.blocks, FFN):
            if "neurons" not in values.of(block.id):
                if self.blocks != "all":
                    yield Skipped(block.id, f"{values.path} does not say which of its neurons stay")
            elif isinstance(found := ffn_neurons(block), str):
                yield Skipped(block.id, found)
            else:
                yield _edit(architecture, block, found, values)


def _edit(architecture: Architecture, block: Block, found: Neurons, values: FittedValues) -> Edit:
    kept, _ = read_neurons(values, block, found)
    return Edit(
        f"{block.id}.neurons",
        f"keep {len(kept):,} of its {found.count:,} neurons",
        partial(_apply, architecture, block, found, values),
        spared=neuron_macs(block, found, found.count - len(kept)),
    )


def _apply(architecture: Architecture, block: Block, found: Neurons, values: FittedValues) -> None:
    keep_neurons(block, found, architecture, *read_neurons(values, block, found))
