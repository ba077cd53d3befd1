"""A model cut between its blocks: each piece is a session that takes the stream and gives what is asked.

The stream can then be changed on the way, which is what healing does; a piece is loaded with the weights
that it reads, so all pieces together hold the model once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.dataflow import SHAPE_OPS, SKIP_NORMS
from graphprune.errors import RunError
from graphprune.play import is_cache
from graphprune.recover import recover
from graphprune.surgery import release_shapes, split_join, sweep
from graphprune.surgery.values import detached

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.architecture import Architecture, Stack
    from graphprune.bundle import ModelFile
    from graphprune.session import Feeds, Session
    from graphprune.settings import Settings

STREAM = "graphprune.stream"


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a model: from the stream (or the model's inputs) to the values `names`, in this order.

    `gives` are the outputs of the session that hold them.
    """

    session: Session
    names: tuple[str, ...]
    gives: tuple[str, ...]

    def run(self, feeds: Feeds, stream: NDArray[Any] | None = None) -> list[NDArray[Any]]:
        """The values for one batch: its inputs, and the stream where the piece begins in the middle."""
        given = feeds if stream is None else {**feeds, STREAM: stream}
        values = self.session.run(given)
        return [values[name] for name in self.gives]


def prepared(model: ir.Model) -> Architecture:
    """A model read for cutting, changed in place: no caches are put out, sums and norms stand apart."""
    for value in [value for value in model.graph.outputs if is_cache(value.name or "")]:
        model.graph.outputs.remove(value)
    sweep(model)
    for block in recover(model).blocks:
        if block.join.op_type in SKIP_NORMS and not detached(block.join):
            split_join(block.join)
    architecture = recover(model)
    for block in architecture.blocks:
        if block.droppable:
            release_shapes(block.nodes, block)
    name_values(model)
    return architecture


def name_values(model: ir.Model) -> None:
    """Give every value of the main graph a name, by which pieces find it again."""
    taken = {value.name for node in model.graph for value in node.outputs}
    number = 0
    for node in model.graph:
        for value in node.outputs:
            while not value.name:
                name, number = f"graphprune.value.{number}", number + 1
                value.name = None if name in taken else name


def only_stack(architecture: Architecture, file: str) -> Stack:
    """The stack of the main graph to walk along. Raises `RunError` where it is not the only one."""
    inside = [stack for stack in architecture.stacks if stack.graph is architecture.model.graph]
    if len(inside) == 1 and len(architecture.stacks) == 1:
        return inside[0]
    if not architecture.stacks:
        raise RunError(f"{file}: no blocks were found, so there is nothing to heal")
    names = ", ".join(f"{stack.name} ({stack.path or 'main graph'})" for stack in architecture.stacks)
    raise RunError(f"{file} has the stacks {names}: healing walks along one stack of the main graph alone")


def cut(
    file: ModelFile, model: ir.Model, start: str, gives: Sequence[str], settings: Settings | None = None
) -> Segment:
    """The piece of a model from the value `start` ("" for its inputs) to the values `gives`.

    Raises `RunError` where it reads the stream at another place too, `LoadError`.
    """
    from graphprune.changed import open_changed

    piece = model.clone()
    values = {value.name: value for node in piece.graph for value in node.outputs}
    values |= {value.name: value for value in piece.graph.inputs}
    stream = ir.Value(name=STREAM)
    if start:
        old = values[start]
        stream.dtype, stream.shape = old.dtype or ir.DataType.FLOAT, old.shape
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, stream)
        piece.graph.inputs.append(stream)
    piece.graph.outputs.clear()
    wanted = {name: stream if name == start else values[name] for name in gives}
    named = {name: _output(piece.graph, value, name) for name, value in wanted.items()}
    piece.graph.outputs.extend(named.values())
    sweep(piece)
    for value in [value for value in piece.graph.inputs if not value.uses() and not value.is_graph_output()]:
        piece.graph.inputs.remove(value)
        piece.graph.initializers.pop(value.name or "", None)
    outputs = tuple(named[name].name or "" for name in gives)
    return Segment(open_changed(file, piece, settings), tuple(gives), outputs)


def _output(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """A value as an output; what is an input or a constant goes through an Identity."""
    if value.producer() is not None:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        return value
    node = ir.node("Identity", [value])
    node.outputs[0].name = f"{name}.given"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph.append(node)
    return node.outputs[0]


def reads_of(values: Sequence[ir.Value], start: ir.Value, joins: Mapping[ir.Node, str]) -> Iterator[str]:
    """The blocks whose joins `values` get data of without passing through `start`; sizes do not count."""
    work, seen = list(values), {start}
    for value in work:
        node = value.producer()
        if value in seen or node is None or node.op_type in SHAPE_OPS:
            continue
        seen.add(value)
        if node in joins:
            yield joins[node]
            continue
        work += [one for one in node.inputs if one is not None]
