"""Delete normalizations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import ALL_KINDS, Architecture, Norm, NormRole
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import bypass_norm

ROLES: dict[str, tuple[NormRole, ...]] = {
    "block": ("pre", "post", "branch_post"),
    "pre": ("pre",),
    "post": ("post", "branch_post"),
    "qk": ("q", "k"),
    "all": ("pre", "post", "branch_post", "q", "k", "inner"),
}


@dataclass(frozen=True)
class DropNorm:
    """Delete the norms of blocks, γ and β along with them; what was normalized passes on as it is.

    `which` says which ones: those of the "block" (before it, after it, or both), only "pre" or
    "post", the "qk" norms inside of attention, or "all".
    """

    name: ClassVar[str] = "drop_norm"
    blocks: str | tuple[int | str, ...]
    which: Literal["block", "pre", "post", "qk", "all"] = "block"

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to the norms of every selected block."""
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            norms = [norm for norm in block.norms if norm.role in ROLES[self.which]]
            fixed = next((norm for norm in norms if _embedded(norm)), None)
            if not norms:
                yield Skipped(block.id, f"it has no such norm ({self.which})")
            elif fixed is not None:
                yield Skipped(
                    block.id, f"its norm is fused into node '{fixed.nodes[0].name}' with the embeddings"
                )
            else:
                kinds = ", ".join(f"{norm.role} {norm.kind} norm" for norm in norms)
                behind = tuple(norms) if all(norm.role == "post" for norm in norms) else ()
                yield Edit(block.id, f"drop the {kinds}", partial(_bypass, norms), norms=behind)


def _embedded(norm: Norm) -> bool:
    return norm.nodes[0].op_type == "EmbedLayerNormalization"


def _bypass(norms: list[Norm]) -> None:
    for norm in norms:
        bypass_norm(norm)
