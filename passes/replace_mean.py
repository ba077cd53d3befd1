"""Put a constant in the place of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from graphprune.architecture import ALL_KINDS, Architecture, Block
from graphprune.prunepass import Edit, Skipped, fate_of_caches, select_blocks
from graphprune.surgery import FittedValues, Place, fingerprint, macs_of, place_for, replace_block


@dataclass(frozen=True)
class ReplaceMean:
    """Put a constant in the place of blocks: `x + F(x) → x + constant`, the mean of what F added.

    `values` is the .npz file with what was fitted, `<block>/constant` [width]. Where a bias is added to the
    stream right before, the constant becomes part of it, and costs nothing. In a post-norm model the norm
    after the block stays. KV caches go with the block.
    """

    name: ClassVar[str] = "replace_mean"
    blocks: str | tuple[int | str, ...]
    values: str
    sha256: str = ""

    def pinned(self) -> ReplaceMean:
        """The same, bound to the file as it is now."""
        return replace(self, sha256=self.sha256 or fingerprint(self.values))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected block. Raises `RecipeError` where the values do not fit."""
        values = FittedValues.open(self.values, self.sha256)
        values.require_known(architecture)
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            if "constant" not in values.of(block.id):
                yield Skipped(block.id, f"{values.path} holds no constant for it")
            elif isinstance(place := place_for(block), str):
                yield Skipped(block.id, place)
            else:
                yield _edit(architecture, block, place, values)


def _edit(
    architecture: Architecture, block: Block, place: Place, values: FittedValues, kept: str = ""
) -> Edit:
    """The edit of one block; `kept` is why its caches stay, if they do."""
    values.read(block.id, "constant", [place.width])
    return Edit(
        block.id,
        f"put a constant of {place.width} in its place{fate_of_caches(block, kept)}",
        partial(_apply, block, architecture, place, values, bool(kept)),
        removes=(block,),
        keeps=(block,) if kept else (),
        uncaches=(block,) if block.caches and not kept else (),
        keeping=None if kept else partial(_edit, architecture, block, place, values),
        instead=macs_of(block, ()),
    )  # fmt: skip


def _apply(
    block: Block, architecture: Architecture, place: Place, values: FittedValues, keep_caches: bool
) -> None:
    constant = values.read(block.id, "constant", [place.width])
    replace_block(block, architecture, place, (), constant, keep_caches=keep_caches)
