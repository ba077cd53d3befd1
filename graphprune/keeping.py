"""Which KV caches stay although the attention that reads them goes: a question to a whole recipe.

optimum zips the self- and the cross-caches of a decoder by their position: a layer loses both or
none. The last self-cache of a graph stays for every loader: without it nobody knows at which
position a step is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphprune.architecture import Architecture, Block, Layer
    from graphprune.prunepass import Edit

PAIRS = "optimum pairs four of them a layer"
LAST = "the last one tells how long the past is"


def caches_kept(architecture: Architecture, edits: Iterable[Edit]) -> dict[Edit, str]:
    """Of all edits of one file, those that must leave the caches of their blocks, and why."""
    edit_of = {block: edit for edit in edits for block in edit.uncaches}
    kept: dict[Edit, str] = {}
    for layers in _by_graph(architecture):
        for layer in layers if architecture.loader == "optimum" else ():
            cached = [block for block in layer.blocks if block.caches]
            gone = [block for block in cached if block in edit_of]
            if len(gone) < len(cached):
                kept |= {edit_of[block]: PAIRS for block in gone}
        kept |= dict.fromkeys(_last(layers, edit_of, kept), LAST)
    return kept


def _by_graph(architecture: Architecture) -> Iterator[list[Layer]]:
    """The layers of every graph, of all its stacks."""
    for graph in dict.fromkeys(stack.graph for stack in architecture.stacks):
        yield [layer for stack in architecture.stacks if stack.graph is graph for layer in stack.layers]


def _last(layers: Iterable[Layer], edit_of: Mapping[Block, Edit], kept: Mapping[Edit, str]) -> Iterator[Edit]:
    """Where all self-caches would go: what takes those of the last layer, of one that can do without."""
    caching = {layer: own for layer in layers if (own := [b for b in layer.blocks if _holds_self(b)])}
    owners = [block for own in caching.values() for block in own]
    if any(block not in edit_of or edit_of[block] in kept for block in owners):
        return
    able = [layer for layer, own in caching.items() if all(edit_of[block].keeping for block in own)]
    for layer in (able or [*caching])[-1:]:
        yield from (edit_of[block] for block in layer.blocks if block in edit_of)


def _holds_self(block: Block) -> bool:
    return any(cache.kind == "self" for cache in block.caches)
