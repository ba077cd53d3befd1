"""Give output projections and norms fitted weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.architecture import ALL_KINDS, Architecture, Block
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import (
    FittedValues,
    fingerprint,
    output_projections,
    post_norm,
    read_norm,
    read_projections,
    refit_norm,
    refit_projections,
)


@dataclass(frozen=True)
class Refit:
    """Give blocks fitted weights: their output projections, and the norms after them in a post-norm model.

    `values` is the .npz file with what was fitted: `<block>/scale` and `<block>/shift` [width] become γ and
    β of the norm after the block, also where another step drops or replaces the block and leaves the norm;
    `<block>/weight.0` [k, width] (`weight.1` for the second branch of a parallel block) and `<block>/bias`
    [width] become the output projection and all of its bias. Weights that others share stay theirs. By
    default all blocks of which the file has something are refitted.
    """

    name: ClassVar[str] = "refit"
    values: str
    blocks: str | tuple[int | str, ...] = "all"
    sha256: str = ""

    def pinned(self) -> Refit:
        """The same, bound to the file as it is now."""
        return replace(self, sha256=self.sha256 or fingerprint(self.values))

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected block. Raises `RecipeError` where the values do not fit."""
        values = FittedValues.open(self.values, self.sha256)
        values.require_known(architecture)
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            keys = values.of(block.id)
            norm = keys & {"scale", "shift"}
            projections = {key for key in keys if key == "bias" or key.startswith("weight.")}
            if norm:
                yield _norm(architecture, block, values)
            if projections:
                yield _projections(architecture, block, values)
            if self.blocks != "all" and not norm and not projections:
                yield Skipped(block.id, f"{values.path} holds nothing to refit it by")


def _norm(architecture: Architecture, block: Block, values: FittedValues) -> Edit | Skipped:
    target, found = f"{block.id}.norm", post_norm(block)
    if isinstance(found, str):
        return Skipped(target, found)
    scale, shift = read_norm(values, block, found)
    parts = [name for name, part in (("γ", scale), ("β", shift)) if part is not None]

    def apply() -> None:
        refit_norm(block, found, architecture, *read_norm(values, block, found))

    return Edit(target, f"refit {' and '.join(parts)} of the norm after it", apply, norms=(found.norm,))


def _projections(architecture: Architecture, block: Block, values: FittedValues) -> Edit | Skipped:
    target, found = f"{block.id}.output", output_projections(block)
    if isinstance(found, str):
        return Skipped(target, found)
    weights, bias = read_projections(values, block, found)
    parts = [*(["the weight"] if weights else []), *(["the bias"] if bias is not None else [])]

    def apply() -> None:
        refit_projections(block, found, architecture, *read_projections(values, block, found))

    return Edit(target, f"refit {' and '.join(parts)} of its output projection", apply)
