"""Which part of its block a node is: a norm, the projections, the scores, the activation, the join."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphprune.architecture import Block, Branch, Role
from graphprune.dataflow import CONVOLUTIONS, Class
from graphprune.joins import FUSED_ATTENTION
from graphprune.scopes import Scope

PARTS: dict[Role, str] = {
    "q": "projections", "k": "projections", "v": "projections", "qkv": "projections", "o": "output",
    "up": "up", "gate": "up", "up_gate": "up", "down": "down", "linear": "linear",
}  # fmt: skip
# The order of the parts within a branch; what stands between the first and the last linear is the middle.
RANKS = {"projections": 1, "up": 1, "linear": 1, "fused": 2, "output": 3, "down": 3}
MIDDLE = {"attention": "scores", "cross_attention": "scores", "ffn": "activation"}
LAST = {"attention": "output", "cross_attention": "output", "ffn": "down"}
FIRST = {"attention": "projections", "cross_attention": "projections", "ffn": "up"}
# What may follow a linear and still be of it: scales of quantized products, biases, casts.
TRAILING = {"Cast", "Mul", "Add", "BiasAdd", "DequantizeLinear", "QuantizeLinear"}
# How many nodes are looked at between a join and the next block, and beside a branch for a projection.
_AFTER_JOIN, _SHORTCUT = 3, 8


def nodes_of(block: Block, scope: Scope) -> dict[ir.Node, str]:
    """The nodes of a block with the names of their parts; the nodes of its joins and norms are among them.

    Parts: `norm`, `join`, `stream` (what is done to the stream besides, such as to quantize it), `shortcut`
    (a projection in the way of the stream), and of an attention `projections`, `scores` (all between
    them and the output), `output`, or `fused` (projections and scores in one op); of an FFN `up`,
    `activation`, `down`; else `conv` or `linear`. In a parallel block the names of these begin with the
    branch's kind: `ffn.up`.
    """
    fixed = dict(_fixed(block, scope))
    members = fixed | {node: fixed.get(node, "") for node in block.nodes}
    branches = _branches(block, scope, members)
    ranks: dict[ir.Node, int] = {}
    # Where a node stands in its branch, from the front; then its name, from the back.
    for node in (node for node in scope.order if node in members):
        before = max((ranks.get(feeder, 0) for feeder in scope.feeders[node]), default=0)
        own = RANKS.get(members[node].rpartition(".")[2])
        ranks[node] = own if own is not None else _rank(node, before, fixed, scope)
    for node in (node for node in reversed(scope.order) if node in members):
        if not members[node]:
            members[node] = _name(node, ranks[node], branches.get(node), members, scope)
    return members


def _fixed(block: Block, scope: Scope) -> Iterator[tuple[ir.Node, str]]:
    """What the architecture itself names, the more telling name last."""
    many = len(block.branches) > 1
    yield from ((node, "shortcut") for node in _shortcut(block, scope))
    yield from ((node, "join") for node in _after_join(block, scope))
    yield from ((node, "join") for node in (*block.sums, block.join))
    for branch in block.branches:
        prefix = f"{branch.kind}." if many else ""
        yield from ((bias.node, prefix + PARTS[bias.role]) for bias in branch.biases)
        yield from ((n, prefix + "activation") for one in branch.activations for n in one.nodes)
        yield from ((node, "norm") for norm in branch.norms for node in norm.nodes)
        yield from ((one.node, prefix + _linear(one.role, one.node)) for one in branch.linears)
    yield from ((node, "norm") for norm in block.norms for node in norm.nodes)


def _linear(role: Role, node: ir.Node) -> str:
    if node.op_type in FUSED_ATTENTION:
        return "fused"
    return "conv" if role == "linear" and node.op_type in CONVOLUTIONS else PARTS[role]


def _branches(block: Block, scope: Scope, members: Iterable[ir.Node]) -> dict[ir.Node, Branch]:
    """The branch of each node: where it lies in, or where what it computes is read."""
    found = {node: branch for branch in block.branches for node in branch.nodes}
    within = set(members)
    for node in (node for node in reversed(scope.order) if node in within and node not in found):
        reader = next((r for r in scope.readers[node] if r in found), None)
        if reader is not None:
            found[node] = found[reader]
    if len(block.branches) == 1:
        found.update((node, block.branches[0]) for node in within)
    return found


def _rank(node: ir.Node, before: int, fixed: dict[ir.Node, str], scope: Scope) -> int:
    if before != 1 or node in fixed:
        return before
    data = [v for v in node.inputs if v is not None and scope.classes.get(v, Class.DATA) is Class.DATA]
    return 1 if len(data) == 1 and node.op_type in TRAILING else 2


def _name(node: ir.Node, rank: int, branch: Branch | None, members: dict[ir.Node, str], scope: Scope) -> str:
    """The part of a node by its place in its branch; what comes before or is no data goes with its reader."""
    if rank == 0 or branch is None or scope.class_of(node) < Class.DATA:
        read = (members[reader] for reader in scope.readers[node] if members.get(reader))
        return next(read, "stream")
    kind = branch.kind
    name = {1: FIRST, 2: MIDDLE, 3: LAST}[rank].get(kind, "conv" if kind == "conv" else "linear")
    return next((f"{kind}.{name}" for part in members.values() if part.startswith(f"{kind}.")), name)


def _after_join(block: Block, scope: Scope) -> list[ir.Node]:
    """What stands between the join and what the next block reads: the activation of a ResNet's block."""
    found: list[ir.Node] = []
    node = block.stream_out.producer()
    while node is not None and node is not block.join and len(found) < _AFTER_JOIN:
        found.append(node)
        data = [feeder for feeder in scope.feeders[node] if scope.class_of(feeder) is Class.DATA]
        node = data[0] if len(data) == 1 else None
    return found if node is block.join else []


def _shortcut(block: Block, scope: Scope) -> set[ir.Node]:
    """The linear and what goes with it between the start of the branch and a join that it meets projected."""
    inside = {node for branch in block.branches for node in branch.nodes}
    starts = {feeder for node in inside for feeder in scope.feeders.get(node, ())} - inside
    work, seen = [block.stream_in.producer()], set[ir.Node]()
    for node in work:
        if node is None or node in seen or node in starts:
            continue
        seen.add(node)
        if len(seen) > _SHORTCUT:
            return set()
        work.extend(scope.feeders.get(node, ()))
    return seen if seen & scope.linears else set()
