"""Delete attention blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import Architecture, Block, BlockKind
from graphprune.prunepass import Edit, Skipped, select_blocks, size_of
from graphprune.surgery import drop_block

ATTENTION: tuple[BlockKind, ...] = ("attention", "cross_attention")
KINDS: dict[str, tuple[BlockKind, ...]] = {
    "self": ("attention", "parallel"),
    "cross": ("cross_attention",),
    "both": ("attention", "parallel", "cross_attention"),
}


@dataclass(frozen=True)
class DropAttention:
    """Delete the attention of layers, and its KV cache inputs and outputs along with it.

    `which` says whether the self-attention goes, the cross-attention (of a decoder that reads
    an encoder), or both. In a post-norm model the norm after the block stays unless
    `post_norm` is "drop". In a parallel block the FFN beside the attention stays.
    """

    name: ClassVar[str] = "drop_attention"
    blocks: str | tuple[int | str, ...]
    which: Literal["self", "cross", "both"] = "self"
    post_norm: Literal["keep", "drop"] = "keep"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected attention."""
        for block in select_blocks(architecture, self.blocks, KINDS[self.which]):
            yield self._edit(architecture, block) if block.droppable else Skipped(block.id, block.reason)

    def _edit(self, architecture: Architecture, block: Block) -> Edit:
        apply = partial(
            drop_block, block, architecture.stack_of(block), architecture.model,
            kinds=ATTENTION, norm=self.post_norm == "drop",
        )  # fmt: skip
        if block.kind == "parallel":
            return Edit(block.id, "drop the attention of the parallel block", apply)
        what = "the cross-attention" if block.kind == "cross_attention" else "the attention"
        caches = sum(len(cache.inputs) + len(cache.outputs) for cache in block.caches)
        also = f", {caches} cache inputs and outputs" if caches else ""
        return Edit(block.id, f"drop {what}: {size_of(block)}{also}", apply, removes=(block,))
