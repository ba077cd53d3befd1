"""From a join to a block: its branches with their parts, its norms, its caches and its costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from graphprune.architecture import Block, BlockKind, Branch, Cache, Norm, NormPlacement, NormRole
from graphprune.branches import kind_of, query_and_key_values, read_parts
from graphprune.constants import constant_shape
from graphprune.costs import op_macs, parameters
from graphprune.dataflow import ALIASES, Flow, Op, source
from graphprune.joins import Join, is_mixing, ops_between
from graphprune.macs import Macs
from graphprune.norms import FoundNorm
from graphprune.ownership import (
    CacheIO,
    as_caches,
    cache_ops,
    exclusive_nodes,
    find_cache_io,
    side_ops,
)
from graphprune.shapes import Dims, Shapes, token_dims

# What a linear map may hold besides its linears: biases, types, layouts.
_PLAIN = ALIASES | {"Add"}


@dataclass(frozen=True, eq=False)
class RawBlock:
    """A block that knows its join and region, but not yet its place in a stack."""

    flow: Flow
    join: Join
    kind: BlockKind
    branches: tuple[Branch, ...]
    sums: tuple[Op, ...]
    norms: tuple[tuple[NormRole, FoundNorm], ...]
    norm_after: FoundNorm | None
    io: CacheIO
    nodes: tuple[ir.Node, ...]
    macs: Macs
    tokens: Dims
    signature: Hashable

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The block's caches."""
        return as_caches(self.io, self.kind)

    @property
    def is_linear(self) -> bool:
        """Whether it is nothing but a linear map: with no activation, gate or mixing between its linears."""
        plain = all(b.kind == "ffn" and not b.activations and not b.gated for b in self.branches)
        return plain and all(
            op.linear or op.kind in _PLAIN for op in self.join.region if not self._is_norm(op)
        )

    def _is_norm(self, op: Op) -> bool:
        return any(op in norm.ops for _, norm in self.norms)

    def placement(self, following: RawBlock | None, chain: Sequence[RawBlock]) -> NormPlacement:
        """Where the block's norms sit.

        A norm after the join is the block's own (post-norm) if the next block's stream comes
        out of it; after the last block it may as well be the stack's final norm, and is where no
        block before it has such a norm, or any of the stack has norms inside of its branch. A norm on what
        the branch puts out makes a sandwich, also without one on its other side (OLMo 2); in a
        convolutional block it belongs to the convolution.
        """
        roles = {role for role, _ in self.norms}
        if self.norm_after is not None and (following is not None or _norms_its_sums(chain)):
            return "post"
        if "branch_post" in roles and self.kind != "conv":
            return "sandwich"
        return "pre" if "pre" in roles else "none"

    def finish(self, name: str, following: RawBlock | None, chain: Sequence[RawBlock]) -> Block:
        """The block under its name, `following` being the next one of its stack."""
        placement = self.placement(following if self._feeds(following) else None, chain)
        norms = [as_norm(self.flow, norm, role) for role, norm in self.norms]
        if placement == "post" and self.norm_after is not None:
            norms.append(as_norm(self.flow, self.norm_after, "post"))
        reason = self._undroppable()
        size = parameters(self.flow, self.nodes, self.branches)
        return Block(
            name, self.kind, self.join.op.node, tuple(dict.fromkeys(op.node for op in self.sums)),
            self._stream_in(), self._stream_out(following, placement), self.branches, tuple(norms), placement,
            self.nodes, size, self.macs, self.caches, not reason, reason, self.tokens,
        )  # fmt: skip

    def _feeds(self, following: RawBlock | None) -> bool:
        """Whether the next block's stream comes out of the norm after this join."""
        if following is None or self.norm_after is None:
            return False
        return self.flow.roots[self.norm_after.output] == source(self.flow, following.join.stream)

    def _stream_in(self) -> ir.Value:
        value = self.flow.values[self.join.stream]
        assert value is not None or self.join.op.node
        return value if value is not None else self.join.op.node.outputs[0]

    def _stream_out(self, following: RawBlock | None, placement: NormPlacement) -> ir.Value:
        number = self.join.total
        if following is not None:
            number = source(self.flow, following.join.stream)
        elif placement == "post" and self.norm_after is not None:
            number = self.norm_after.output
        value = self.flow.values[number]
        return value if value is not None else self.join.op.node.outputs[0]

    def _undroppable(self) -> str:
        node = self.join.op.node
        where = node.name or node.op_type
        if self.join.projection:
            return f"the shortcut into node '{where}' is a projection: without the branch, its shape changes"
        if self.io.observed:
            return f"its inside is a graph output: '{self.io.observed[0].name}'"
        if _broadcasts(self.flow.values[self.join.stream], self.flow.values[self.join.total]):
            return f"node '{where}' broadcasts the stream: without the branch, its shape changes"
        return ""


def _norms_its_sums(chain: Sequence[RawBlock]) -> bool:
    """Whether the norm after the last block of a chain is the block's own, as far as the others tell."""
    if any(role in ("pre", "branch_post") for block in chain for role, _ in block.norms):
        return False
    others = [before._feeds(after) for before, after in pairwise(chain)]
    return any(others) or not others


def _broadcasts(before: ir.Value | None, after: ir.Value | None) -> bool:
    """Whether a sum is known to have another shape than its stream."""
    if before is None or after is None or before.shape is None or after.shape is None:
        return False
    pairs = zip(before.shape, after.shape, strict=False)
    known = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    return before.shape.rank() != after.shape.rank() or any(a != b for a, b in known)


def as_norm(flow: Flow, norm: FoundNorm, role: NormRole) -> Norm:
    """A found norm in terms of the graph's own values."""
    output = flow.values[norm.output]
    assert output is not None
    fused = norm.ops[0].part == "norm" and norm.ops[0].node.op_type != "EmbedLayerNormalization"
    nodes = tuple(dict.fromkeys(op.node for op in norm.ops))
    return Norm(norm.kind, role, nodes, flow.values[norm.input], output, norm.scale, norm.bias, fused)


def read_blocks(
    flow: Flow, joins: Sequence[Join], norms: Sequence[FoundNorm], shapes: Shapes
) -> list[RawBlock]:
    """Read every join's block, in the order of the stream."""
    by_op = {op: norm for norm in norms for op in norm.ops}
    after = {flow.roots[norm.input]: norm for norm in norms}
    return [_read_block(flow, join, by_op, after.get(join.total), shapes) for join in joins]


def _read_block(
    flow: Flow, join: Join, by_op: dict[Op, FoundNorm], norm_after: FoundNorm | None, shapes: Shapes
) -> RawBlock:
    root = source(flow, join.stream)
    region = set(join.region)
    side = side_ops(flow, region)
    io = find_cache_io(flow, region, side)
    sums, groups = _split(flow, join, root)
    roles = _norm_roles(flow, join, root, region, by_op)
    cached = cache_ops(flow, io, region | side)
    branches: list[Branch] = []
    for terms, ops in groups:
        kind = kind_of(flow, ops, root)
        norms = dict.fromkeys(by_op[op] for op in _sorted(ops) if op in by_op)
        macs = op_macs(flow, kind, ops, side, io, root, shapes)
        costs = _total(macs.values()), _total(macs[op] for op in macs.keys() & cached)
        branches.append(_branch(flow, kind, terms, ops, side, [(norm, roles[norm]) for norm in norms], costs))
    return RawBlock(
        flow, join, branches[0].kind if len(branches) == 1 else "parallel", tuple(branches), sums,
        tuple((role, norm) for norm, role in roles.items()), norm_after, io,
        tuple(_nodes(flow, join, sums, region | side, io, root)),
        _total(branch.macs for branch in branches), _tokens(flow, branches, root, shapes),
        _signature(branches),
    )  # fmt: skip


def _tokens(flow: Flow, branches: Sequence[Branch], root: int, shapes: Shapes) -> Dims:
    return () if any(branch.kind == "conv" for branch in branches) else token_dims(flow, root, shapes)


def _total(macs: Iterable[Macs]) -> Macs:
    return sum(macs, Macs())


def _signature(branches: Iterable[Branch]) -> Hashable:
    """What two blocks of one place in a layer have in common: roles and shapes of their weights."""
    linears = (linear for branch in branches for linear in branch.linears)
    return tuple((linear.role, tuple(map(constant_shape, linear.weights))) for linear in linears)


def _sorted(ops: Iterable[Op]) -> list[Op]:
    return sorted(ops, key=lambda op: op.index)


Group = tuple[tuple[int, ...], set[Op]]


def _split(flow: Flow, join: Join, root: int) -> tuple[tuple[Op, ...], list[Group]]:
    """The branches that meet in a join: one, or an attention and an FFN side by side."""
    whole: list[Group] = [(join.terms, set(join.region))]
    if len(join.terms) == 1:
        inner = _inner_sum(flow, join.terms[0], root)
        terms = inner.inputs if inner is not None else ()
        sums = (inner, *join.sums) if inner is not None else join.sums
    else:
        terms, sums = join.terms, join.sums
    groups: list[Group] = [((term,), _region(flow, term, root)) for term in terms]
    mixing = [any(is_mixing(flow, op) for op in ops) for _, ops in groups]
    layered = all(_depth(flow, ops) > 1 for _, ops in groups)
    if len(groups) == 2 and sorted(mixing) == [False, True] and layered:
        return sums, groups
    return join.sums, whole


def _region(flow: Flow, term: int, root: int) -> set[Op]:
    return ops_between(flow, (term,), lambda n: flow.roots[n] == root, lambda n: flow.depends(n, root))


def _inner_sum(flow: Flow, term: int, root: int) -> Op | None:
    """The sum behind a branch's result, looked for through casts and scalings."""
    producer = flow.producers[term]
    while producer is not None:
        if producer.additive:
            both = all(flow.only_through_linear(n, root) for n in producer.inputs)
            return producer if both and len(producer.inputs) == 2 else None
        if len(producer.inputs) != 1 or producer.kind not in ALIASES | {"Mul"}:
            return None
        producer = flow.producers[producer.inputs[0]]
    return None


def _depth(flow: Flow, ops: set[Op]) -> int:
    """How many linears a branch has (2 is enough to know; a fused attention may hold its own)."""
    return 2 if any(is_mixing(flow, op) and op.linear for op in ops) else sum(op.linear for op in ops)


def _branch(
    flow: Flow, kind: BlockKind, terms: tuple[int, ...], ops: set[Op], side: set[Op],
    norms: Sequence[tuple[FoundNorm, NormRole]], costs: tuple[Macs, Macs],
) -> Branch:  # fmt: skip
    parts = read_parts(flow, kind, ops, side, terms)
    inner = tuple(as_norm(flow, norm, role) for norm, role in norms if role != "pre")
    values = tuple(v for t in terms if (v := flow.values[t]) is not None)
    nodes = tuple(dict.fromkeys(op.node for op in _sorted(ops)))
    return Branch(
        kind, values, nodes, parts.linears, parts.biases, parts.activations, inner, *costs, parts.gated
    )


def _norm_roles(
    flow: Flow, join: Join, root: int, region: set[Op], by_op: dict[Op, FoundNorm]
) -> dict[FoundNorm, NormRole]:
    """The norms inside of a branch, in order, and what each is for."""
    norms = dict.fromkeys(by_op[op] for op in _sorted(region) if op in by_op)
    operands = query_and_key_values(flow, region) if norms else {}
    roles: dict[FoundNorm, NormRole] = {}
    for norm in norms:
        if flow.roots[norm.input] == root:
            roles[norm] = "pre"
        elif _leads_to(flow, norm.output, set(join.terms), region):
            roles[norm] = "branch_post"
        else:
            roles[norm] = operands.get(norm.output, "inner")
    return roles


def _leads_to(flow: Flow, number: int, terms: set[int], region: set[Op]) -> bool:
    """Whether a norm's result is a term of the sum, scalings and layouts aside."""
    while number not in terms:
        readers = [r for r in flow.consumers[number] if r in region]
        if len(readers) != 1 or readers[0].kind not in ALIASES | {"Mul"} or len(readers[0].inputs) != 1:
            return False
        number = readers[0].outputs[0]
    return True


def _nodes(
    flow: Flow, join: Join, sums: tuple[Op, ...], ops: set[Op], io: CacheIO, root: int
) -> list[ir.Node]:
    """All nodes that go with the block: those of its ops, its plain sums, and what only they read."""
    core: dict[ir.Node, None] = {}
    for op in _sorted(ops):
        if not op.part:
            core[op.node] = None
    core.update((op.node, None) for op in sums if not op.part)
    core.update((node, None) for node in io.layouts)
    stream = [p.node for n in (join.stream, root) if (p := flow.producers[n]) is not None]
    return list(exclusive_nodes(core, io.outputs, stream))
