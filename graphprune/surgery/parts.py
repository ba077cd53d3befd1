"""Parts of a block that go alone: a bias, an activation, the skip around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Activation, Bias, Block, Norm
from graphprune.dataflow import ALIASES, MICROSOFT
from graphprune.errors import EditError
from graphprune.surgery.sums import drop_term, other_quantized
from graphprune.surgery.values import (
    current,
    detached,
    graph_of,
    note_moved,
    place_of,
    remove_unread,
    replace_value,
)

# Ops that cannot do without their bias.
BIASES_NEEDED = {"QAttention", "PackedAttention"}


def drop_residual(block: Block) -> None:
    """Take the stream out of a block's join: what the branch puts out becomes the stream."""
    drop_term(block.stream_in, (block.join,), is_branch=False)


def drop_activation(activation: Activation) -> None:
    """Let an activation pass on its input; the bias that a fused one adds stays, as an Add."""
    node = activation.nodes[-1]
    value = _argument(activation)
    fused = activation.nodes[0]
    if not detached(fused) and activation.bias is not None and activation.bias in fused.inputs:
        add = ir.node("Add", [value, activation.bias])
        graph_of(fused).insert_before(fused, add)
        note_moved(fused, [add])
        value = add.outputs[0]
    replace_value(current(activation.output), value)
    if not detached(node):
        remove_unread(node)


def _argument(activation: Activation) -> ir.Value:
    """What the nonlinearity is applied to: the activation's input in the layout that it gets there."""
    value = current(activation.input)
    for node in activation.nodes:
        if node.op_type not in ALIASES or node.inputs[0] is not value or detached(node):
            break
        value = node.outputs[0]
    return value


def drop_bias(bias: Bias) -> None:
    """Take a bias away: the whole of it, or its part of a packed one, which becomes zero."""
    place = place_of(bias.value, bias.node, bias.index)
    if place is None:
        return
    node, index = place
    if bias.start is not None and bias.stop is not None:
        _zero(node, index, bias.start, bias.stop)
    elif node.op_type in {"Add", "QLinearAdd"}:
        _bypass_add(node, index)
    elif node.op_type == "BiasGelu":
        _plain_gelu(node)
    elif node.op_type in BIASES_NEEDED:
        _zero(node, index, 0, None)
    else:
        _leave_out(node, index)


def drop_norm_bias(norm: Norm) -> None:
    """Take β away from a norm, whether it is an input of one op or an Add of its own."""
    if norm.bias is None:
        return
    last = norm.nodes[-1]
    index = next((i for i, value in enumerate(last.inputs) if value is norm.bias), -1)
    place = place_of(norm.bias, last, index) if index >= 0 or detached(last) else None
    if place is None and not detached(last):
        raise EditError(f"β of the norm at node '{last.name}' ({last.op_type}) is not an input of it")
    if place is None:
        return
    node, index = place
    if node.op_type in {"Add", "QLinearAdd"}:
        _bypass_add(node, index)
    elif node.op_type in {"EmbedLayerNormalization", "BatchNormalization", "GroupNormalization"}:
        _zero(node, index, 0, None)
    else:
        _leave_out(node, index)


def _bypass_add(node: ir.Node, index: int) -> None:
    other = other_quantized(node, index) if node.op_type == "QLinearAdd" else node.inputs[1 - index]
    assert other is not None
    replace_value(node.outputs[0], other)
    remove_unread(node)


def _leave_out(node: ir.Node, index: int) -> None:
    """Leave an optional input out; trailing ones are cut off."""
    node.replace_input_with(index, None)
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    node.resize_inputs(count)


def _plain_gelu(node: ir.Node) -> None:
    new = ir.node("Gelu", node.inputs[:1], domain=MICROSOFT, name=node.name)
    graph_of(node).insert_before(node, new)
    replace_value(node.outputs[0], new.outputs[0])
    remove_unread(node)


def _zero(node: ir.Node, index: int, start: int, stop: int | None) -> None:
    """Read a copy of a constant in which the elements start:stop of the last axis stand for zero."""
    value = node.inputs[index]
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    zero = _zero_point(node, index)
    if tensor is None or value is None:
        raise EditError(
            f"the bias of node '{node.name}' ({node.op_type}) is computed, not stored: it cannot be zeroed"
        )
    array = tensor.numpy().copy()
    array[..., start:stop] = np.zeros((), array.dtype) if zero is None else zero
    graph = graph_of(node)
    name = f"{value.name}_zeroed"
    while name in graph.initializers:
        name += "_"
    new = ir.Value(name=name, type=value.type or ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape),
                   const_value=ir.Tensor(array, name=name, dtype=tensor.dtype))  # fmt: skip
    graph.register_initializer(new)
    node.replace_input_with(index, new)


def _zero_point(node: ir.Node, index: int) -> Any:
    """What stands for zero in a quantized operand; None where it is the number itself."""
    if node.op_type != "QLinearAdd":
        return None
    value = node.inputs[index + 2]
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()
