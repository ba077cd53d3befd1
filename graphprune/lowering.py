"""From a graph to its data flow: numbered values, ops without constants and shape arithmetic, marks.

Fused nodes are taken apart (`SkipLayerNormalization` is a sum and then a norm), and one sweep
over the ops notes what every value depends on through a linear map, and what without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphprune.dataflow import (
    ALIASES,
    SHAPE_OPS,
    SKIP_NORMS,
    SUMMING_CONVS,
    Class,
    Flow,
    captured_values,
    has_subgraph,
    source,
    weight_indices,
)


def lower(graph: ir.Graph, outer: Flow | None = None) -> Flow:
    """Lower `graph` (a main graph, or a subgraph within `outer`) to its data flow, marks included."""
    flow = Flow(graph)
    if outer is not None:
        flow.classes.update(outer.classes)
        flow.inputs.update(outer.inputs)
    for value in graph.inputs:
        flow.inputs[value] = len(flow.inputs)
        flow.classes[value] = Class.CONST if _is_weight(value) else Class.DATA
    for value in graph.initializers.values():
        flow.classes[value] = Class.CONST
    flow.captured.update((n, tuple(captured_values(n))) for n in graph if has_subgraph(n))
    for node in _in_order(flow):
        _lower_node(flow, node)
    _forget_dead(flow)
    _mark(flow)
    _sweep(flow)
    return flow


def _in_order(flow: Flow) -> list[ir.Node]:
    """The nodes, each after those that it (or a subgraph of it) reads.

    Runtimes accept other orders too, and quantizers write them, where only subgraphs read ahead.
    """
    nodes, seen = list(flow.graph), set()
    for node in nodes:
        for value in (*node.inputs, *flow.captured.get(node, ())):
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in seen and maker.graph is flow.graph:
                return _sorted(flow, nodes)
        seen.add(node)
    return nodes


def _sorted(flow: Flow, nodes: list[ir.Node]) -> list[ir.Node]:
    ordered: dict[ir.Node, None] = {}
    begun: set[ir.Node] = set()
    for node in nodes:
        stack = [node]
        while stack:
            top = stack[-1]
            ahead = [] if top in begun else [p for p in _makers(flow, top) if p not in begun]
            begun.add(top)
            stack.extend(ahead)
            if not ahead:
                ordered.setdefault(stack.pop())
    return list(ordered)


def _makers(flow: Flow, node: ir.Node) -> Iterator[ir.Node]:
    values = (*node.inputs, *flow.captured.get(node, ()))
    makers = (v.producer() for v in values if v is not None)
    return (maker for maker in makers if maker is not None and maker.graph is flow.graph)


def _is_weight(value: ir.Value) -> bool:
    """Whether a graph input is a weight: an overridable initializer, or a static float matrix used as one."""
    if value.is_initializer():
        return True
    shape = value.shape
    if shape is None or value.dtype is None or not value.dtype.is_floating_point():
        return False
    if not all(isinstance(dim, int) for dim in shape):
        return False
    if len(shape) == 1:
        return shape[0] != 1
    return any(_uses_as_weight(use.node, use.idx, len(shape)) for use in value.uses())


def _uses_as_weight(node: ir.Node, index: int, rank: int) -> bool:
    if node.op_type in {"Transpose", "Cast", "Identity", "DequantizeLinear"}:
        return rank == 2 and any(_uses_as_weight(u.node, u.idx, rank) for u in node.outputs[0].uses())
    if node.op_type in {"MatMul", "Gemm"}:
        return rank == 2 and index == 1
    return node.op_type == "Conv" and index == 1


def _lower_node(flow: Flow, node: ir.Node) -> None:
    classes = flow.classes
    read = [v for v in (*node.inputs, *flow.captured.get(node, ())) if v is not None]
    kinds = [classes.get(v, Class.DATA) for v in read]
    kind = max(kinds) if kinds else _sourceless(node)
    if node.op_type in SHAPE_OPS:
        kind = min(kind, Class.SHAPE)
    for output in node.outputs:
        classes[output] = kind
    if node.op_type == "DynamicQuantizeLinear":  # how the value is written, not what it is
        classes.update((output, min(kind, Class.SHAPE)) for output in node.outputs[1:])
    if kind is Class.DATA:
        _lower_data(flow, node, [v for v, one in zip(read, kinds, strict=True) if one is Class.DATA])


def _sourceless(node: ir.Node) -> Class:
    return Class.SHAPE if node.op_type.startswith("Random") else Class.CONST


def _number(flow: Flow, value: ir.Value) -> int:
    number = flow.numbers.get(value)
    return flow.new_value(value) if number is None else number


def _lower_data(flow: Flow, node: ir.Node, data: list[ir.Value]) -> None:
    inputs = tuple(_number(flow, v) for v in data)
    summand = _fused_summand(flow, node)
    if node.op_type in SKIP_NORMS:
        _lower_skip_norm(flow, node)
    elif node.op_type == "EmbedLayerNormalization":
        _lower_embed_norm(flow, node, inputs)
    elif summand is not None:
        _lower_fused_sum(flow, node, data, summand)
    else:
        _lower_plain(flow, node, inputs)


def _lower_plain(flow: Flow, node: ir.Node, inputs: tuple[int, ...]) -> None:
    outputs = tuple(flow.new_value(v) for v in node.outputs)
    linear = any(
        i < len(node.inputs) and (w := node.inputs[i]) is not None and flow.class_of(w) is Class.CONST
        for i in weight_indices(node)
    )
    flow.add_op(node, "", inputs, outputs, linear=linear, additive=len(additive_operands(flow, node)) > 1)
    if node.op_type in ALIASES and len(set(inputs)) == 1:
        flow.roots[outputs[0]] = flow.roots[inputs[0]]


def additive_operands(flow: Flow, node: ir.Node) -> list[int]:
    """The indices of the data operands that an add-like node sums; empty for other nodes."""
    if node.op_type in {"Add", "Sum"}:
        candidates: Iterable[int] = range(len(node.inputs))
    elif node.op_type == "QLinearAdd":
        candidates = (0, 3)
    elif node.op_type == "BiasAdd":
        candidates = (0, 2)
    else:
        return []
    operands = ((i, node.inputs[i]) for i in candidates)
    return [i for i, v in operands if v is not None and flow.class_of(v) is Class.DATA]


def _fused_summand(flow: Flow, node: ir.Node) -> int | None:
    """The index of the tensor that a linear op adds to its result, where that is data and no bias."""
    index = 2 if node.op_type == "Gemm" else SUMMING_CONVS.get(node.op_type)
    if index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return index if value is not None and flow.class_of(value) is Class.DATA else None


def _lower_skip_norm(flow: Flow, node: ir.Node) -> None:
    terms = [node.inputs[0], node.inputs[1], *node.inputs[_skip_bias(node) :]]
    inputs = tuple(_number(flow, v) for v in terms if v is not None and flow.class_of(v) is Class.DATA)
    total = flow.new_value(node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].name else None)
    flow.add_op(node, "sum", inputs, (total,), additive=len(inputs) > 1)
    flow.add_op(node, "norm", (total,), tuple(flow.new_value(v) for v in node.outputs[:3]))


def _skip_bias(node: ir.Node) -> int:
    return 4 if node.op_type == "SkipLayerNormalization" else 3


def _lower_embed_norm(flow: Flow, node: ir.Node, inputs: tuple[int, ...]) -> None:
    total = flow.new_value(node.outputs[2] if len(node.outputs) > 2 and node.outputs[2].name else None)
    flow.add_op(node, "embed", inputs, (total, *(flow.new_value(v) for v in node.outputs[1:2])))
    flow.add_op(node, "norm", (total,), (flow.new_value(node.outputs[0]),))


def _lower_fused_sum(flow: Flow, node: ir.Node, data: list[ir.Value], index: int) -> None:
    """A linear op that adds another tensor, and maybe applies an activation: three ops."""
    summand = node.inputs[index]
    assert summand is not None
    inputs = tuple(_number(flow, v) for v in data if v is not summand)
    product = flow.new_value(None)
    flow.add_op(node, "linear", inputs, (product,), linear=True)
    activated = bool(node.attributes.get("activation"))
    total = flow.new_value(None if activated else node.outputs[0])
    flow.add_op(node, "sum", (product, _number(flow, summand)), (total,), additive=True)
    if activated:
        flow.add_op(node, "activation", (total,), (flow.new_value(node.outputs[0]),))


def _forget_dead(flow: Flow) -> None:
    """Take ops whose results nobody uses off the lists of readers (optimizers leave some behind)."""
    dead: set[ir.Node] = set()
    for op in reversed(flow.ops):
        if not any(flow.consumers[n] or _used(flow.values[n], dead) for n in op.outputs):
            dead.add(op.node)
            for number in dict.fromkeys(op.inputs):
                flow.consumers[number].remove(op)


def _used(value: ir.Value | None, dead: set[ir.Node]) -> bool:
    """Whether a value that no op reads is put out, or read for its shape."""
    return value is not None and (
        value.is_graph_output() or any(use.node not in dead for use in value.uses())
    )  # fmt: skip


def _mark(flow: Flow) -> None:
    """Give a bit to what a sum adds (the stream may be among it) and to every sum."""
    for op in flow.ops:
        if op.additive:
            for number in (*(source(flow, i) for i in op.inputs), *op.outputs):
                flow.bits.setdefault(number, -1)
    # In the order of the graph, so that the sets of early values are small numbers.
    for bit, number in enumerate(sorted(flow.bits)):
        flow.bits[number] = bit


def _sweep(flow: Flow) -> None:
    """Fill `through` and `around` in one pass over the ops (they are in topological order)."""
    size = len(flow.values)
    through, around = [0] * size, [0] * size
    for number in flow.bits:
        if flow.producers[number] is None:
            around[number] = 1 << flow.bits[number]
    for op in flow.ops:
        passed = direct = 0
        for number in op.inputs:
            passed |= through[number]
            direct |= around[number]
        if op.linear:
            passed, direct = passed | direct, 0
        for number in op.outputs:
            bit = flow.bits.get(number)
            through[number] = passed
            around[number] = direct if bit is None else direct | 1 << bit
    flow.through, flow.around = through, around
