"""Take the skip around blocks away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import ALL_KINDS, Architecture
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import drop_residual


@dataclass(frozen=True)
class DropResidual:
    """Take the residual Add of blocks away and keep the branch: `x + F(x) → F(x)`.

    A layer's number means all its blocks; `encoder.3.ffn` means one.
    """

    name: ClassVar[str] = "drop_residual"
    blocks: str | tuple[int | str, ...]

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected block."""
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            if not block.droppable or not all(branch.terms for branch in block.branches):
                yield Skipped(block.id, block.reason or f"its Add is fused into node '{block.join.name}'")
            else:
                yield Edit(
                    block.id, "keep the branch, drop the stream beside it", partial(drop_residual, block)
                )
