"""Make FFNs linear, or bilinear where they are gated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphprune.architecture import Activation, Architecture
from graphprune.prunepass import Edit, Skipped, select_blocks
from graphprune.surgery import drop_activation


@dataclass(frozen=True)
class DropActivation:
    """Delete the activation of FFNs: a gated one becomes bilinear, a plain one two linears in a row.

    Bilinear FFNs: Shazeer, 2020, https://arxiv.org/abs/2002.05202.
    """

    name: ClassVar[str] = "drop_activation"
    blocks: str | tuple[int | str, ...]

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would happen to the activation of every selected FFN."""
        for block in select_blocks(architecture, self.blocks, ("ffn", "parallel")):
            branch = next(branch for branch in block.branches if branch.kind == "ffn")
            if branch.activations:
                ops = "·".join(dict.fromkeys(n.op_type for a in branch.activations for n in a.nodes))
                result = "bilinear" if branch.gated else "linear"
                yield Edit(block.id, f"drop {ops}: a {result} FFN", partial(_drop, branch.activations))
            else:
                yield Skipped(block.id, "no activation of its own was found between its linears")


def _drop(activations: tuple[Activation, ...]) -> None:
    for activation in activations:
        drop_activation(activation)
