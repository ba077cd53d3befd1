"""Put one linear map in the place of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from graphprune.architecture import ALL_KINDS, Architecture, Block
from graphprune.errors import RecipeError
from graphprune.prunepass import Edit, Skipped, fate_of_caches, select_blocks
from graphprune.surgery import (
    FittedValues,
    Place,
    fingerprint,
    macs_of,
    place_for,
    read_linear,
    replace_block,
)


@dataclass(frozen=True)
class ReplaceLinear:
    """Put a fitted linear map in the place of blocks: `x + F(norm(x)) → x + norm(x) @ linear + constant`.

    `values` is the .npz file with what was fitted, `<block>/linear` [width, width] and maybe
    `<block>/constant` [width]; two factors `linear.a` and `linear.b` become two products. With `rank` a
    whole map becomes two factors, by its largest singular values, where that is smaller. A pre-norm
    block's own norm stays and is read; in a post-norm model the stream is read, and the norm after the
    block stays; `<block>/stream` instead is a map that always reads the stream. KV caches go with the block.
    Linear maps in place of attention: Erdogan et al., 2025 (NBL), https://arxiv.org/abs/2505.21077.
    """

    name: ClassVar[str] = "replace_linear"
    blocks: str | tuple[int | str, ...]
    values: str
    rank: int = 0
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise RecipeError(f"rank is {self.rank}: it is a positive number, or 0 for the map as it is")

    def pinned(self) -> ReplaceLinear:
        """The same, bound to the file as it is now."""
        return replace(self, sha256=self.sha256 or fingerprint(self.values))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected block. Raises `RecipeError` where the values do not fit."""
        values = FittedValues.open(self.values, self.sha256)
        values.require_known(architecture)
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            if not values.of(block.id) & {"linear", "linear.a", "linear.b", "stream"}:
                yield Skipped(block.id, f"{values.path} holds no linear for it")
            elif isinstance(place := place_for(block, of_stream="stream" in values.of(block.id)), str):
                yield Skipped(block.id, place)
            else:
                yield self._edit(architecture, block, place, values)

    def _edit(
        self, architecture: Architecture, block: Block, place: Place, values: FittedValues, kept: str = ""
    ) -> Edit:
        """The edit of one block; `kept` is why its caches stay, if they do."""
        factors, _ = read_linear(values, block, place.width, self.rank)
        shape = " · ".join("×".join(map(str, factor.shape)) for factor in factors)
        return Edit(
            block.id,
            f"put a linear of {shape} in its place{fate_of_caches(block, kept)}",
            partial(_apply, block, architecture, place, values, self.rank, bool(kept)),
            removes=(block,),
            keeps=(block,) if kept else (),
            uncaches=(block,) if block.caches and not kept else (),
            keeping=None if kept else partial(self._edit, architecture, block, place, values),
            instead=macs_of(block, factors),
        )  # fmt: skip


def _apply(
    block: Block, architecture: Architecture, place: Place, values: FittedValues, rank: int, keep_caches: bool
) -> None:
    factors, constant = read_linear(values, block, place.width, rank)
    replace_block(block, architecture, place, factors, constant, keep_caches=keep_caches)
