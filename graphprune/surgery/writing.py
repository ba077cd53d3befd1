"""New nodes, one after another, by ops that mean the same in all versions of ONNX from opset 11 on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune.surgery.values import constant

# The version from which on a reduction takes its axes as an input.
_GREATER_OR_EQUAL = 12
_AXES_INPUT = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18}


@dataclass(frozen=True, eq=False)
class Writer:
    """A list of nodes that grows. `opset` is the version of ONNX's ops that they are to belong to."""

    opset: int
    nodes: list[ir.Node] = field(default_factory=list)

    def __call__(self, op: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        """Write a node; its first output."""
        self.nodes.append(ir.node(op, inputs, attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, array: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> ir.Value:
        """A constant, of integers if nothing else is said."""
        return constant(np.asarray(array, dtype), self.nodes)

    def shaped(self, value: ir.Value, *sizes: int) -> ir.Value:
        """A value of another shape, as Reshape reads it."""
        return self("Reshape", value, self.constant(np.array(sizes, np.int64)))

    def reduced(self, op: str, value: ir.Value, axis: int, *, keep: bool = False) -> ir.Value:
        """A reduction over one axis."""
        if self.opset >= _AXES_INPUT[op]:
            return self(op, value, self.constant([axis]), keepdims=int(keep))
        return self(op, value, axes=[axis], keepdims=int(keep))

    def sizes(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Some of the sizes of a value, an int64 vector."""
        shape = self("Shape", value)
        return self("Slice", shape, self.constant([start]), self.constant([stop]))

    def placed(self, whole: ir.Value, rows: ir.Value, part: ir.Value) -> ir.Value:
        """A value with some of its rows replaced: `rows` are their numbers, int64 [n, 1]."""
        return self("ScatterND", whole, rows, part)

    def at_least(self, value: ir.Value, limit: ir.Value) -> ir.Value:
        """Whether values are equal to a limit, or larger."""
        if self.opset >= _GREATER_OR_EQUAL:
            return self("GreaterOrEqual", value, limit)
        return self("Or", self("Greater", value, limit), self("Equal", value, limit))

    def graph(self, name: str, outputs: Sequence[ir.Value], around: ir.Graph) -> ir.Graph:
        """A subgraph of these nodes; an output that is not made in it, or a second time, gets an Identity."""
        made = {value for node in self.nodes for value in node.outputs}
        given: list[ir.Value] = []
        for value in outputs:
            given.append(value if value in made and value not in given else self("Identity", value))
        for number, node in enumerate(self.nodes):
            node.name = f"{name}/{number}_{node.op_type}"
            for index, value in enumerate(node.outputs):
                value.name = f"{node.name}_{index}"
        imports = dict(around.opset_imports)
        return ir.Graph([], given, nodes=self.nodes, opset_imports=imports, name=name)
