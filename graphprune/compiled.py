"""Kernels that a provider compiled of many nodes at once: what is in them, as far as ONNX Runtime tells.

OpenVINO, TensorRT, CoreML and others take whole regions of a graph and run each as one kernel. ONNX
Runtime 1.24 and later records the nodes of every region in the order in which it numbers the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.attribution import COMPILED, Place
from graphprune.dataflow import attribute_graphs

if TYPE_CHECKING:
    from graphprune.tagging import Trail

_KERNEL = re.compile(r"(\w+ExecutionProvider)_.+_(\d+)")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Regions:
    """For every provider that compiles, by ONNX Runtime's name, the original nodes of each region."""

    nodes: Mapping[str, tuple[tuple[ir.Node, ...], ...]] = field(default_factory=dict)
    places: Mapping[ir.Node, Place] = field(default_factory=dict)

    @staticmethod
    def of(runtime: Any, trail: Trail, places: Mapping[ir.Node, Place]) -> Regions:
        """What a session of the tagged copy recorded; nothing where this version of ONNX Runtime cannot."""
        found: dict[str, list[tuple[ir.Node, ...]]] = {}
        if hasattr(runtime, "get_provider_graph_assignment_info"):
            for part in runtime.get_provider_graph_assignment_info():
                nodes = (origin for node in part.get_nodes() for origin in trail.named(node.name)[:1])
                found.setdefault(part.ep_name, []).append(tuple(dict.fromkeys(nodes)))
        return Regions({name: tuple(parts) for name, parts in found.items()}, places)

    def place(self, kernel: str) -> Place | None:
        """Where a compiled kernel belongs: to the one place of all its nodes, else to none of the blocks.

        None for other kernels.
        """
        if not _KERNEL.fullmatch(kernel):
            return None
        owners = self._owners(kernel)
        if len(owners) != 1:
            return Place(COMPILED)
        (found,) = owners.values()
        return found

    def described(self, kernel: str) -> str:
        """The kernel's name with what is in it; other names as they are."""
        nodes, owners = list(_with_inner(self._nodes(kernel))), list(self._owners(kernel))
        if not nodes:
            return kernel
        more = f" and {len(owners) - _SHOWN} more" if len(owners) > _SHOWN else ""
        return f"{kernel} ({len(nodes)} nodes of {', '.join(owners[:_SHOWN])}{more})"

    def _nodes(self, kernel: str) -> tuple[ir.Node, ...]:
        match = _KERNEL.fullmatch(kernel)
        regions = self.nodes.get(match[1], ()) if match else ()
        number = int(match[2]) if match else 0
        return regions[number] if number < len(regions) else ()

    def _owners(self, kernel: str) -> dict[str, Place]:
        """The places of its nodes, by their names; parts are left out where there are several."""
        found: dict[str, Place] = {}
        for node in _with_inner(self._nodes(kernel)):
            place = self.places.get(node)
            if place is not None and found.setdefault(place.owner, place) != place:
                found[place.owner] = Place(place.owner, "fused", place.inside)
        return found


def _with_inner(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """The nodes, and those of their subgraphs in place of the nodes that have some."""
    for node in nodes:
        inner = [graph for attribute in node.attributes.values() for graph in attribute_graphs(attribute)]
        if not inner:
            yield node
        for graph in inner:
            yield from _with_inner(graph)
