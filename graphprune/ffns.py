"""The parts of a feed-forward branch: up, gate and down, and the activation between them.

Also the walks back over a branch that tell which linear leads to a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graphprune.architecture import Activation, Role
from graphprune.biases import FUSED_BIAS_ACTIVATIONS, added_bias, rescales
from graphprune.dataflow import ALIASES, ELEMENTWISE, Flow, Op
from graphprune.joins import ops_between

# What an activation function may be put together from.
POINTWISE = ALIASES | ELEMENTWISE | {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Sigmoid", "HardSigmoid",
    "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg",
    "Sign", "Reciprocal", "Clip", "Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And",
    "Or", "FastGelu", "BiasGelu", "QuickGelu", "QLinearSigmoid", "QLinearLeakyRelu",
}  # fmt: skip
# Ops that take a part of a packed projection.
CUTS = {"Split", "Slice", "Gather", "SplitToSequence"}


def ops_back(flow: Flow, number: int, within: set[Op], stop: Callable[[Op], bool]) -> Iterator[Op]:
    """The ops met going back from a value, not past those that `stop` (these included)."""
    return (op for _, op in values_back(flow, number, within, stop))


def values_back(
    flow: Flow, number: int, within: set[Op], stop: Callable[[Op], bool]
) -> Iterator[tuple[int, Op]]:
    """The values met going back from one (itself first), with what makes them, not past ops that `stop`."""
    work, seen = [number], {number}
    while work:
        current = work.pop()
        producer = flow.producers[current]
        if producer is None or producer not in within:
            continue
        yield current, producer
        if not stop(producer):
            fresh = [n for n in producer.inputs if n not in seen]
            seen.update(fresh)
            work.extend(fresh)


def linears_back(flow: Flow, numbers: tuple[int, ...], within: set[Op]) -> list[Op]:
    """The nearest linears behind values."""
    found = [op for n in numbers for op in ops_back(flow, n, within, lambda op: op.linear) if op.linear]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class Gates:
    """The activations of an FFN, and whether it multiplies two of its pre-activations."""

    activations: tuple[Activation, ...]
    gated: bool


def ffn_roles(flow: Flow, ops: set[Op], downs: list[Op], roles: dict[Op, Role]) -> Gates:
    """Fill in the `roles` of an FFN's linears, given those that come last; find its activations."""
    activations: list[Activation] = []
    gated = False
    for down in downs:
        roles[down] = "down"
        ups = linears_back(flow, down.inputs, ops)
        for up in ups:
            roles[up] = "up"
        starts = _pre_activations(flow, ups)
        gate = _gate(flow, down.inputs[0], starts, ops)
        if gate is None:
            activations += _activation(flow, down.inputs[0], starts, ops)
            continue
        gated = True
        for number in gate.inputs:
            found = _activation(flow, number, starts, ops)
            for linear in linears_back(flow, (number,), ops):
                roles[linear] = "up_gate" if len(ups) == 1 else "gate" if found else "up"
            activations += found
    return Gates(tuple(activations), gated)


def _pre_activations(flow: Flow, ups: list[Op]) -> set[int]:
    """What the up projections put out: after their bias, and cut in two where they are packed."""
    starts: set[int] = set()
    for up in ups:
        bias = added_bias(flow, up)
        plain = bias is not None and bias[0].kind == "Add"
        number = bias[0].outputs[0] if bias is not None and plain else _dequantized(flow, up)
        starts.add(number)
        readers = flow.consumers[number]
        starts.update(n for op in readers if op.kind in CUTS for n in op.outputs)
    return starts


def _dequantized(flow: Flow, linear: Op) -> int:
    """What a linear puts out, brought to its scale: integers, and integer weights, are scaled afterwards."""
    number = linear.outputs[0]
    while len(flow.consumers[number]) == 1:
        reader = flow.consumers[number][0]
        if reader.kind not in {"Cast", "Identity"} and not rescales(flow, reader):
            break
        number = reader.outputs[0]
    return number


def _sources(flow: Flow, number: int, starts: set[int], ops: set[Op]) -> set[int]:
    """The pre-activations that a value is computed from."""
    found, work, seen = set(), [number], {number}
    while work:
        current = work.pop()
        producer = flow.producers[current]
        if current in starts:
            found.add(current)
        elif producer is not None and producer in ops and not producer.linear:
            fresh = [n for n in producer.inputs if n not in seen]
            seen.update(fresh)
            work.extend(fresh)
    return found


def _gate(flow: Flow, number: int, starts: set[int], ops: set[Op]) -> Op | None:
    """The product of two different pre-activations that a down projection reads, if there is one."""
    while (producer := flow.producers[number]) is not None and producer in ops:
        if producer.kind == "Mul" and len(producer.inputs) == 2:
            first, second = (_sources(flow, n, starts, ops) for n in producer.inputs)
            if first and second and not first & second:
                return producer
        if producer.linear or len(producer.inputs) != 1 or number in starts:
            return None
        number = producer.inputs[0]
    return None


def _activation(flow: Flow, number: int, starts: set[int], ops: set[Op]) -> list[Activation]:
    """The elementwise function of one pre-activation that `number` is computed by, if there is one.

    What follows it on the way down and is not elementwise (a norm, GRN) is not part of it.
    """
    sources = _sources(flow, number, starts, ops)
    if len(sources) != 1:
        return []
    start = sources.pop()
    pointwise = _pointwise_after(flow, start, ops)
    made = [n for op in pointwise for n in op.outputs]
    ends = [n for n in made if any(reader not in pointwise for reader in flow.consumers[n])]
    end = _unaliased(flow, ends[0], starts) if len(ends) == 1 else start
    before, after = flow.values[start], flow.values[end]
    if end == start or before is None or after is None:
        return []
    inner = ops_between(flow, (end,), lambda n: n == start, lambda n: flow.producers[n] in pointwise)
    nodes = tuple(dict.fromkeys(op.node for op in sorted(inner, key=lambda op: op.index)))
    fused = nodes[0].op_type in FUSED_BIAS_ACTIVATIONS and len(nodes[0].inputs) > 1
    return [Activation(nodes, before, after, nodes[0].inputs[1] if fused else None)]


def _pointwise_after(flow: Flow, start: int, ops: set[Op]) -> set[Op]:
    """The ops that compute elementwise functions of one value and of nothing else."""
    values, found = {start}, set()
    work = list(flow.consumers[start])
    for op in work:
        if op in ops and op not in found and op.kind in POINTWISE and all(n in values for n in op.inputs):
            found.add(op)
            values.update(op.outputs)
            work.extend(reader for n in op.outputs for reader in flow.consumers[n])
    return found


def _unaliased(flow: Flow, number: int, starts: set[int]) -> int:
    """Go back over casts and layouts, to what the activation itself puts out."""
    producer = flow.producers[number]
    while (
        number not in starts
        and producer is not None
        and producer.kind in ALIASES
        and len(producer.inputs) == 1
    ):
        number = producer.inputs[0]
        producer = flow.producers[number]
    return number


def _past_aliases(flow: Flow, number: int) -> int:
    """Go on over casts and layouts, to what the activation itself reads."""
    readers = flow.consumers[number]
    while len(readers) == 1 and readers[0].kind in ALIASES:
        number = readers[0].outputs[0]
        readers = flow.consumers[number]
    return number
