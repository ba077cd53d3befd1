"""Runs that begin in the middle: what stands before a gate is passed by, and the stream there is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.constants import constant_shape
from graphprune.dataflow import SHAPE_OPS, SKIP_NORMS, attribute_graphs, has_subgraph
from graphprune.ownership import exclusive_nodes
from graphprune.shapes import Dims, Shapes
from graphprune.surgery.regions import Region
from graphprune.surgery.values import current

_SHAPES_DIFFER_OPSET = 11


@dataclass(frozen=True, eq=False)
class Boundary:
    """A place at which a run can begin: before gate number `gate`; `output` is the stream there."""

    gate: int
    output: str


@dataclass(frozen=True, eq=False)
class StreamType:
    """The element type of the stream, and its dims as far as they are the same everywhere.

    `alike` says that no size of it is known to change.
    """

    dtype: ir.DataType
    dims: ir.Shape
    alike: bool

    def empty(self) -> ir.TensorProtocol:
        """A stream of no tokens."""
        sizes = [dim if isinstance(dim, int) else 0 for dim in self.dims]
        return ir.Tensor(np.zeros(sizes, self.dtype.numpy()), dtype=self.dtype)


def stream_type(model: ir.Model, regions: Sequence[Region]) -> StreamType | None:
    """The type of the stream between blocks; None where its rank is not known, or not the same everywhere.

    Before opset 11, both branches of an If must be known to have one shape, which a given stream has not.
    """
    if model.graph.opset_imports.get("", 1) < _SHAPES_DIFFER_OPSET:
        return None
    shapes = Shapes(model)
    found = [shapes.of(region.end) or _fused_dims(region) for region in regions[:-1]]
    known = [dims for dims in found if dims is not None]
    if not known and (first := shapes.of(current(regions[0].block.stream_in))) is not None:
        known = [first]
    if not known or len({len(dims) for dims in known}) > 1:
        return None
    axes = [set(sizes) if len(known) == len(found) else {None, *sizes} for sizes in zip(*known, strict=True)]
    same = [size if len(sizes) == 1 else None for size, sizes in zip(known[0], axes, strict=True)]
    alike = all(len([size for size in sizes if isinstance(size, int)]) < 2 for sizes in axes)
    return StreamType(_element_type(regions), ir.Shape(same), alike)


def _fused_dims(region: Region) -> Dims | None:
    """What a fused sum-and-norm takes."""
    scale = region.block.join.inputs[2] if region.block.join.op_type in SKIP_NORMS else None
    width = constant_shape(scale) if scale is not None else None
    return ("batch", "sequence", width[0]) if width else None


def _element_type(regions: Sequence[Region]) -> ir.DataType:
    """What the stream is made of: stated, or the same as the scale of a norm of it."""
    streams = (current(region.block.stream_in) for region in regions)
    scales = (norm.scale for region in regions for norm in region.block.norms)
    kinds = (value.dtype for value in (*streams, *scales) if value is not None)
    return next((kind for kind in kinds if kind is not None), ir.DataType.FLOAT)


def reads_only(graph: ir.Graph, start: ir.Value) -> bool:
    """Whether a subgraph reads nothing of the graphs around it but `start` and stored constants."""
    inner = {value for node in graph for value in node.outputs}
    read = (value for node in graph for value in node.inputs if value is not None and value not in inner)
    return all(value is start or _is_stored(value) for value in read)


def _is_stored(value: ir.Value) -> bool:
    maker = value.producer()
    return value.is_initializer() if maker is None else maker.op_type == "Constant"


def head_nodes(start: ir.Value, graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The nodes that are there for the first stream alone (the embeddings), in running order; maybe none."""
    maker = start.producer()
    if maker is None or maker.graph is not graph:
        return ()
    owned = exclusive_nodes([maker])
    others = (value for value in maker.outputs if value is not start)
    if any(has_subgraph(node) for node in owned) or any(v.uses() or v.is_graph_output() for v in others):
        return ()
    return tuple(node for node in graph if node in owned)


@dataclass(frozen=True, eq=False)
class Chain:
    """The gates of a graph in running order.

    `start` is the stream before the first, `ends` are those behind each of them; `passable` says whether
    a gate puts out the stream that is given, and nothing else of earlier ones, where a run begins behind it.
    """

    graph: ir.Graph
    start: ir.Value
    gates: tuple[ir.Node, ...]
    ends: tuple[ir.Value, ...]
    passable: tuple[bool, ...]
    kind: StreamType | None

    def boundaries(self) -> tuple[Boundary, ...]:
        """The places at which a run can begin; the stream at each of them becomes an output of the graph."""
        owners = dict(_owners(self.graph))
        behind = {self.gates[-1], *_reached(self.gates[-1].outputs, (), owners)}
        ends = {node for value in self.graph.outputs if (node := value.producer()) in behind and node}
        found = [gate for gate in range(1, len(self.gates)) if self._can_begin(gate, ends, owners)]
        return tuple(Boundary(gate, self._put_out(gate)) for gate in found)

    def _can_begin(self, gate: int, ends: Collection[ir.Node], owners: Mapping[ir.Graph, ir.Node]) -> bool:
        """Whether later gates, and the `ends` of the graph, read the stream out of that before `gate` alone.

        Nodes between earlier gates run all the same, on a stream that must fit them, too.
        """
        assert self.kind is not None
        around = set(self._around(gate, owners))
        fits = self.kind.alike or around.issubset(self.gates)
        return self.passable[gate - 1] and fits and around.isdisjoint({*self.gates[gate:], *ends})

    def settled(self, outputs: Sequence[str], boundaries: Sequence[Boundary]) -> tuple[str, ...]:
        """Of the graph's outputs those that are right, wherever of `boundaries` a run begins."""
        late = max((boundary.gate for boundary in boundaries), default=0)
        if not late:
            return tuple(outputs)
        early = {*self._around(late, dict(_owners(self.graph))), *self.gates[: late - 1]}
        values = {value.name: value for value in self.graph.outputs}
        found = (name for name in outputs if values[name] is not self.start)
        return tuple(name for name in found if values[name].producer() not in early)

    def _around(self, gate: int, owners: Mapping[ir.Graph, ir.Node]) -> Iterator[ir.Node]:
        """The nodes that get data of the stream before a gate, other than out of the gate before it."""
        sources = [self.start, *(value for one in self.gates[: gate - 1] for value in one.outputs)]
        return _reached(sources, self.gates[gate - 1 : gate], owners)

    def _put_out(self, gate: int) -> str:
        value = self.ends[gate - 1]
        if not value.is_graph_output():
            assert self.kind is not None
            value.name = f"stream.{gate}"
            # Told its sizes, ONNX Runtime would fuse sums and norms that it leaves alone in the original.
            value.type = ir.TensorType(self.kind.dtype)
            value.shape = value.shape or ir.Shape([None] * len(self.kind.dims))
            self.graph.outputs.append(value)
        return value.name or ""


def _reached(
    values: Iterable[ir.Value], walls: Iterable[ir.Node], owners: Mapping[ir.Graph, ir.Node]
) -> Iterator[ir.Node]:
    """The nodes of the main graph that data of `values` get to without passing through `walls`."""
    work, seen = [*values], {*walls}
    for value in work:
        for use in value.uses():
            node = _outermost(use.node, owners)
            if node not in seen and use.node.op_type not in SHAPE_OPS:
                seen.add(node)
                work += node.outputs
                yield node


def _owners(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """The subgraphs below a graph, each with the node that holds it."""
    for node in graph:
        for attribute in node.attributes.values():
            for inner in attribute_graphs(attribute):
                yield inner, node
                yield from _owners(inner)


def _outermost(node: ir.Node, owners: Mapping[ir.Graph, ir.Node]) -> ir.Node:
    while isinstance(node.graph, ir.Graph) and node.graph in owners:
        node = owners[node.graph]
    return node
