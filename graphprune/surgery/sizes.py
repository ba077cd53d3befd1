"""Sizes that are read off nodes that go: follow them back, and read them off values that stay."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Block
from graphprune.dataflow import ALIASES, SHAPE_OPS
from graphprune.surgery.shapetrace import trace_axis
from graphprune.surgery.values import constant, detached, graph_of, replace_value

log = logging.getLogger(__name__)


def release_shapes(nodes: Collection[ir.Node], block: Block) -> None:
    """Let shape arithmetic outside of a block read its sizes off values that stay.

    Exporters take the length of a mask from the shape of some layer's queries; such a reader
    alone would keep the layer's projections alive. Where the way of a size back to the stream
    cannot be followed, the reader stays as it is.
    """
    inside = _with_shape_givers({*nodes, *block.nodes})
    for node in list(inside):
        for output in node.outputs:
            for use in tuple(output.uses()):
                if use.node not in inside and use.node.op_type == "Shape" and not detached(use.node):
                    _reread_shape(use.node, inside)


def _with_shape_givers(nodes: set[ir.Node]) -> set[ir.Node]:
    """`nodes`, and the changes of layout of what they compute that are there for their shape alone."""
    work = list(nodes)
    while work:
        for output in work.pop().outputs:
            for use in output.uses():
                if use.node not in nodes and _gives_shape(use.node):
                    nodes.add(use.node)
                    work.append(use.node)
    return nodes


def _gives_shape(node: ir.Node) -> bool:
    if node.op_type not in ALIASES or any(output.is_graph_output() for output in node.outputs):
        return False
    readers = [use.node for output in node.outputs for use in output.uses()]
    return all(reader.op_type in SHAPE_OPS or _gives_shape(reader) for reader in readers)


def _reread_shape(shape: ir.Node, inside: Collection[ir.Node]) -> None:
    value = shape.inputs[0]
    assert value is not None
    if "start" in shape.attributes:
        start = shape.attributes["start"].as_int()
        end = shape.attributes["end"].as_int() if "end" in shape.attributes else None
        if end == start + 1:
            _reread(shape.outputs[0], value, start, inside, vector=True)
        return
    for use in tuple(shape.outputs[0].uses()):
        gather = use.node
        index = (
            ir.convenience.get_const_tensor(gather.inputs[1])
            if gather.op_type == "Gather" and gather.inputs[1]
            else None
        )
        if index is not None and index.size == 1:
            position = int(index.numpy().reshape(-1)[0])
            _reread(gather.outputs[0], value, position, inside, vector=bool(len(index.shape)))


def _reread(size: ir.Value, value: ir.Value, axis: int, inside: Collection[ir.Node], *, vector: bool) -> None:
    found = trace_axis(value, axis, inside)
    reader = size.producer()
    if found is None or reader is None:
        log.debug("the size that node '%s' reads cannot be followed back", reader.name if reader else "")
        return
    nodes: list[ir.Node] = []
    if isinstance(found, int):
        result = constant(np.array([found] if vector else found, np.int64), nodes)
    else:
        source, position = found
        nodes.append(ir.node("Shape", [source]))
        at = nodes[-1].outputs[0]
        index = constant(np.array([position] if vector else position, np.int64), nodes)
        nodes.append(ir.node("Gather", [at, index], {"axis": 0}))
        result = nodes[-1].outputs[0]
    result.type, result.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1] if vector else [])
    graph_of(reader).insert_after(reader, nodes)
    replace_value(size, result)
