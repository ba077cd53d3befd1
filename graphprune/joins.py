"""Where branches meet the stream again: the joins of a graph, and the region of each branch.

A *join* is a sum of which one term (the stream) is an ancestor of every other one (the
branches), by ways that all pass a parametric linear map. Between the stream and the join lies
the *region*: what descends from the stream and leads to the join, and nowhere else. Sums of
masks, position biases, gates and the insides of norms all fail one of these conditions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graphprune.dataflow import TRANSPARENT, Flow, Op, source

# Ops that only rearrange what a cache holds on its way to a graph output.
LAYOUT = {
    "Unsqueeze", "Squeeze", "Concat", "Transpose", "Cast", "Reshape", "Slice", "Identity", "Split",
    "ScatterND", "ScatterElements", "Expand", "Gather", "QuantizeLinear", "DequantizeLinear", "QLinearConcat",
}  # fmt: skip
# How far a projection shortcut is followed back for the value that both of its sides start from.
PROJECTION_REACH = 400


@dataclass(frozen=True, eq=False)
class Join:
    """A sum that adds branches to the stream.

    `sums` are its add-like ops, the one that meets the stream last; `stream` is the number of
    the operand that is the stream, `terms` those of the branches (constants are left out), `total` that of
    the sum. `regions` holds the ops of each term's branch; a term that others share ops with
    shares its region too. `side` are terms that neither are the stream nor descend from it.
    """

    sums: tuple[Op, ...]
    stream: int
    terms: tuple[int, ...]
    side: tuple[int, ...]
    total: int
    region: frozenset[Op]
    projection: bool = False

    @property
    def op(self) -> Op:
        """The op of the sum that meets the stream."""
        return self.sums[-1]


@dataclass(frozen=True, eq=False)
class Refused:
    """A sum that adds a branch to its own source and yet is no join, and why."""

    op: Op
    reason: str


def find_joins(flow: Flow) -> tuple[list[Join], list[Refused]]:
    """The joins of a graph in the order of the stream, and what was refused."""
    trees = _sum_trees(flow)
    candidates: list[Join] = []
    refused: list[Refused] = []
    for sums in trees:
        found = _join_at(flow, sums)
        if isinstance(found, Join):
            candidates.append(found)
        elif found is not None:
            refused.append(found)
    joins, nested = _resolve_nesting(flow, candidates)
    inside = {op for join in joins for op in join.region}
    joins += _projections(flow, trees, {op for join in joins for op in join.sums} | inside)
    inside = {op for join in joins for op in join.region}
    refused = [r for r in refused if r.op not in inside] + nested
    return sorted(joins, key=lambda join: join.op.index), refused


def _sum_trees(flow: Flow) -> list[tuple[Op, ...]]:
    """Sums whose only reader is another sum are one sum with it; the outermost comes last."""
    trees: list[tuple[Op, ...]] = []
    inner: set[Op] = set()
    for op in reversed(flow.ops):
        if not op.additive or op in inner:
            continue
        tree = [op]
        for member in tree:
            for number in member.inputs:
                producer = _inner_sum(flow, number)
                if producer is not None:
                    tree.append(producer)
                    inner.add(producer)
        trees.append(tuple(reversed(tree)))
    return trees[::-1]


def _inner_sum(flow: Flow, number: int) -> Op | None:
    """The sum that a term is, casts and quantization aside, where nobody else reads it."""
    while _only_reader(flow, number):
        producer = flow.producers[number]
        if producer is None or producer.additive:
            return producer
        if producer.kind not in TRANSPARENT:
            return None
        number = producer.inputs[0]
    return None


def _only_reader(flow: Flow, number: int) -> bool:
    value = flow.values[number]
    return len(flow.consumers[number]) == 1 and not (value is not None and value.is_graph_output())


def _terms(flow: Flow, sums: tuple[Op, ...]) -> list[int]:
    inner = {flow.roots[number] for op in sums[:-1] for number in op.outputs}
    return [number for op in sums for number in op.inputs if flow.roots[number] not in inner]


def _join_at(flow: Flow, sums: tuple[Op, ...]) -> Join | Refused | None:
    """The join that a sum makes, if its terms are a stream and branches of it."""
    for chosen in (sums, sums[-1:]):
        terms = _terms(flow, chosen)
        for stream in terms:
            root = source(flow, stream)
            if root not in flow.bits:
                continue
            others = [t for t in terms if t != stream]
            branches = [t for t in others if flow.only_through_linear(t, root)]
            side = [t for t in others if not flow.depends(t, root)]
            if branches and len(branches) + len(side) == len(others):
                return _with_region(flow, chosen, stream, branches, side)
        if len(sums) == 1:
            break
    return None


def _with_region(
    flow: Flow, sums: tuple[Op, ...], stream: int, terms: list[int], side: list[int]
) -> Join | Refused:
    root = source(flow, stream)
    region, escape = walk_back(flow, terms, sums, lambda number: flow.roots[number] == root,
                               lambda number: flow.depends(number, root))  # fmt: skip
    if escape is not None:
        where = escape.node.name or escape.node.op_type
        return Refused(sums[-1], f"what its branch computes is also read outside of it, by node '{where}'")
    return Join(sums, stream, tuple(terms), tuple(side), sums[-1].outputs[0], frozenset(region))


def ops_between(
    flow: Flow, ends: Iterable[int], stop: Callable[[int], bool], inside: Callable[[int], bool]
) -> set[Op]:
    """The ops between `stop` values and `ends`, of those whose results are `inside`."""
    return walk_back(flow, ends, None, stop, inside)[0]


def walk_back(
    flow: Flow, ends: Iterable[int], exits: Iterable[Op] | None,
    stop: Callable[[int], bool], inside: Callable[[int], bool],
) -> tuple[set[Op], Op | None]:  # fmt: skip
    """The ops between `stop` values and `ends`, latest first; and the first reader outside, if any.

    Ops come in reverse topological order, so every reader of an op inside has been seen before
    it; one that was not is an escape, and the walk ends there. `exits` are readers outside that
    may be (None: all may).
    """
    region: set[Op] = set()
    allowed = set(exits) if exits is not None else None
    heap: list[int] = []

    def push(number: int) -> None:
        producer = flow.producers[number]
        if producer is not None and producer not in region and not stop(number) and inside(number):
            region.add(producer)
            heapq.heappush(heap, -producer.index)

    for number in ends:
        push(number)
    while heap:
        op = flow.ops[-heapq.heappop(heap)]
        if allowed is not None and (escape := _escape(flow, op, region, allowed)) is not None:
            return region, escape
        for number in op.inputs:
            push(number)
    return region, None


def _escape(flow: Flow, op: Op, region: set[Op], allowed: set[Op]) -> Op | None:
    readers = (reader for number in op.outputs for reader in flow.consumers[number])
    outside = (reader for reader in readers if reader not in region and reader not in allowed)
    return next((reader for reader in outside if not leads_out(flow, reader)), None)


def leads_out(flow: Flow, op: Op) -> bool:
    """Whether an op only rearranges a value for graph outputs (a cache's `present`) or for its shape."""
    work, seen = [op], {op}
    while work:
        current = work.pop()
        if current.node.op_type not in LAYOUT:
            return False
        readers = [r for number in current.outputs for r in flow.consumers[number]]
        work.extend(r for r in readers if r not in seen)
        seen.update(readers)
    return True


def _resolve_nesting(flow: Flow, candidates: list[Join]) -> tuple[list[Join], list[Refused]]:
    """Of joins within joins, keep those that are blocks.

    A join around several others is a long skip (U-Net, residual in residual): the inner ones
    are the blocks. A join around a single one is a block with a residual of its own inside, and
    so is one that has attention outside of its inner joins.
    """
    kept: dict[Op, Join] = {}
    refused: list[Refused] = []
    for outer in candidates:
        within = [kept[op] for op in outer.region if op in kept]
        covered = {op for inner in within for op in inner.region}
        if len(within) > 1 and not any(is_mixing(flow, op) for op in outer.region - covered):
            refused.append(Refused(outer.op, f"a long skip around {len(within)} blocks, not a block itself"))
            continue
        for inner in within:
            del kept[inner.op]
        kept[outer.op] = outer
    return list(kept.values()), refused


FUSED_ATTENTION = {
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention",
    "QAttention", "DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention",
    "LongformerAttention", "SparseAttention", "PagedAttention", "QOrderedAttention", "LinearAttention",
    "QOrderedLongformerAttention", "CausalConvWithState",
}  # fmt: skip
PRODUCTS = {
    "MatMul", "Einsum", "Gemm", "FusedMatMul", "TransposeMatMul", "QLinearMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
}  # fmt: skip


def is_mixing(flow: Flow, op: Op) -> bool:
    """Whether an op mixes tokens by their content: a fused attention, or a product of two activations."""
    if op.node.op_type in FUSED_ATTENTION:
        return True
    if op.linear or op.part or op.node.op_type not in PRODUCTS:
        return False
    return len(op.inputs) > 1 and op.inputs[0] != op.inputs[1]


def _projections(flow: Flow, trees: list[tuple[Op, ...]], taken: set[Op]) -> list[Join]:
    """Sums of two branches that start from one value: a shortcut that projects (ResNet)."""
    sums = {op for tree in trees for op in tree}
    found = []
    for tree in trees:
        if tree[-1] not in taken and len(tree) == 1 and len(set(tree[0].inputs)) == 2:
            join = _projection(flow, tree[0], sums)
            if join is not None:
                found.append(join)
    return found


def _projection(flow: Flow, op: Op, sums: set[Op]) -> Join | None:
    start = _common_start(flow, op.inputs, sums)
    if start is None:
        return None
    root = flow.roots[start]
    regions = [
        walk_back(flow, (t,), (op,), lambda n: flow.roots[n] == root, lambda n: True) for t in op.inputs
    ]
    if any(escape is not None for _, escape in regions) or regions[0][0] & regions[1][0]:
        return None
    if not all(any(o.linear for o in region) for region, _ in regions):
        return None
    short = min(range(2), key=lambda i: sum(o.linear for o in regions[i][0]))
    shortcut, branch = op.inputs[short], op.inputs[1 - short]
    return Join(
        (op,), shortcut, (branch,), (), op.outputs[0], frozenset(regions[1 - short][0]), projection=True
    )


def _common_start(flow: Flow, ends: Iterable[int], sums: set[Op]) -> int | None:
    """The single value from which all of `ends` are computed, found close by and before any other sum."""
    frontier = {flow.roots[n]: n for n in ends}
    for _ in range(PROJECTION_REACH):
        latest = max(frontier, key=lambda n: p.index if (p := flow.producers[n]) else -1)
        if len(frontier) == 1:
            return latest
        producer = flow.producers[latest]
        if producer is None or producer in sums:
            return None
        del frontier[latest]
        frontier |= {flow.roots[n]: n for n in producer.inputs}
    return None
