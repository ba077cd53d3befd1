"""Delete FFN blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import Architecture, Block, BlockKind
from graphprune.prunepass import Edit, Skipped, norms_behind, select_blocks, size_of
from graphprune.surgery import drop_block

FFN: tuple[BlockKind, ...] = ("ffn",)


@dataclass(frozen=True)
class DropFfn:
    """Delete the FFN of layers: its linears, activation and biases, and its norm where that comes first.

    In a post-norm model (BERT) the norm after the block stays, `LN(x + F(x)) → LN(x)`, unless
    `post_norm` is "drop". In a parallel block (GPT-J, Falcon) the attention beside it stays.
    """

    name: ClassVar[str] = "drop_ffn"
    blocks: str | tuple[int | str, ...]
    post_norm: Literal["keep", "drop"] = "keep"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected FFN."""
        for block in select_blocks(architecture, self.blocks, ("ffn", "parallel")):
            yield self._edit(architecture, block) if block.droppable else Skipped(block.id, block.reason)

    def _edit(self, architecture: Architecture, block: Block) -> Edit:
        apply = partial(drop_block, block, architecture, kinds=FFN, norm=self.post_norm == "drop")
        if block.kind == "parallel":
            parts = tuple(one for one in block.branches if one.kind in FFN)
            return Edit(block.id, "drop the FFN of the parallel block", apply, parts=parts)
        norms = norms_behind(block) if self.post_norm == "drop" else ()
        return Edit(block.id, f"drop the FFN: {size_of(block)}", apply, removes=(block,), norms=norms)
