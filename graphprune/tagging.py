"""Follow nodes through ONNX Runtime's optimizer, by tags in the names of a copy.

ONNX Runtime makes the names of what it fuses, moves and inserts from the names that it finds: of
the nodes that it replaces, or of the values that these put out; and a fused node puts out a value
that one of its origins did. So every node of a temporary copy is named after its number in the
original, and so is every value inside. What bears no tag in the optimized graph is placed by its
neighbours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune.constants import constant_shape
from graphprune.dataflow import weight_indices
from graphprune.describe import node_name
from graphprune.scopes import Scope

if TYPE_CHECKING:
    from graphprune.attribution import Place

_TAG = re.compile(r"gp\.(\d+)\.(?:v\d+)?")
_REACH = 12  # nodes between what a fused linear puts out and the linear itself


def tag(model: ir.Model) -> None:
    """Name every node after its number in the order of `Scope`, and every inner value after its node.

    Inputs and outputs of graphs keep their names: they are the interface. Changes `model`.
    """
    for number, node in enumerate(Scope.of(model).order):
        node.name = f"gp.{number}."
        for position, value in enumerate(node.outputs):
            if value.name and not value.is_graph_output():
                value.name = f"gp.{number}.v{position}"


@dataclass(frozen=True, eq=False)
class Trail:
    """From the nodes of an optimized graph back to the original's.

    `scope` has the original's nodes in the order of their numbers, `outputs` the numbers of those that
    make outputs of graphs, by the outputs' names.
    """

    scope: Scope
    outputs: Mapping[str, int]

    @staticmethod
    def of(scope: Scope) -> Trail:
        """A trail to the nodes of `scope`."""
        pairs = [(v.name, i) for i, n in enumerate(scope.order) for v in n.outputs if v.is_graph_output()]
        uses = Counter(name for name, _ in pairs)  # both bodies of an If may call an output the same
        return Trail(scope, {name: i for name, i in pairs if name and uses[name] == 1})

    def origins(self, node: ir.Node) -> tuple[ir.Node, ...]:
        """The nodes that an optimized node was made from, as far as names tell: of its result first."""
        return self.named(*(value.name or "" for value in node.outputs), node.name or "")

    def named(self, *names: str) -> tuple[ir.Node, ...]:
        """The original nodes that these names lead to."""
        numbers = [number for name in names for number in self._numbers(name)]
        order = self.scope.order
        return tuple(order[n] for n in dict.fromkeys(numbers) if n < len(order))

    def readable(self, name: str) -> str:
        """A name that ONNX Runtime made, with the original's names in place of the tags."""
        order = self.scope.order

        def original(match: re.Match[str]) -> str:
            number = int(match[1])
            return node_name(order[number]) if number < len(order) else match[0]

        return _TAG.sub(original, name)

    def _numbers(self, name: str) -> Iterator[int]:
        if name in self.outputs:
            yield self.outputs[name]
        yield from (int(number) for number in _TAG.findall(name))

    def main_origin(self, node: ir.Node) -> ir.Node | None:
        """The origin that a node's time is mostly spent on: of a fused linear the linear, else the last."""
        origins = self.origins(node)
        if not origins or not _is_linear(node):
            return next(iter(origins), None)
        linears = (origin for origin in origins if origin in self.scope.linears)
        return next(linears, None) or self._linear_before(origins[0])

    def _linear_before(self, node: ir.Node) -> ir.Node:
        """The nearest linear that a node depends on by nodes that are none; the node itself without one."""
        work, seen = [node], {node}
        for current in work[: _REACH + 1]:
            for feeder in self.scope.feeders[current]:
                if feeder in self.scope.linears:
                    return feeder
                if feeder not in seen and len(work) <= _REACH:
                    seen.add(feeder)
                    work.append(feeder)
        return node


def _is_linear(node: ir.Node) -> bool:
    indices = (i for i in weight_indices(node) if i < len(node.inputs))
    return any(constant_shape(node.inputs[i]) is not None for i in indices)


def follow(
    optimized: Sequence[ir.Node], trail: Trail, places: Mapping[ir.Node, Place]
) -> dict[ir.Node, Place]:
    """The places of the nodes of an optimized graph.

    What has no origin (a cast or a change of layout that ONNX Runtime put in) is where its reader is, or
    else where what it reads is made. A node without a place has no such neighbour either.
    """
    found: dict[ir.Node, Place] = {}
    for node in optimized:
        origin = trail.main_origin(node)
        if origin is not None and origin in places:
            found[node] = places[origin]
    for node in reversed(optimized):
        _inherit(node, (use.node for value in node.outputs for use in value.uses()), found)
    for node in optimized:
        _inherit(node, (p for v in node.inputs if v is not None and (p := v.producer())), found)
    return found


def _inherit(node: ir.Node, neighbours: Iterator[ir.Node], found: dict[ir.Node, Place]) -> None:
    if node not in found:
        place = next((found[other] for other in neighbours if other in found), None)
        if place is not None:
            found[node] = place
