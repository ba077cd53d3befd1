"""Delete attention blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import Architecture, Block, BlockKind
from graphprune.prunepass import Edit, Skipped, fate_of_caches, norms_behind, select_blocks, size_of
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
    `post_norm` is "drop". In a parallel block the FFN beside the attention stays. Where the
    loader of the result could not do without the cache, the keys and values stay.
    """

    name: ClassVar[str] = "drop_attention"
    blocks: str | tuple[int | str, ...]
    which: Literal["self", "cross", "both"] = "self"
    post_norm: Literal["keep", "drop"] = "keep"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to every selected attention."""
        for block in select_blocks(architecture, self.blocks, KINDS[self.which]):
            if block.droppable:
                yield self._edit(architecture, block)
            else:
                yield Skipped(block.id, block.reason)

    def _edit(self, architecture: Architecture, block: Block, kept: str = "") -> Edit:
        """The edit of one block; `kept` is why its caches stay, if they do."""
        parallel = block.kind == "parallel"
        return Edit(
            block.id,
            _what_goes(block) + fate_of_caches(block, kept),
            partial(
                drop_block, block, architecture,
                kinds=ATTENTION, norm=self.post_norm == "drop", keep_caches=bool(kept),
            ),
            removes=() if parallel else (block,),
            parts=tuple(one for one in block.branches if one.kind in ATTENTION) if parallel else (),
            keeps=(block,) if kept else (),
            uncaches=(block,) if block.caches and not kept else (),
            keeping=None if kept else partial(self._edit, architecture, block),
            norms=norms_behind(block) if self.post_norm == "drop" and not parallel else (),
        )  # fmt: skip


def _what_goes(block: Block) -> str:
    if block.kind == "parallel":
        return "drop the attention of the parallel block"
    what = "the cross-attention" if block.kind == "cross_attention" else "the attention"
    return f"drop {what}: {size_of(block)}"
