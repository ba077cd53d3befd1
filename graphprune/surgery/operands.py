"""Stored operands: float weights that a node reads, behind whatever names, and others in their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.constants import REACH, tensor_of
from graphprune.costs import FLOATS
from graphprune.errors import EditError
from graphprune.surgery.values import graph_of, place_of


@dataclass(frozen=True, eq=False)
class Operand:
    """A stored float that `node` reads as operand `index`, `value`.

    `origin` is the initializer or Constant that holds it; between the two there are names, types and
    axes turned (`turns`, in the order in which they are applied). `shape` is that of `value`.
    """

    node: ir.Node
    index: int
    value: ir.Value
    origin: ir.Value
    turns: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> ir.DataType:
        """The type in which it is stored."""
        tensor = tensor_of(self.origin)
        assert tensor is not None
        return tensor.dtype

    def read(self) -> npt.NDArray[np.float32]:
        """What the node reads, in float32."""
        tensor = tensor_of(self.origin)
        assert tensor is not None
        array = np.asarray(tensor.numpy()).astype(np.float32)
        for order in self.turns:
            array = array.transpose(order)
        return array

    def write(self, array: npt.NDArray[np.floating], home: ir.Graph, name: str) -> None:
        """Let the node read `array` instead: a new initializer of `home` in the type of the old one.

        It may be of another size along axes that both have. Others who read the old one are not touched.
        Nothing happens where edits have taken the node away.
        Raises `EditError` where a number does not fit the type.
        """
        place = place_of(self.value, self.node, self.index)
        if place is None:
            return
        node, index = place
        held = array if array.ndim == len(self.shape) else array.reshape(self.shape)
        new = stored_in(home, name, held, self.dtype)
        kind = self.read_type
        if kind != self.dtype:
            cast = ir.node("Cast", [new], {"to": kind})
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(kind), ir.Shape(held.shape)
            graph_of(node).insert_before(node, cast)
            new = cast.outputs[0]
        node.replace_input_with(index, new)

    @property
    def read_type(self) -> ir.DataType:
        """The type in which the node reads it: that of the last Cast on the way."""
        value: ir.Value | None = self.value
        while value is not None and value is not self.origin and (maker := value.producer()) is not None:
            if maker.op_type == "Cast":
                return ir.DataType(maker.attributes["to"].as_int())
            value = maker.inputs[0]
        return self.dtype


def read_operand(node: ir.Node, index: int) -> Operand | str:
    """Operand `index` of a node as a stored float; why it is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return f"operand {index} of node '{node.name}' ({node.op_type}) is left out"
    origin, turns = value, []
    for _ in range(REACH):
        maker = origin.producer()
        if maker is None or maker.op_type not in {"Identity", "Cast", "Transpose"} or maker.inputs[0] is None:
            break
        if maker.op_type == "Transpose":
            turns.append(maker)
        origin = maker.inputs[0]
    tensor = tensor_of(origin)
    where = f"operand {index} of node '{node.name}' ({node.op_type})"
    if tensor is None:
        maker = origin.producer()
        made = f"by node '{maker.name}' ({maker.op_type})" if maker is not None else "outside of the model"
        return f"{where} is not stored as it is read: it is made {made}"
    if tensor.dtype not in FLOATS:
        return f"{where} is stored as {tensor.dtype.name.lower()}: it is quantized"
    return _operand(node, index, value, origin, turns[::-1], tuple(tensor.shape.numpy()))


def _operand(
    node: ir.Node, index: int, value: ir.Value, origin: ir.Value, turns: list[ir.Node], shape: tuple[int, ...]
) -> Operand:
    orders = []
    for turn in turns:
        given = turn.attributes.get("perm")
        order = tuple(given.as_ints()) if given is not None else tuple(range(len(shape)))[::-1]
        orders.append(order)
        shape = tuple(shape[axis] for axis in order)
    return Operand(node, index, value, origin, tuple(orders), shape)


def stored_in(home: ir.Graph, name: str, array: npt.NDArray[np.floating], dtype: ir.DataType) -> ir.Value:
    """An initializer of `home` that holds `array` as `dtype`: one of this name that does, or a new one.

    Raises `EditError` where a number does not fit the type, or is none.
    """
    with np.errstate(over="ignore"):
        held = np.ascontiguousarray(array.astype(dtype.numpy()))
    if not np.isfinite(held.astype(np.float32)).all():
        raise EditError(
            f"'{name}' cannot be stored as {dtype.name.lower()}: not all of its numbers are finite there"
        )
    for number in range(len(home.initializers) + 1):
        own = f"{name}_{number}" if number else name
        known = home.initializers.get(own)
        if known is None and not any(value.name == own for value in home.inputs):
            break
        tensor = None if known is None else known.const_value
        if known is not None and tensor is not None and tensor.dtype == dtype and _equal(tensor, held):
            return known
    new = ir.Value(name=own, type=ir.TensorType(dtype), shape=ir.Shape(held.shape),
                   const_value=ir.Tensor(held, name=own, dtype=dtype))  # fmt: skip
    home.register_initializer(new)
    return new


def _equal(tensor: ir.TensorProtocol, array: npt.NDArray[np.generic]) -> bool:
    return tuple(tensor.shape.numpy()) == array.shape and bool((tensor.numpy() == array).all())
