"""How the KV caches of a graph are called from outside, and in which order: numbered as the layers run.

The layers of a graph that have caches take *slots* 0, 1, 2, …; the names that a slot has for
its *parts* (the past key, the present value of the cross-attention, …) are those that the
model came with. What changes the layers gives the layers that are left, in running order, the
first slots. So self- and cross-attention of one layer always carry one number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from graphprune.architecture import Cache, Layer, Stack
from graphprune.dataflow import attribute_graphs
from graphprune.surgery.values import NOTES, current

# What a cache holds and where: its kind, "in" or "out", its name without the numbers or its place.
Part = tuple[str, str, "str | int"]
Parts = dict[Part, ir.Value]
_Place = tuple[int, Part]
_SIGNATURE = f"{NOTES}signature"


@dataclass(frozen=True, eq=False)
class Signature:
    """What a graph was called with before the first edit.

    Where the graph is a branch of an `If`, its outputs are those of the If (`owner`), by position.
    `names` are the outside's names of inputs and outputs, `places` count inputs first.
    """

    graph: ir.Graph
    owner: ir.Node | None
    names: Mapping[ir.Value, str]
    places: Mapping[ir.Value, int]

    @staticmethod
    def of(graph: ir.Graph, model: ir.Model) -> Signature:
        """The signature of `graph`, as it was when this was first asked."""
        found = graph.meta.get(_SIGNATURE)
        if found is None:
            found = graph.meta[_SIGNATURE] = Signature.read(graph, model)
            if found.owner is not None:  # its branches lose outputs together
                for branch in branches(found.owner):
                    Signature.of(branch, model)
        assert isinstance(found, Signature)
        return found

    @staticmethod
    def read(graph: ir.Graph, model: ir.Model) -> Signature:
        """The signature of `graph` as it is."""
        owner = None if graph is model.graph else _owner(model.graph, graph)
        owner = owner if owner is not None and owner.op_type == "If" else None
        inputs = [*model.graph.inputs, *(graph.inputs if graph is not model.graph else ())]
        outputs = list(graph.outputs)
        given = owner.outputs if owner is not None else outputs
        names = {value: value.name or "" for value in inputs}
        names |= {inner: outer.name or "" for inner, outer in zip(outputs, given, strict=True)}
        places = {value: place for place, value in enumerate([*inputs, *outputs])}
        return Signature(graph, owner, names, places)

    def public(self, value: ir.Value) -> ir.Value:
        """What the caller gets for `value`: itself, or the output of the If at its place."""
        if self.owner is None or not value.is_graph_output():
            return value
        position = next(i for i, output in enumerate(self.graph.outputs) if output is value)
        return self.owner.outputs[position]

    def parts(self, caches: Iterable[Cache]) -> Parts:
        """The values of some caches of one layer, by what they hold."""
        result: Parts = {}
        for cache in caches:
            for side, values in (("in", cache.inputs), ("out", cache.outputs)):
                result |= {(cache.kind, side, key): value for key, value in self._keyed(values)}
        return result

    def _keyed(self, values: Sequence[ir.Value]) -> Iterator[tuple[str | int, ir.Value]]:
        """Values by their names without numbers; where these are not enough, by their order."""
        now = (current(value) for value in values)
        known = sorted((v for v in now if v in self.names), key=self.places.__getitem__)
        plain = [re.sub(r"\d+", "#", self.names[value]) for value in known]
        alone = Counter(plain)
        for index, (value, name) in enumerate(zip(known, plain, strict=True)):
            yield (name if alone[name] == 1 else index), value


def branches(owner: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds."""
    return [graph for attribute in owner.attributes.values() for graph in attribute_graphs(attribute)]


def _owner(within: ir.Graph, graph: ir.Graph) -> ir.Node | None:
    """The node that holds `graph` as an attribute."""
    nodes = ir.traversal.RecursiveGraphIterator(within)
    return next((node for node in nodes if any(inner is graph for inner in branches(node))), None)


def parts_by_layer(stacks: Iterable[Stack], signature: Signature) -> dict[Layer, Parts]:
    """What every layer of the graph had for caches at first, in the order of the stream.

    Where an earlier run dropped an attention and kept its cache, no block has it any more: such
    a cache belongs to the layer that has its number.
    """
    layers = (layer for stack in stacks if stack.graph is signature.graph for layer in stack.layers)
    found = {layer: signature.parts(c for b in layer.blocks for c in b.caches) for layer in layers}
    slots = [layer for layer, parts in found.items() if parts]
    claimed = {value for parts in found.values() for value in parts.values()}
    free = {name: value for value, name in signature.names.items() if value not in claimed}
    name_of = names_of(signature, [found[layer] for layer in slots])
    missing = dict.fromkeys(part for layer in slots for part in found[layer])
    for slot, layer in enumerate(slots):
        for part in missing:
            value = None if part in found[layer] else free.get(name_of(slot, part) or "")
            if value is not None:
                found[layer] = found[layer] | {part: value}
    return found


def number_caches(signature: Signature, slots: Sequence[Parts], runs: Sequence[Parts]) -> bool:
    """Give the caches that are left names and places by `runs`, the layers as they run now.

    `slots` are the layers as they were at first, those without caches left out. Where the names
    cannot be counted on, nothing is renamed and False returned.
    """
    alive = [{part: v for part, v in run.items() if _is_open(v)} for run in runs]
    alive = [run for run in alive if run]
    name_of = names_of(signature, slots)
    names = {(n, part): name_of(n, part) for n, run in enumerate(alive) for part in run}
    if any(name is None for name in names.values()):
        return False
    order = _order(signature, slots, names)
    ranks: dict[ir.Value, int] = {}
    for number, run in enumerate(alive):
        for part, value in run.items():
            public = signature.public(value)
            public.name = names[number, part]
            ranks[public] = order[number, part]
    graphs = dict.fromkeys(v.graph for v in ranks if isinstance(v.graph, ir.Graph))
    for graph in graphs:
        _arrange(graph.inputs, ranks)
        _arrange(graph.outputs, ranks)
    return True


def _is_open(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output()


def names_of(signature: Signature, slots: Sequence[Parts]) -> Callable[[int, Part], str | None]:
    """Tells what a part is called in a slot, also in slots after the last that there were."""
    names = [{part: signature.names[value] for part, value in slot.items()} for slot in slots]

    def name_of(slot: int, part: Part) -> str | None:
        if slot < len(names) and part in names[slot]:
            return names[slot][part]
        known = {n: given[part] for n, given in enumerate(names) if part in given}
        alone = next(iter(known)) if len(known) == 1 else None
        if alone is not None and len({tuple(re.findall(r"\d+", name)) for name in names[alone].values()}) > 1:
            return None  # is it the layer that they count?
        return _counted(known, slot)

    return name_of


def _counted(known: Mapping[int, str], slot: int) -> str | None:
    """The name at `slot` of names that count evenly; None where they do not."""
    pieces = {n: re.split(r"(\d+)", name) for n, name in known.items()}
    if len({len(split) for split in pieces.values()}) != 1:
        return None
    (first, start), *others = pieces.items()
    places = [i for i in range(len(start)) if any(split[i] != start[i] for _, split in others)]
    if not others:
        places = list(range(1, len(start), 2))
    if len(places) != 1 or places[0] % 2 == 0:
        return None
    at = places[0]
    numbers = {n: int(split[at]) for n, split in pieces.items()}
    step = (numbers[others[-1][0]] - numbers[first]) // (others[-1][0] - first) if others else 1
    if step < 1 or any(number != numbers[first] + step * (n - first) for n, number in numbers.items()):
        return None
    number = numbers[first] + step * (slot - first)
    return "".join([*start[:at], str(number), *start[at + 1 :]]) if number >= 0 else None


def _order(signature: Signature, slots: Sequence[Parts], wanted: Iterable[_Place]) -> dict[_Place, int]:
    """The caller's order of all parts of all slots; further slots go where the last one's parts are."""
    count = 1 + max((slot for slot, _ in wanted), default=0)
    places = [(slot, part) for slot, parts in enumerate(slots) for part in parts]
    places.sort(key=lambda place: signature.places[slots[place[0]][place[1]]])
    for extra in range(len(slots), count):
        longer: list[_Place] = []
        for slot, run in groupby(places, key=lambda place: place[0]):
            same = list(run)
            longer += same
            if slot == extra - 1:
                longer += [(extra, part) for _, part in same]
        places = longer
    for slot, part in wanted:
        if (slot, part) not in places:
            places.insert(_gap(places, slot, part), (slot, part))
    return {place: rank for rank, place in enumerate(places)}


def _gap(places: Sequence[_Place], slot: int, part: Part) -> int:
    """Where a part goes that its slot did not have: between its neighbours, as in another slot."""
    other = next(n for n, its in places if its == part)
    parts = [its for n, its in places if n == other]
    later = set(parts[parts.index(part) + 1 :])
    found = [i for i, (n, its) in enumerate(places) if n == slot and its in later]
    earlier = [i + 1 for i, (n, _) in enumerate(places) if n <= slot]
    return found[0] if found else max(earlier, default=0)


def _arrange(values: ir.GraphInputs | ir.GraphOutputs, ranks: Mapping[ir.Value, int]) -> None:  # type: ignore[name-defined]
    """Sort those of a graph's inputs or outputs that have a rank, in the places that they have."""
    given = list(values)
    ranked = sorted((value for value in given if value in ranks), key=ranks.__getitem__)
    following = iter(ranked)
    wanted = [next(following) if value in ranks else value for value in given]
    if any(a is not b for a, b in zip(given, wanted, strict=True)):
        values.clear()
        values.extend(wanted)
