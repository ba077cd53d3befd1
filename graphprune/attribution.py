"""Every node of a model to the block that it serves, or to the part of the model around the blocks.

Blocks are what recovery found, with the nodes that only they need. What is left gets a name by
where it stands: before the first block, between two stacks, after the last one, or beside them
(masks, positions, shapes), for several blocks at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune.blockparts import nodes_of
from graphprune.constants import constant_shape
from graphprune.dataflow import CONVOLUTIONS, Class, attribute_graphs, has_subgraph
from graphprune.scopes import Scope

if TYPE_CHECKING:
    from graphprune.architecture import Architecture, Block

# What surrounds the blocks, in the order in which it mostly runs.
BEFORE = ("backbone", "embedding", "positions", "masks", "shapes", "weights")
COMPILED = "compiled"
AFTER = (
    "convolutions", "linear maps", "between", "final norm", "pooling", "head", "control flow", COMPILED,
    "other",
)  # fmt: skip
UNREAD = "unread"
# So many convolutions before the first block are more than an embedding.
_BACKBONE = 4

POOLS = {
    "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "ReduceSum",
    "Gather", "GatherND", "Slice", "ArgMax",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a node belongs: to a block, by its id (`inside`), or to what surrounds the blocks.

    `part` is the part of a block (see `blockparts.nodes_of`), "" outside.
    """

    owner: str
    part: str = ""
    inside: bool = False


def attribute(architecture: Architecture, scope: Scope) -> dict[ir.Node, Place]:
    """The place of every node of the model that `architecture` was recovered from.

    Outside places are named `embedding` (what leads to the first block; `backbone` where that are several
    convolutions), `positions` (tables and what indexes them), `masks`, `shapes`, `weights` (constants that
    several blocks read), `between` (stacks), `final norm`, `pooling`, `head`, `control flow` (a node whose
    subgraphs hold the stacks), `other` (what has nothing to do with any block). In a model without blocks
    they are `convolutions` and `linear maps`, each with what follows it up to the next, and `other`.
    """
    blocks = list(architecture.blocks)
    found = _inside(blocks, scope)
    for norm in architecture.final_norms:
        for node in norm.nodes:
            found.setdefault(node, Place("final norm"))
    return found | _Outside.of(architecture, scope, found).places()


def _inside(blocks: Iterable[Block], scope: Scope) -> dict[ir.Node, Place]:
    """The nodes of blocks. A join with the next block's norm in it is of the block that it ends."""
    members = [(block, nodes_of(block, scope)) for block in blocks]
    found = {block.join: Place(block.id, parts[block.join], True) for block, parts in members}
    for block, parts in members:
        for node, part in parts.items():
            found.setdefault(node, Place(block.id, part, True))
    # It norms the first block's stream, and is the embedding at the same time.
    return {node: place for node, place in found.items() if node.op_type != "EmbedLayerNormalization"}


@dataclass(frozen=True, eq=False)
class _Outside:
    """What stands around the blocks.

    Blocks are numbered in the order of their joins. `last` is the latest block that a node
    depends on, `following` the earliest that depends on it, `leading` what leads to a stack's stream.
    """

    scope: Scope
    blocks: tuple[Block, ...]
    stack_of: tuple[int, ...]
    found: dict[ir.Node, Place]
    last: dict[ir.Node, int]
    following: dict[ir.Node, int]
    leading: set[ir.Node]

    @staticmethod
    def of(architecture: Architecture, scope: Scope, found: dict[ir.Node, Place]) -> _Outside:
        """Number the blocks, and look from every node up and down."""
        turn = {node: i for i, node in enumerate(scope.order)}
        pairs = [(block, i) for i, stack in enumerate(architecture.stacks) for block in stack.blocks]
        pairs.sort(key=lambda pair: turn[pair[0].join])
        number = {(block.id, block.join.graph): i for i, (block, _) in enumerate(pairs)}
        by_id = {block.id: i for i, (block, _) in enumerate(pairs)}
        own = {
            node: number.get((place.owner, node.graph), by_id[place.owner])
            for node, place in found.items()
            if place.inside
        }
        last: dict[ir.Node, int] = {}
        for node in scope.order:
            last[node] = own.get(node, max((last.get(f, -1) for f in scope.feeders[node]), default=-1))
        none = len(pairs)
        following: dict[ir.Node, int] = {}
        for node in reversed(scope.order):
            after = min((following.get(r, none) for r in scope.readers[node]), default=none)
            following[node] = own.get(node, after)
        firsts = [next(stack.blocks) for stack in architecture.stacks]
        return _Outside(
            scope, tuple(b for b, _ in pairs), tuple(s for _, s in pairs), found, last, following,
            _leading(firsts, scope, found),
        )  # fmt: skip

    def places(self) -> dict[ir.Node, Place]:
        """The places of all nodes that belong to no block."""
        positional = self._positional()
        headed = self._headed()
        linears = self._linears() if not self.blocks else {}
        places: dict[ir.Node, Place] = {}
        for node in reversed(self.scope.order):
            if node not in self.found:
                places[node] = linears.get(node) or self._place(node, places, positional, headed)
        return places

    def _linears(self) -> dict[ir.Node, Place]:
        """The nodes of a model without blocks: by the linear map that they are, or last depend on."""
        found: dict[ir.Node, Place] = {}
        for node in self.scope.order:
            before = [found[feeder] for feeder in self.scope.feeders[node]]
            found[node] = next((place for place in before if place.owner != "other"), Place("other"))
            if node in self.scope.linears:
                found[node] = Place("convolutions" if node.op_type in CONVOLUTIONS else "linear maps")
        return found

    def _place(
        self, node: ir.Node, places: dict[ir.Node, Place], positional: set[ir.Node], headed: set[ir.Node]
    ) -> Place:
        kind = self.scope.class_of(node)
        last, following = self.last[node], self.following[node]
        if has_subgraph(node) and self._hosts(node):
            return Place("control flow")
        if kind is Class.CONST:
            return self._of_readers(node, places)
        if node in self.leading:
            return Place(self._entrance if last < 0 else "between")
        if kind is Class.SHAPE:
            return Place("shapes")
        if last < 0:
            beside = "positions" if node in positional else "masks"
            return Place(beside if following < len(self.blocks) else "other")
        return self._after(node, last, following, headed)

    @cached_property
    def _entrance(self) -> str:
        """What leads to the first block is called."""
        convolutions = [n for n in self.leading & self.scope.linears if n.op_type in CONVOLUTIONS]
        deep = sum(self.last[node] < 0 for node in convolutions) >= _BACKBONE
        return "backbone" if deep else "embedding"

    def _after(self, node: ir.Node, last: int, following: int, headed: set[ir.Node]) -> Place:
        """What depends on a block: it leads on in the stack, or to another one, or out of the model."""
        if following == len(self.blocks):
            ends = last + 1 == len(self.blocks) or self.stack_of[last + 1] != self.stack_of[last]
            if ends:
                return Place("head" if node in headed else "pooling")
            return Place(self.blocks[last].id, "stream", True)
        if self.stack_of[last] == self.stack_of[following]:
            return Place(self.blocks[following].id, "stream", True)
        return Place("between")

    def _of_readers(self, node: ir.Node, places: dict[ir.Node, Place]) -> Place:
        """Constants belong to what reads them, if that is one place."""
        known = self.found | places
        read = {known[reader].owner: known[reader] for reader in self.scope.readers[node] if reader in known}
        return next(iter(read.values())) if len(read) == 1 else Place("weights")

    def _hosts(self, node: ir.Node) -> bool:
        """Whether a block lies in the subgraphs of a node."""
        graphs = [graph for a in node.attributes.values() for graph in attribute_graphs(a)]
        inner = {n.graph for graph in graphs for n in ir.traversal.RecursiveGraphIterator(graph)}
        return any(block.join.graph in inner for block in self.blocks)

    def _positional(self) -> set[ir.Node]:
        """What stands beside the blocks and leads to a table of positions or an angle, or comes from one."""
        beside = [n for n in self.scope.order if n not in self.found and self.last[n] < 0]
        made = {n for n in beside if n.op_type in {"Cos", "Sin"} or _looks_up(n)}
        asked = set(made)
        for node in beside:
            if made.intersection(self.scope.feeders[node]):
                made.add(node)
        for node in reversed(beside):
            if asked.intersection(self.scope.readers[node]):
                asked.add(node)
        return made | asked

    def _headed(self) -> set[ir.Node]:
        """What comes after the blocks at or after a linear map, or with no pooling before it."""
        headed: set[ir.Node] = set()
        pooled: set[ir.Node] = set()
        for node in self.scope.order:
            feeders = self.scope.feeders[node]
            outside = node not in self.found and self.last[node] >= 0
            if not outside:
                continue
            if node in self.scope.linears or any(feeder in headed for feeder in feeders):
                headed.add(node)
            elif node.op_type in POOLS or any(feeder in pooled for feeder in feeders):
                pooled.add(node)
            elif not any(reader in pooled for reader in self.scope.readers[node]):
                headed.add(node)
        return headed


def _looks_up(node: ir.Node) -> bool:
    """Whether a node reads a table: a Gather from a constant of two axes or more."""
    if node.op_type != "Gather" or not node.inputs or node.inputs[0] is None:
        return False
    dtype = node.inputs[0].dtype or (node.inputs[0].const_value.dtype if node.inputs[0].const_value else None)
    shape = constant_shape(node.inputs[0])
    return shape is not None and len(shape) > 1 and dtype is not None and dtype.is_floating_point()


def _leading(firsts: Iterable[Block], scope: Scope, found: dict[ir.Node, Place]) -> set[ir.Node]:
    """What leads to the streams of these blocks, by way of their own shortcuts and casts too."""
    seen: set[ir.Node] = set()
    for block in firsts:
        work = [block.stream_in.producer()]
        for node in work:
            place = found.get(node) if node is not None else None
            passed = place is None or not place.inside or place.owner == block.id
            if node is not None and node not in seen and passed:
                seen.add(node)
                work.extend(f for f in scope.feeders[node] if scope.class_of(f) is Class.DATA)
    return seen
