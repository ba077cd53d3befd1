"""What a pass is: a frozen dataclass whose fields are its options, and a pure `plan`.

`plan` reads an `Architecture` and says, for every block that was asked for, what would happen
(`Edit`) or why nothing does (`Skipped`). Nothing changes until an edit's `apply` is called, so
a dry run costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from graphprune.selection import select_blocks, select_layers, select_stack

if TYPE_CHECKING:
    from graphprune.architecture import Architecture, Block, Branch, Norm
    from graphprune.macs import Macs

__all__ = ["Edit", "PrunePass", "Skipped", "select_blocks", "select_layers", "select_stack"]


@dataclass(frozen=True)
class Edit:
    """One change: `target` is a block's id, `summary` one line for people, `apply` makes it.

    `removes` are the blocks that are gone afterwards (empty where only a part of one goes), `parts` the
    branches that go of blocks that stay, `keeps` the blocks whose branch goes and whose keys and
    values are still computed. `uncaches` are the blocks whose KV caches
    go; `keeping` makes of a reason the same edit that leaves them, where there is such a one. `order`
    is given where the target is a stack: the numbers of its layers as they run afterwards.
    `instead` are the multiply-accumulates of what stands in the place of what is removed: None where
    nothing does. `spared` are those that a block that stays no longer does. `norms` are the norms behind
    joins that go along with `removes`; where that is empty, those that change, which stay where their block
    goes without them. One that is `last` is applied when all others are.
    """

    target: str
    summary: str
    apply: Callable[[], None]
    removes: tuple[Block, ...] = ()
    parts: tuple[Branch, ...] = ()
    keeps: tuple[Block, ...] = ()
    uncaches: tuple[Block, ...] = ()
    keeping: Callable[[str], Edit] | None = None
    order: tuple[int, ...] = ()
    instead: Macs | None = None
    spared: Macs | None = None
    norms: tuple[Norm, ...] = ()
    last: bool = False


@dataclass(frozen=True)
class Skipped:
    """Nothing happens to `target`, because of `reason`."""

    target: str
    reason: str


class PrunePass(Protocol):
    """A pass: a frozen dataclass; `name` is its recipe and CLI name, its docstring its help."""

    name: ClassVar[str]

    def plan(self, architecture: Architecture) -> Iterator[Edit | Skipped]:
        """Say what would be done to every block that the options select.

        Raises `SelectionError` where the options name what does not exist.
        """
        ...


def size_of(*blocks: Block) -> str:
    """What blocks hold, for an edit's summary: their nodes and parameters."""
    nodes = sum(len(block.nodes) for block in blocks)
    parameters = sum(block.parameters for block in blocks)
    return f"{nodes} nodes, {parameters:,} parameters"


def fate_of_caches(block: Block, kept: str) -> str:
    """What becomes of the caches of a block that goes, for an edit's summary; `kept` is why they stay."""
    if kept:
        return f"; keeps its KV cache: {kept}"
    number = sum(len(cache.inputs) + len(cache.outputs) for cache in block.caches)
    return f"; removes {number} cache inputs and outputs, renumbers the rest" if number else ""


def norms_behind(*blocks: Block) -> tuple[Norm, ...]:
    """The norms behind the joins of blocks."""
    return tuple(norm for block in blocks for norm in block.norms if norm.role == "post")
