"""The KV caches of layers that run in another order, or more than once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.architecture import Architecture, Stack
from graphprune.errors import EditError
from graphprune.surgery.signature import (
    Parts,
    Signature,
    branches,
    names_of,
    number_caches,
    parts_by_layer,
)


def why_not_again(stack: Stack, architecture: Architecture, positions: Collection[int]) -> str:
    """Why the caches of some layers cannot be had twice; empty where they can. Changes nothing."""
    signature = Signature.read(stack.graph, architecture.model)
    cached = [p for p in positions if any(block.caches for block in stack.layers[p].blocks)]
    if not cached:
        return ""
    if stack.graph is not architecture.model.graph and signature.owner is None:
        return "its caches are those of a subgraph, which nobody hands further ones"
    slots = [parts for parts in parts_by_layer(architecture.stacks, signature).values() if parts]
    name_of = names_of(signature, slots)
    unknown = next((part for slot in slots for part in slot if name_of(len(slots), part) is None), None)
    return f"the names of its caches do not count: what follows '{unknown[2]}'?" if unknown else ""


@dataclass(eq=False)
class Runs:
    """The layers of one stack as they come to run, by their caches: filled by `add` and `add_again`."""

    stack: Stack
    architecture: Architecture
    signature: Signature
    first: Sequence[Parts]
    done: list[Parts] = field(default_factory=list)

    @staticmethod
    def of(stack: Stack, architecture: Architecture) -> Runs:
        """The caches of the layers of `stack`."""
        signature = Signature.of(stack.graph, architecture.model)
        layers = parts_by_layer(architecture.stacks, signature)
        return Runs(stack, architecture, signature, [layers[layer] for layer in stack.layers])

    def ends(self, position: int) -> tuple[list[ir.Value], list[ir.Value]]:
        """The past inputs and present outputs that the layer at `position` has now."""
        parts = self.first[position]
        pasts = [v for (_, side, _), v in parts.items() if side == "in" and v.is_graph_input()]
        return pasts, [v for (_, side, _), v in parts.items() if side == "out" and v.is_graph_output()]

    def add(self, position: int) -> None:
        """The layer runs, with the caches that it had."""
        self.done.append(self.first[position])

    def new_pasts(self, position: int) -> dict[ir.Value, ir.Value]:
        """A further input of the graph for each past of the layer, by the past."""
        made: dict[ir.Value, ir.Value] = {}
        for past in self.ends(position)[0]:
            made[past] = ir.Value(name=past.name, type=past.type, shape=past.shape)
            graph = past.graph
            assert isinstance(graph, ir.Graph)
            graph.inputs.insert(self._end_of_caches(graph.inputs), made[past])
        return made

    def _end_of_caches(self, values: Sequence[ir.Value]) -> int:
        """The place after the last of a graph's inputs or outputs that is a cache."""
        caches = {self.signature.public(v) for run in (*self.first, *self.done) for v in run.values()}
        return 1 + max(place for place, value in enumerate(values) if value in caches)

    def add_again(self, position: int, values: Mapping[ir.Value, ir.Value]) -> None:
        """The layer runs again: `values` are those of its first run and their copies."""
        copies = dict(values)
        for present in self._outputs(position):
            copies[present] = self._new_output(present, copies.get(present))
        self.done.append({p: copies[v] for p, v in self.first[position].items() if v in copies})

    def _outputs(self, position: int) -> list[ir.Value]:
        """What of the layer leaves the graph; in a branch of an If, what either branch calls so."""
        graph, owner = self.stack.graph, self.signature.owner
        if owner is None:
            return self.ends(position)[1]
        graphs = branches(owner)
        copies = (s for s in self.architecture.stacks if s.name == self.stack.name and s.graph in graphs)
        places: set[int] = set()
        for copy in copies:
            signature = Signature.of(copy.graph, self.architecture.model)
            theirs = set(parts_by_layer([copy], signature)[copy.layers[position]].values())
            places |= {i for i, value in enumerate(copy.graph.outputs) if value in theirs}
        return [graph.outputs[place] for place in sorted(places)]

    def _new_output(self, present: ir.Value, copied: ir.Value | None) -> ir.Value:
        """Put the copy of a present out as well; where nothing of it is the layer's own, the same again."""
        graph, owner = self.stack.graph, self.signature.owner
        if copied is None:
            node = ir.node("Identity", [present])
            graph.append(node)
            copied = node.outputs[0]
        copied.type, copied.shape = present.type, present.shape
        if owner is None:
            graph.outputs.insert(self._end_of_caches(graph.outputs), copied)
            return copied
        graph.outputs.append(copied)
        if len(owner.outputs) < len(graph.outputs):
            self._grow(owner, self.signature.public(present))
        return copied

    def _grow(self, owner: ir.Node, like: ir.Value) -> None:
        owner.resize_outputs(len(owner.outputs) + 1)
        made = owner.outputs[-1]
        made.name, made.type, made.shape = f"{like.name}_again", like.type, like.shape
        outside = owner.graph
        assert isinstance(outside, ir.Graph)
        outside.outputs.insert(self._end_of_caches(outside.outputs), made)

    def number(self) -> None:
        """Number the caches of all stacks of the graph in running order. Raises `EditError`."""
        layers = parts_by_layer(self.architecture.stacks, self.signature)
        runs = list(layers.values())
        start = list(layers).index(self.stack.layers[0])
        runs[start : start + len(self.stack.layers)] = self.done
        slots = [parts for parts in layers.values() if parts]
        if not number_caches(self.signature, slots, runs) and len(self.done) > len(self.first):
            raise EditError(f"'{self.stack.name}': no name can be made for the cache of a further run")
