"""Delete biases, by what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from graphprune.architecture import ALL_KINDS, Architecture, Bias, Norm
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import drop_bias, drop_norm_bias

Which = Literal["q", "k", "v", "qkv", "o", "up", "gate", "up_gate", "down", "linear", "norm"]
PACKED = {"q", "k", "v"}


@dataclass(frozen=True)
class DropBias:
    """Delete the biases of blocks: their Adds, or the inputs of fused ops that hold them.

    `roles` picks them by what they belong to (all but "norm" by default): the projections "q",
    "k", "v", "o" of attention, "up", "gate", "down" of an FFN ("qkv" and "up_gate" where packed
    ones cannot be told apart), other "linear" ones, and "norm" (β of the block's norms). One
    part of a packed bias becomes zero, all parts of it go.
    """

    name: ClassVar[str] = "drop_bias"
    blocks: str | tuple[int | str, ...] = "all"
    roles: tuple[Which, ...] = ("q", "k", "v", "qkv", "o", "up", "gate", "up_gate", "down", "linear")

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to the biases of every selected block."""
        for block in select_blocks(architecture, self.blocks, ALL_KINDS):
            biases = [b for branch in block.branches for b in branch.biases if b.role in self.roles]
            norms = [n for n in block.norms if n.bias is not None] if "norm" in self.roles else []
            if biases or norms:
                names = [*(bias.role for bias in biases), *(f"{norm.role}-norm β" for norm in norms)]
                apply = partial(_drop, _whole(biases), norms)
                yield Edit(block.id, f"drop the bias of {', '.join(dict.fromkeys(names))}", apply)
            else:
                yield Skipped(block.id, f"it has no bias of {', '.join(self.roles)}")


def _whole(biases: list[Bias]) -> list[Bias]:
    """Parts that make up all of a packed bias, as that one."""
    parts: dict[tuple[int, int], list[Bias]] = {}
    for bias in biases:
        parts.setdefault((id(bias.node), bias.index), []).append(bias)
    whole = []
    for group in parts.values():
        if {bias.role for bias in group} == PACKED:
            whole.append(Bias("qkv", group[0].node, group[0].index, group[0].value))
        else:
            whole.extend(group)
    return whole


def _drop(biases: list[Bias], norms: list[Norm]) -> None:
    for bias in biases:
        drop_bias(bias)
    for norm in norms:
        drop_norm_bias(norm)
