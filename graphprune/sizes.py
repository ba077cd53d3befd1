"""How big models are: nodes, initializers, parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphprune.macs import Macs

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Sizes:
    """What a file holds, subgraphs included.

    `parameters` counts the elements of all initializers but integer ones of 32 and 64 bits and
    booleans (shapes, axes, indices); `bytes` the tensors of all initializers; `macs` the
    multiply-accumulates of the recovered blocks, copies of a stack once.
    """

    nodes: int = 0
    initializers: int = 0
    parameters: int = 0
    bytes: int = 0
    macs: Macs = field(default_factory=Macs)

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(
            self.nodes + other.nodes,
            self.initializers + other.initializers,
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.macs + other.macs,
        )


def measure(model: ir.Model) -> Sizes:
    """The sizes of `model`, without its multiply-accumulates. Reads shapes and types, no weights."""
    tensors = list(_tensors(model))
    return Sizes(
        nodes=sum(1 for _ in model.graph.all_nodes()),
        initializers=len(tensors),
        parameters=sum(tensor.size for tensor in tensors if _is_weight(tensor)),
        bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    import onnx_ir

    types = onnx_ir.DataType
    return tensor.dtype not in (types.INT64, types.INT32, types.BOOL, types.STRING)
