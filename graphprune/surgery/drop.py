"""Dropping blocks: their branches, their caches, and the norm after them where it is to go too."""

from __future__ import annotations

from collections.abc import Collection

from graphprune.architecture import Architecture, Block, BlockKind
from graphprune.surgery.caches import remove_caches
from graphprune.surgery.sums import bypass_norm, drop_branch

ATTENTIONS = {"attention", "cross_attention"}


def drop_block(
    block: Block,
    architecture: Architecture,
    *,
    kinds: Collection[BlockKind] | None = None,
    norm: bool = False,
    keep_caches: bool = False,
) -> None:
    """Take a block's branches (those of `kinds`, if given) out of the stream.

    `norm` says that a norm after the join goes too (post-norm models; it stays by default).
    With `keep_caches` the keys and values are still computed and put out.
    A block that an earlier edit has taken out is left as it is.
    """
    branches = [b for b in block.branches if kinds is None or b.kind in kinds or block.kind in kinds]
    for branch in branches:
        drop_branch(branch, block)
    if not keep_caches and any(branch.kind in ATTENTIONS for branch in branches):
        remove_caches(block, architecture)
    if norm and block.placement == "post":
        for one in block.norms:
            if one.role == "post":
                bypass_norm(one)
