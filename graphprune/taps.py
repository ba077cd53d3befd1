"""Put the stream out on both sides of every block: a model's own outputs stay, further ones follow.

The sum of a fused join that nobody reads becomes an output of its node; quantized and half-precision
values are put out as fp32. In the branches of an `If` all branches put out the same, by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.architecture import Architecture, Block, Stack
from graphprune.dataflow import SKIP_NORMS, SUMMING_CONVS
from graphprune.surgery.signature import Signature, branches
from graphprune.surgery.stored import brought_to

_FLOAT = ir.TensorType(ir.DataType.FLOAT)
# Channels come in blocks there, which shapes do not show.
BLOCKED = "com.microsoft.nchwc"
# The output of a SkipLayerNormalization that is the sum alone (ContribOperators.md).
_SUM = 3
# How many nodes may stand between a sum and the stream: an activation, a cast, a pair of quantize nodes.
_REACH = 8


@dataclass(frozen=True, eq=False)
class Tap:
    """A block or a layer: the names of the outputs that hold the stream before and after it.

    `block` is it, or the last block of the layer. `sum` holds what the join of a block adds up, before a norm
    or an activation; "" where nobody asked, and where no value does. `reason` says why there are no outputs.
    """

    id: str
    stack: Stack
    block: Block
    before: str = ""
    after: str = ""
    reason: str = ""
    sum: str = ""


@dataclass(frozen=True, eq=False)
class Taps:
    """All blocks and all layers, in the order of the stream; those of copies in one `If` once."""

    blocks: tuple[Tap, ...]
    layers: tuple[Tap, ...]


@dataclass(frozen=True, eq=False)
class _Ends:
    """A block with the values of the stream on both sides; None where no value holds it."""

    stack: Stack
    block: Block
    before: ir.Value | None
    after: ir.Value
    sum: ir.Value | None = None


def tap_streams(architecture: Architecture, *, sums: bool = False) -> Taps:
    """Add the outputs, in fp32, to the model that `architecture` was recovered from. Changes it.

    With `sums`, also what the joins add up, where that is not the stream itself.
    """
    outlets = _Outlets(architecture.model, _unused(architecture.model))
    copies: dict[tuple[ir.Node | None, str], list[_Ends]] = {}
    reasons: dict[tuple[ir.Node | None, str], str] = {}
    for stack in architecture.stacks:
        owner, reason = _owner(stack, architecture.model)
        for ends in _ends(stack, outlets, sums):
            copies.setdefault((owner, ends.block.id), []).append(ends)
            reasons[owner, ends.block.id] = reason
    blocks = [_tap(outlets, key[0], group, reasons[key]) for key, group in copies.items()]
    return Taps(tuple(blocks), tuple(_layers(blocks)))


def _unused(model: ir.Model) -> str:
    """How no name in the model begins."""
    prefix = "graphprune.stream"
    names = [value.name or "" for graph in model.graphs() for node in graph for value in node.outputs]
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _owner(stack: Stack, model: ir.Model) -> tuple[ir.Node | None, str]:
    """The `If` of the main graph that holds the stack, if any; why nothing can be put out of elsewhere."""
    if stack.graph is model.graph:
        return None, ""
    owner = Signature.read(stack.graph, model).owner
    if owner is not None and owner.graph is model.graph:
        return owner, ""
    return None, f"it is in {stack.path}: only the main graph and the branches of its If can be looked into"


def _ends(stack: Stack, outlets: _Outlets, sums: bool) -> Iterator[_Ends]:
    """Every block with its stream. What a fused join hides goes on to the next block."""
    previous: ir.Value | None = None
    blocks = list(stack.blocks)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        hidden = block.stream_in in block.join.outputs
        before, after = previous if hidden else block.stream_in, _after(block, following, outlets)
        yield _Ends(stack, block, before, after, _sum(block, after, outlets) if sums else None)
        previous = after


def _after(block: Block, following: Block | None, outlets: _Outlets) -> ir.Value:
    """The stream after a block. A fused pre-norm join may put out nothing but the next norm's result."""
    read = following.stream_in.producer() if following is not None else None
    if following is not None and read is not None and read.op_type == "DequantizeLinear":
        return following.stream_in  # a ReLU may have gone into the range of what is quantized
    node = block.join
    fused = node.op_type in SKIP_NORMS and block.stream_out is node.outputs[0]
    return block.stream_out if not fused or block.placement == "post" else _put_out_sum(node, outlets)


def _put_out_sum(node: ir.Node, outlets: _Outlets) -> ir.Value:
    """The output of a fused join that is the sum alone; the node gets it where it lacks it."""
    count = len(node.outputs)
    if count <= _SUM:
        node.resize_outputs(_SUM + 1)
        for value in node.outputs[count:]:
            value.name = ""
    node.outputs[_SUM].name = node.outputs[_SUM].name or outlets.name()
    return node.outputs[_SUM]


def _sum(block: Block, after: ir.Value, outlets: _Outlets) -> ir.Value | None:
    """What the join of a block adds up: before the norm after it, or the activation."""
    norm = next((norm for norm in block.norms if norm.role == "post"), None)
    if norm is not None and norm.input is None:
        return _put_out_sum(block.join, outlets)
    value = after if norm is None else norm.input
    for _ in range(_REACH):
        node = value.producer() if value is not None else None
        if node is None or (node.op_type in SUMMING_CONVS and "activation" in node.attributes):
            return None
        if node in (block.join, *block.sums):
            return value
        value = node.inputs[0]
    return None


def _tap(outlets: _Outlets, owner: ir.Node | None, copies: list[_Ends], reason: str) -> Tap:
    first = copies[0]
    reason = reason or next(filter(None, map(_hidden, copies)), "")
    if reason:
        return Tap(first.block.id, first.stack, first.block, reason=reason)
    before = {one.stack.graph: one.before for one in copies if one.before is not None}
    after = {one.stack.graph: one.after for one in copies}
    names = outlets.put_out(owner, before), outlets.put_out(owner, after)
    sums = {one.stack.graph: one.sum for one in copies if one.sum is not None}
    total = outlets.put_out(owner, sums) if len(sums) == len(copies) else ""
    return Tap(first.block.id, first.stack, first.block, *names, sum=total)


def _hidden(ends: _Ends) -> str:
    """Why the stream on one side of a block cannot be read as it is."""
    join = ends.block.join
    if ends.before is None:
        return f"the stream before it is inside of node '{join.name or join.op_type}'"
    linears = (linear.node for branch in ends.block.branches for linear in branch.linears)
    if any(node.domain == BLOCKED for node in (join, *linears)):
        return "it is in ONNX Runtime's own layout for this machine (NCHWc): take the model before that"
    return ""


def _layers(blocks: list[Tap]) -> Iterator[Tap]:
    by_id: dict[tuple[ir.Graph, str], list[Tap]] = {}
    for tap in blocks:
        by_id.setdefault((tap.stack.graph, tap.id.rpartition(".")[0]), []).append(tap)
    for (_, name), taps in by_id.items():
        first, last = taps[0], taps[-1]
        yield Tap(name, last.stack, last.block, first.before, last.after, first.reason or last.reason)


@dataclass(frozen=True, eq=False)
class _Outlets:
    """The new outputs of a model: a value is put out once, whoever asks for it."""

    model: ir.Model
    prefix: str
    named: list[str] = field(default_factory=list)
    made: dict[tuple[ir.Value, ...], str] = field(default_factory=dict)

    def name(self) -> str:
        """A name that no other value has."""
        self.named.append(f"{self.prefix}.{len(self.named)}")
        return self.named[-1]

    def put_out(self, owner: ir.Node | None, values: Mapping[ir.Graph, ir.Value]) -> str:
        """The output that holds a value of the main graph, or what the branches of `owner` make of it."""
        key = tuple(values.values())
        if key not in self.made:
            if owner is None:
                (output,) = (self._real(self.model.graph, value) for value in key)
            else:
                output = self._out_of(owner, values)
            self.model.graph.outputs.append(output)
            self.made[key] = output.name or ""
        return self.made[key]

    def _out_of(self, owner: ir.Node, values: Mapping[ir.Graph, ir.Value]) -> ir.Value:
        """What the branches put out at a new last place: nothing at all where a branch has no such block."""
        for graph in branches(owner):
            value = values.get(graph)
            graph.outputs.append(self._empty(graph) if value is None else self._real(graph, value))
        owner.resize_outputs(len(owner.outputs) + 1)
        output = owner.outputs[-1]
        output.name, output.type = self.name(), _FLOAT
        return output

    def _real(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """The same value in `graph`, as fp32."""
        real, nodes = brought_to(value, None)
        nodes.append(ir.node("Cast", [real], {"to": ir.DataType.FLOAT.value}))
        return self._added(graph, nodes)

    def _empty(self, graph: ir.Graph) -> ir.Value:
        return self._added(graph, [ir.node("Constant", [], {"value_floats": ir.AttrFloat32s("", [])})])

    def _added(self, graph: ir.Graph, nodes: list[ir.Node]) -> ir.Value:
        for node in nodes:
            node.name = node.outputs[0].name = self.name()
            graph.append(node)
        output = nodes[-1].outputs[0]
        output.type = _FLOAT
        return output
