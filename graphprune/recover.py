"""Graph → `Architecture`: the stacks, layers and blocks of a model, whoever exported it.

    lower      a graph to its data flow, marks included          lowering.py (dataflow)
    find       the joins, and the region of each branch          joins.py
    read       every block: kind, roles, norms, caches, costs    blocks.py (branches, norms, ownership, costs)
    chain      blocks along the stream into stacks               here
    group      stacks into layers, and name them                 layers.py, naming.py

Subgraphs (both branches of a merged decoder, the bodies of a GreedySearch) are read like the
main graph; stacks with the same blocks in different graphs carry one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphprune.architecture import Architecture, Block, Declined, Layer, Norm, Stack
from graphprune.blocks import RawBlock, as_norm, read_blocks
from graphprune.constants import origins
from graphprune.dataflow import Flow, attribute_graphs, source
from graphprune.joins import Refused, find_joins, ops_between
from graphprune.layers import group
from graphprune.lowering import lower
from graphprune.naming import is_causal, name_stacks, source_of
from graphprune.norms import FoundNorm, find_norms
from graphprune.shapes import Shapes

# Ops between two blocks that end a stack: what follows is another resolution or another sequence.
BREAKS = {
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Slice", "Gather", "GatherND",
    "Resize", "Upsample", "Pad", "SpaceToDepth", "DepthToSpace", "Split", "Expand", "Tile",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Chain:
    """The blocks of one stack, before they have a name."""

    blocks: tuple[RawBlock, ...]
    flow: Flow


@dataclass(frozen=True, eq=False)
class _Totals:
    """Blocks by the sum at their join, and the bits of these sums."""

    blocks: dict[int, RawBlock]
    of_bit: dict[int, int]
    mask: int

    @staticmethod
    def of(flow: Flow, blocks: Sequence[RawBlock]) -> _Totals:
        of_bit = {flow.bits[block.join.total]: block.join.total for block in blocks}
        return _Totals({b.join.total: b for b in blocks}, of_bit, sum(1 << bit for bit in of_bit))


@dataclass(frozen=True, eq=False)
class _GraphReading:
    path: str
    flow: Flow
    stacks: tuple[Stack, ...]
    final_norms: tuple[Norm, ...]
    declined: tuple[Declined, ...]


def recover(model: ir.Model) -> Architecture:
    """Find the stacks, layers and blocks of `model` by their structure. The model is not changed.

    Nodes must be in topological order. Takes time linear in the number of nodes; weights are
    not read. What looks like a block and is none (or cannot be taken for one safely) is listed
    in `declined`, with the reason.
    """
    shapes = Shapes(model)
    readings = list(_read_graphs(model.graph, "", None, shapes))
    names = _common_names(readings)
    stacks = [
        _renamed(stack, names[reading.path, stack.name]) for reading in readings for stack in reading.stacks
    ]
    return Architecture(
        model, tuple(stacks),
        declined=tuple(d for reading in readings for d in reading.declined),
        final_norms=tuple(n for reading in readings for n in reading.final_norms),
        shared_weights=_shared_weights(stacks),
        shared_nodes=_shared_nodes(stacks),
    )  # fmt: skip


def _read_graphs(graph: ir.Graph, path: str, outer: Flow | None, shapes: Shapes) -> Iterator[_GraphReading]:
    flow = lower(graph, outer)
    yield _read_graph(flow, path, shapes)
    for node in flow.captured:
        for name, attribute in node.attributes.items():
            for inner in attribute_graphs(attribute):
                step = f"{node.name or node.op_type}/{name}"
                yield from _read_graphs(inner, f"{path}/{step}" if path else step, flow, shapes)


def _read_graph(flow: Flow, path: str, shapes: Shapes) -> _GraphReading:
    norms = find_norms(flow)
    joins, refused = find_joins(flow)
    blocks = read_blocks(flow, joins, norms, shapes)
    chains = _chains(flow, blocks)
    names = name_stacks([_traits(chain) for chain in chains])
    stacks = tuple(
        _as_stack(chain, name, path, flow.graph) for chain, name in zip(chains, names, strict=True)
    )
    return _GraphReading(
        path, flow, stacks, tuple(_final_norms(chains, norms)), tuple(map(_declined, refused))
    )


def _chains(flow: Flow, blocks: Sequence[RawBlock]) -> list[_Chain]:
    """Blocks in runs, each reading what the one before it put out."""
    by_total = _Totals.of(flow, blocks)
    following: dict[RawBlock, RawBlock] = {}
    heads: list[RawBlock] = []
    for block in blocks:
        previous = _previous(flow, block, by_total)
        # A projection shortcut begins a new stage.
        if previous is None or previous in following or block.join.projection:
            heads.append(block)
        else:
            following[previous] = block
    chains = []
    for head in heads:
        run = [head]
        while run[-1] in following:
            run.append(following[run[-1]])
        chains += [_Chain(tuple(part), flow) for part in _split_mixed(run)]
    return chains


def _previous(flow: Flow, block: RawBlock, by_total: _Totals) -> RawBlock | None:
    """The block whose sum this one's stream is, norms and activations aside."""
    root = source(flow, block.join.stream)
    reached = flow.around[root] & by_total.mask
    if not reached:
        return None
    bit = reached.bit_length() - 1
    total = by_total.of_bit[bit]
    if flow.through[root] >> bit & 1:
        return None
    between = ops_between(flow, (root,), lambda n: n == total, lambda n: flow.depends(n, total))
    return None if any(op.kind in BREAKS for op in between) else by_total.blocks[total]


def _split_mixed(run: list[RawBlock]) -> list[list[RawBlock]]:
    """Cut convolutional blocks that lead up to a transformer stack from it."""
    kinds = [block.kind for block in run]
    if "conv" not in kinds or set(kinds) == {"conv"}:
        return [run]
    first = next(i for i, kind in enumerate(kinds) if kind != "conv")
    repeats = "conv" in kinds[first:]
    return [run] if repeats or first == 0 else [run[:first], run[first:]]


def _traits(chain: _Chain) -> tuple[str, str]:
    kinds = {block.kind for block in chain.blocks}
    if kinds == {"conv"}:
        return "stage", ""
    if "cross_attention" in kinds or any(c.kind == "self" for b in chain.blocks for c in b.caches):
        return "decoder", ""
    attends = next((b for b in chain.blocks if b.kind in {"attention", "parallel"}), None)
    causal = attends is not None and is_causal(chain.flow, set(attends.join.region))
    read = source_of(chain.flow, source(chain.flow, chain.blocks[0].join.stream))
    return "causal" if causal else "encoder", read


def _as_stack(chain: _Chain, name: str, path: str, graph: ir.Graph) -> Stack:
    kinds = [block.kind for block in chain.blocks]
    linear = {index for index, block in enumerate(chain.blocks) if block.is_linear}
    ranges = group(kinds, [block.signature for block in chain.blocks], linear)
    last = chain.blocks[-1]
    layers = tuple(Layer(index, _blocks(chain, name, index, span, last)) for index, span in enumerate(ranges))
    return Stack(name, path, graph, layers)


def _blocks(chain: _Chain, name: str, index: int, span: range, last: RawBlock) -> tuple[Block, ...]:
    seen: dict[str, int] = {}
    found = []
    for i in span:
        raw = chain.blocks[i]
        count = seen[raw.kind] = seen.get(raw.kind, -1) + 1
        ending = f"{raw.kind}{count}" if count else raw.kind
        following = chain.blocks[i + 1] if raw is not last else None
        found.append(raw.finish(f"{name}.{index}.{ending}", following, chain.blocks))
    return tuple(found)


def _final_norms(chains: Sequence[_Chain], norms: Sequence[FoundNorm]) -> Iterator[Norm]:
    for chain in chains:
        last = chain.blocks[-1]
        norm = last.norm_after
        if norm is not None and last.placement(None, chain.blocks) not in {"post"}:
            yield as_norm(chain.flow, norm, "post")


def _declined(refused: Refused) -> Declined:
    node = refused.op.node
    return Declined((node,), f"node '{node.name or node.op_type}': {refused.reason}")


def _common_names(readings: Sequence[_GraphReading]) -> dict[tuple[str, str], str]:
    """Names that hold over all graphs: one for stacks that are copies of each other, else different ones."""
    taken: dict[str, tuple[tuple[str, ...], str]] = {}
    names: dict[tuple[str, str], str] = {}
    for reading in readings:
        for stack in reading.stacks:
            shape = tuple(block.kind for block in stack.blocks)
            name, count = stack.name, 1
            while name in taken and (
                taken[name][0] != shape or (reading.path, name) in _values(names, reading.path)
            ):
                count += 1
                name = f"{stack.name}{count}"
            taken.setdefault(name, (shape, reading.path))
            names[reading.path, stack.name] = name
    return names


def _values(names: dict[tuple[str, str], str], path: str) -> set[tuple[str, str]]:
    return {(path, new) for (where, _), new in names.items() if where == path}


def _renamed(stack: Stack, name: str) -> Stack:
    if name == stack.name:
        return stack
    layers = tuple(
        replace(
            layer, blocks=tuple(replace(b, id=name + b.id.removeprefix(stack.name)) for b in layer.blocks)
        )
        for layer in stack.layers
    )
    return replace(stack, name=name, layers=layers)


def _shared_weights(stacks: Sequence[Stack]) -> tuple[ir.Value, ...]:
    """Weights that linears of more than one block read, also where each has an alias of its own."""
    readers: dict[ir.Value, set[str]] = {}
    for stack in stacks:
        for block in stack.blocks:
            linears = (linear for branch in block.branches for linear in branch.linears)
            for value in (v for linear in linears for v in linear.weights):
                for origin, _ in origins(value):
                    readers.setdefault(origin, set()).add(block.id)
    return tuple(value for value, blocks in readers.items() if len(blocks) > 1)


def _shared_nodes(stacks: Sequence[Stack]) -> tuple[ir.Node, ...]:
    """What nodes of more than one block read and no block owns: masks, rotary tables, position biases."""
    owners: dict[ir.Node, str] = {node: b.id for s in stacks for b in s.blocks for node in b.nodes}
    streams = {v for s in stacks for b in s.blocks for v in (b.stream_in, b.stream_out)}
    readers: dict[ir.Node, set[str]] = {}
    for node, owner in owners.items():
        for value in node.inputs:
            producer = value.producer() if value is not None and value not in streams else None
            if producer is not None and producer not in owners and producer.op_type != "Constant":
                readers.setdefault(producer, set()).add(owner)
    return tuple(node for node, blocks in readers.items() if len(blocks) > 1)
