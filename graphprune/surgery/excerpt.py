"""Parts of a graph that run again on some of its samples: copies of the nodes on the way to a value.

A sample is a row of the inputs' batch axis. Models treat samples alike and apart, so what a part of a graph
makes of some rows of the inputs are the same rows of what it makes of all. So nothing has to be known of
masks, positions and sizes that later layers read: all that comes of a batch is computed again, from the rows
that are left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from graphprune.constants import small_integers, tensor_of
from graphprune.dataflow import SHAPE_OPS, has_subgraph
from graphprune.errors import EditError
from graphprune.surgery.writing import Writer

_SMALL = 1024  # bytes; larger constants are weights, which stay outside
_END = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of a graph: what the axis is called, and which axis of which input it is.

    `unknown` are inputs of which it cannot be told.
    """

    name: str
    axes: Mapping[ir.Value, int]
    unknown: frozenset[ir.Value] = frozenset()

    @staticmethod
    def of(graph: ir.Graph, name: str) -> Batch:
        """The batch of a graph, by the name of its axis."""
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        axes = {v: dims.index(name) for v in inputs if name in (dims := _dims(v))}
        unknown = {v for v in inputs if v.shape is None or not isinstance((*_dims(v), 0)[0], int)}
        return Batch(name, axes, frozenset(unknown - axes.keys()))


def _dims(value: ir.Value) -> list[str | int | None]:
    return [_named(dim) for dim in value.shape or ()]


def _named(dim: int | ir.SymbolicDim) -> str | int | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim


@dataclass(eq=False)
class Excerpt:
    """Copies nodes of `graph` into `write`.

    `known` says what stands for values of the graph; `rows`, int64 [n], are the numbers of the samples that
    are left, None where all are. Of values in `alike`, which have the sizes of the stream, only the sizes may
    be read; `stream` has these now. `left` is what the axis of the samples is called here.
    """

    graph: ir.Graph
    batch: Batch
    write: Writer
    known: dict[ir.Value, ir.Value]
    stream: ir.Value
    alike: Collection[ir.Value] = ()
    rows: ir.Value | None = None
    left: str = ""
    copied: dict[ir.Node, None] = field(default_factory=dict)
    constants: dict[object, ir.Value] = field(default_factory=dict)

    def __call__(self, *wanted: ir.Value) -> list[ir.Value]:
        """What the values `wanted` are here. Raises `EditError` where that cannot be told."""
        needed = self.needed(wanted)
        for node in self.graph:
            if node in needed:
                self._copy(node)
        return [self._here(value) for value in wanted]

    def input(self, value: ir.Value) -> ir.Value:
        """The rows of an input that are left."""
        if self.rows is None or value not in self.batch.axes:
            return value
        if value not in self.known:
            self.known[value] = self.write("Gather", value, self.rows, axis=self.batch.axes[value])
        return self.known[value]

    @cached_property
    def _seeds(self) -> set[ir.Value]:
        """What is not the same here: the stream, and where rows have left, all that has rows."""
        rows = {*self.batch.axes, *self.batch.unknown, *self.alike} if self.rows is not None else set()
        return {*self.known, *rows}

    @cached_property
    def changed(self) -> set[ir.Value]:
        """All values of the graph that are not the same here."""
        found = set(self._seeds)
        shapes: dict[ir.Value, int] = {}
        for node in self.graph:
            read = {value for value in node.inputs if value is not None}
            if not found.isdisjoint(read) and not self._is_free(node, shapes):
                found.update(node.outputs)
        return found

    def _is_free(self, node: ir.Node, shapes: dict[ir.Value, int]) -> bool:
        """Whether a node reads nothing but sizes that are no number of rows.

        `shapes` are the shapes of inputs, by the place of the batch in them.
        """
        first = next(iter(node.inputs), None)
        if node.op_type == "Shape" and first in self.batch.axes and first is not None:
            start = node.attributes["start"].as_int() if "start" in node.attributes else 0
            if start > self.batch.axes[first]:
                return True
            if start == 0 and "end" not in node.attributes:
                shapes[node.outputs[0]] = self.batch.axes[first]
            return False
        if first not in shapes or first is None or len(node.inputs) < 2:
            return False
        places = small_integers(node.inputs[1])
        return bool(places) and node.op_type in {"Gather", "Slice"} and min(places or [0]) > shapes[first]

    def needed(self, wanted: Sequence[ir.Value]) -> set[ir.Node]:
        """The nodes that are copied for these values."""
        found: set[ir.Node] = set()
        work = list(wanted)
        while work:
            value = work.pop()
            node = value.producer()
            if value in self.known or value not in self.changed or node in found:
                continue
            if node is None:
                self._require_told(value)
                continue
            if value in self.alike:
                raise EditError(
                    f"the stream at node '{node.name}' ({node.op_type}) is read behind an exit, and not "
                    "only its sizes: the rows that leave would be missed there"
                )
            if has_subgraph(node):
                raise EditError(f"node '{node.name}' ({node.op_type}) behind an exit holds a subgraph")
            found.add(node)
            if not self._reads_sizes(node):
                work += [one for one in node.inputs if one is not None]
        return found

    def read_besides(self, nodes: Collection[ir.Node], behind: Collection[ir.Value]) -> list[ir.Value]:
        """What is not the same here and is read by `nodes` that make values `behind`, these aside."""
        makers = (node for node in self.graph if node in nodes and any(v in behind for v in node.outputs))
        read = dict.fromkeys(value for node in makers for value in node.inputs if value is not None)
        others = (v for v in read if v in self.changed and v not in behind and v not in self._seeds)
        return [value for value in others if value.producer() is not None]

    def _require_told(self, value: ir.Value) -> None:
        if value in self.batch.unknown:
            reader = next(iter(value.uses())).node
            raise EditError(
                f"input '{value.name}' has no axis called '{self.batch.name}', and node '{reader.name}' "
                f"({reader.op_type}) takes it behind an exit: which of its rows leave cannot be told"
            )

    def _reads_sizes(self, node: ir.Node) -> bool:
        """Whether a node asks for the sizes of the stream, or of an input with samples."""
        return node.op_type in SHAPE_OPS and (node.inputs[0] in self.alike or self._is_shape(node))

    def _is_shape(self, node: ir.Node) -> bool:
        first = next(iter(node.inputs), None)
        return (
            node.op_type == "Shape" and not node.attributes and first is not None
            and self.batch.axes.get(first) == 0
        )  # fmt: skip

    def _copy(self, node: ir.Node) -> None:
        if node in self.copied:
            return
        self.copied[node] = None
        first = next(iter(node.inputs), None)
        if self.rows is not None and first is not None and self._is_shape(node) and first not in self.known:
            rest = self.write.sizes(first, 1, _END)
            self.known[node.outputs[0]] = self.write("Concat", self.write("Shape", self.rows), rest, axis=0)
            return
        read = [None if value is None else self._here(value) for value in node.inputs]
        new = ir.Node(
            node.domain, node.op_type, read, list(node.attributes.values()),
            num_outputs=len(node.outputs), version=node.version,
        )  # fmt: skip
        self.write.nodes.append(new)
        for old, made in zip(node.outputs, new.outputs, strict=True):
            made.type, made.shape = old.type, self.shape(old.shape)
            self.known[old] = made

    def _here(self, value: ir.Value) -> ir.Value:
        """What stands for a value here."""
        if value in self.known:
            return self.known[value]
        if value in self.alike and value in self.changed:
            return self.stream
        if value in self.batch.axes:
            return self.input(value)
        maker = value.producer()
        if maker is not None and maker.op_type == "Identity" and maker.inputs[0] is not None:
            return self._here(maker.inputs[0])
        tensor = tensor_of(value)
        if tensor is None or tensor.nbytes >= _SMALL or value.is_graph_input():
            return value
        return self._constant(value, tensor)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """A small constant, once: in subgraphs ONNX Runtime folds no others, and joins no equal ones."""
        same = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if same not in self.constants:
            node = ir.node("Constant", [], {"value": ir.AttrTensor("value", tensor)})
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            self.write.nodes.append(node)
            self.constants[same] = node.outputs[0]
        return self.constants[same]

    def shape(self, shape: ir.Shape | None) -> ir.Shape | None:
        """The shape that a value has with fewer rows.

        ONNX Runtime fuses what it knows to be of one shape, so sizes keep names.
        """
        if shape is None or self.rows is None:
            return shape
        return ir.Shape([self.left if _named(dim) == self.batch.name else dim for dim in shape])
