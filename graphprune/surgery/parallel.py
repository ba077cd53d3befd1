"""Blocks that run one after another, side by side instead: all of them read one value of the stream.

Pairs of layers in parallel: González et al., 2025, https://arxiv.org/abs/2502.02790; attention and FFN on
one input: Wang and Komatsuzaki, 2021 (GPT-J), https://github.com/kingoflolz/mesh-transformer-jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import onnx_ir as ir

from graphprune.architecture import Block
from graphprune.dataflow import SHAPE_OPS, SKIP_NORMS
from graphprune.errors import EditError
from graphprune.surgery.fitted import said
from graphprune.surgery.sums import sum_of
from graphprune.surgery.values import NOTES, current, graph_of, sort

# What may stand between two blocks: other names, types, and the tokens in one axis or in two (OPT).
_RENAMES = {"Cast", "Identity", "Reshape"}
_Operand: TypeAlias = tuple[ir.Node, int, int]
# Marks graphs of which layers do not follow each other any more.
PARALLEL = f"{NOTES}parallel"


def why_not_parallel(blocks: Sequence[Block]) -> str:
    """Why consecutive blocks cannot read one value of the stream; empty where they can. Changes nothing."""
    for block in blocks:
        if not block.droppable:
            return f"{block.id}: {block.reason}"
        if block.placement == "post":
            return f"{block.id}: the norm behind its join makes what the next block reads"
        if not any(value is block.stream_in for node in block.sums for value in node.inputs):
            return f"{block.id}: its join, {said(block.join)}, does not read the stream as its branch does"
    for before, block in pairwise(blocks):
        if _way(block.stream_in)[0] not in before.join.outputs:
            return f"{block.id} does not read the stream right behind {before.id}"
    return ""


@dataclass(frozen=True, eq=False)
class _Ends:
    """Where a block reads the stream, where its join does, and what comes out of the join.

    `changes` (of type or layout) stand between what the block before puts out and what the block reads; an
    operand is (node, index, how many of them are before it).
    """

    changes: tuple[ir.Node, ...]
    reads: tuple[_Operand, ...]
    joint: _Operand
    total: ir.Value

    def read(self, operand: _Operand, stream: ir.Value) -> None:
        """Let an operand read `stream`, in the type and layout that it reads now."""
        node, index, count = operand
        for change in self.changes[:count]:
            inputs = [stream, *change.inputs[1:]]
            new = ir.Node(change.domain, change.op_type, inputs, list(change.attributes.values()))
            new.outputs[0].type, new.outputs[0].shape = change.outputs[0].type, change.outputs[0].shape
            graph_of(node).insert_before(node, new)
            stream = new.outputs[0]
        node.replace_input_with(index, stream)


def run_beside(groups: Sequence[Sequence[Block]]) -> None:
    """Let the blocks of each group read one value: the stream behind all blocks of the groups before it.

    `groups` hold consecutive blocks of a stack: the first of all comes first, and the last last. Blocks that
    are gone are passed by. Raises `EditError` where an earlier edit has put something in a block's place.
    """
    blocks = [block for group in groups for block in group]
    totals = {block: sum_of(block.join) for block in blocks}
    start = _way(current(blocks[0].stream_in))[0]
    if (maker := start.producer()) is not None and maker.op_type in SKIP_NORMS:
        start = sum_of(maker)
    found = {block: _ends(block, current(total)) for block, total in totals.items()}
    stream = start
    for group in groups:
        source = stream
        for ends in (one for block in group if (one := found[block]) is not None):
            for operand in ends.reads:
                ends.read(operand, source)
            ends.read(ends.joint, stream)
            stream = ends.total
    for graph in dict.fromkeys(graph_of(ends.joint[0]) for ends in found.values() if ends is not None):
        graph.meta[PARALLEL] = True
        sort(graph)


def _ends(block: Block, total: ir.Value) -> _Ends | None:
    """What of a block with this sum reads the stream; None where the block is gone."""
    stream, *values = _way(current(block.stream_in))
    if _way(total)[0] is stream:
        return None
    changes = [node for value in values if (node := value.producer()) is not None]
    operands = [
        (use.node, use.idx, count)
        for count, value in enumerate((stream, *values))
        for use in value.uses()
        if use.node not in changes and use.node.op_type not in SHAPE_OPS
    ]
    joints = [one for one in operands if one[0] is total.producer() or one[0] in block.sums]
    reads = tuple(one for one in operands if one not in joints)
    if len(joints) != 1 or not reads:
        raise EditError(
            f"{block.id} is not as it was: what changes it and what runs it beside others need two runs"
        )
    return _Ends(tuple(changes), reads, joints[0], total)


def _way(value: ir.Value) -> list[ir.Value]:
    """A value as it is made, and the names, types and shapes by which it gets to be `value`."""
    way = [value]
    while (maker := way[0].producer()) is not None and maker.op_type in _RENAMES:
        before = maker.inputs[0]
        assert before is not None
        way.insert(0, before)
    return way
