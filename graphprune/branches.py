"""What a branch is: its kind, and the roles of the linear maps, biases and activations in it.

Everything is read from the data flow: the projections of an attention are what leads to its
query, key and value operands, the halves of a gated FFN are the two sources of its product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphprune.architecture import Activation, Bias, BlockKind, Linear, Role
from graphprune.biases import (
    RoleCuts,
    biases_of,
    fused_attention_biases,
)
from graphprune.constants import constant_shape
from graphprune.dataflow import CONVOLUTIONS, MICROSOFT, Class, Flow, Op, weight_indices
from graphprune.ffns import CUTS, Gates, ffn_roles, linears_back, ops_back, values_back
from graphprune.joins import is_mixing

RECURRENT = {"Loop", "Scan", "LSTM", "GRU", "RNN", "CumSum", "DFT", "STFT"}


def kind_of(flow: Flow, ops: set[Op], root: int) -> BlockKind:
    """The kind of a branch that starts from `root`, by the ops of its region."""
    mixing = [op for op in ops if is_mixing(flow, op)]
    if mixing:
        return (
            "cross_attention"
            if _foreign_values(flow, max(mixing, key=lambda o: o.index), root)
            else "attention"
        )
    if any(op.node.op_type in RECURRENT for op in ops):
        return "other"
    linears = sorted((op for op in ops if op.linear), key=lambda op: op.index)
    if any(_spatial(op) for op in linears):
        tokenwise = not _is_conv(linears[0]) and not _is_conv(linears[-1])
        return "ffn" if tokenwise else "conv"
    return "ffn"


def _foreign_values(flow: Flow, context: Op, root: int) -> bool:
    """Whether the values that an attention sums do not come from the stream that asks."""
    node = context.node
    if context.node.op_type in {"Attention", "QAttention", "PackedAttention"} and node.domain == MICROSOFT:
        return False
    operands = context.inputs
    if node.op_type not in {"MatMul", "Einsum"} and node.op_type.endswith("Attention"):
        named = (flow.numbers.get(v) for v in node.inputs[:3] if v is not None)
        operands = tuple(n for n in named if n is not None)
    return not all(flow.depends(number, root) for number in operands)


def _is_conv(op: Op) -> bool:
    return op.node.op_type in CONVOLUTIONS


def _spatial(op: Op) -> bool:
    """Whether an op is a convolution over more than one position."""
    if not _is_conv(op):
        return False
    kernel = op.node.attributes.get("kernel_shape")
    if kernel is not None:
        return any(size > 1 for size in kernel.as_ints())
    weight = op.node.inputs[weight_indices(op.node)[0]]
    shape = constant_shape(weight) if weight is not None else None
    return shape is not None and any(size > 1 for size in shape[2:])


@dataclass(frozen=True, eq=False)
class Parts:
    """The linears, biases and activations of a branch."""

    linears: tuple[Linear, ...]
    biases: tuple[Bias, ...]
    activations: tuple[Activation, ...]
    gated: bool


Cuts = dict[Op, RoleCuts]


def read_parts(flow: Flow, kind: BlockKind, ops: set[Op], side: set[Op], terms: tuple[int, ...]) -> Parts:
    """Name the parts of a branch. `side` are ops that it alone reads and that do not come from the stream."""
    every = ops | side
    ends = linears_back(flow, terms, every)
    roles: dict[Op, Role] = {}
    cuts: Cuts = {}
    if kind in {"attention", "cross_attention"}:
        _attention_roles(flow, every, ends, roles, cuts)
    gates = ffn_roles(flow, every, ends, roles) if kind == "ffn" else Gates((), False)
    linears = sorted((op for op in every if op.linear), key=lambda op: op.index)
    biases = [b for op in linears for b in biases_of(flow, op, roles.get(op, "linear"), cuts.get(op, {}))]
    for op in sorted(every, key=lambda op: op.index):
        biases += fused_attention_biases(flow, op)
    return Parts(
        tuple(Linear(roles.get(op, "linear"), op.node, _weights(flow, op.node)) for op in linears),
        tuple(biases), gates.activations, gates.gated,
    )  # fmt: skip


def _weights(flow: Flow, node: ir.Node) -> tuple[ir.Value, ...]:
    values = (node.inputs[i] for i in weight_indices(node) if i < len(node.inputs))
    return tuple(v for v in values if v is not None and flow.class_of(v) is Class.CONST)


def _attention_roles(flow: Flow, ops: set[Op], ends: list[Op], roles: dict[Op, Role], cuts: Cuts) -> None:
    mixing = sorted((op for op in ops if is_mixing(flow, op)), key=lambda op: op.index)
    context = mixing[-1]
    for op in ends:
        roles[op] = "o"
    if context.linear:  # com.microsoft.Attention holds its own projections
        roles[context] = "qkv"
        return
    for role, number in _operands(flow, context, mixing[:-1], ops):
        for cut, op in values_back(flow, number, ops, lambda op: op.linear or is_mixing(flow, op)):
            if op.kind in CUTS:
                for linear in linears_back(flow, op.inputs[:1], ops):
                    cuts.setdefault(linear, {})[role] = cut
            if op.linear and op not in ends:
                roles[op] = role if roles.get(op, role) == role else "qkv"


def query_and_key_values(flow: Flow, ops: set[Op]) -> dict[int, Literal["q", "k"]]:
    """The values between the linears and an attention's queries (and only these), or its keys."""
    mixing = sorted((op for op in ops if is_mixing(flow, op)), key=lambda op: op.index)
    if not mixing or mixing[-1].linear:
        return {}
    found: dict[Role, set[int]] = {"q": set(), "k": set(), "v": set()}
    for role, number in _operands(flow, mixing[-1], mixing[:-1], ops):
        found[role].update(n for n, _ in values_back(flow, number, ops, lambda op: op.linear))
    shared = (found["q"] & found["k"]) | found["v"]
    queries: dict[int, Literal["q", "k"]] = dict.fromkeys(found["q"] - shared, "q")
    return queries | dict.fromkeys(found["k"] - shared, "k")


def _operands(flow: Flow, context: Op, earlier: list[Op], ops: set[Op]) -> Iterator[tuple[Role, int]]:
    """The query, key and value operands of an attention, fused or not."""
    if context.node.op_type not in {"MatMul", "Einsum"} and context.node.op_type.endswith("Attention"):
        names: tuple[Role, ...] = ("q", "k", "v")
        for role, value in zip(names, context.node.inputs[:3], strict=False):
            if value is not None and (number := flow.numbers.get(value)) is not None:
                yield role, number
        return
    for number in context.inputs[:2]:
        scores = [op for op in ops_back(flow, number, ops, lambda op: op in earlier) if op in earlier]
        if scores:
            yield "q", scores[0].inputs[0]
            yield "k", scores[0].inputs[1]
        else:
            yield "v", number
