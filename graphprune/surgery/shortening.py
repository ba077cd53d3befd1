"""A way past some blocks, for drafts: an input says whether a run takes it. Nothing on that way is computed.

Blocks that follow each other go into one `If` with all that only they need, keys and values too. So the
caches of what is passed by are not written then: a run that takes the shortcut is for its scores alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir

from graphprune.architecture import Architecture, Block
from graphprune.dataflow import SKIP_NORMS, WEIGHT_INPUTS, captured_values
from graphprune.errors import EditError
from graphprune.surgery.branching import enclose, rename
from graphprune.surgery.gating import allow_defaults, optional_input
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.stored import storage
from graphprune.surgery.sums import split_join
from graphprune.surgery.values import constant, current, sort

WHOLE = "whole"


def add_shortcut(architecture: Architecture, blocks: Collection[str]) -> tuple[str, ...]:
    """Let an input of the main graph say whether these blocks, by their ids, run or are passed by.

    `whole`, bool [], is optional and true by default: then the outputs are what they were. Where it is
    false, the stream behind each run of blocks is the one before it (norms behind blocks go with them),
    and the keys and values of these blocks are empty; the names of the outputs that these are come back.
    Raises `EditError` where a graph has such an input already, or something else needs what is passed by.
    """
    graph = architecture.model.graph
    if WHOLE in {value.name for value in (*graph.inputs, *graph.initializers.values())}:
        raise EditError(f"an input or weight is called '{WHOLE}' already")
    allow_defaults(architecture.model)
    whole = optional_input(graph, WHOLE, ir.tensor(np.array(True)))
    empty: list[str] = []
    for stack in architecture.stacks:
        for run, end in _runs(list(stack.blocks), blocks):
            empty += _pass_by(stack.graph, run, end, whole)
        sort(stack.graph)
    return tuple(dict.fromkeys(empty))


def _runs(blocks: Sequence[Block], chosen: Collection[str]) -> Iterator[tuple[tuple[Block, ...], ir.Value]]:
    """The chosen blocks that follow each other, and the stream behind them, laid out as before them."""
    behind = [*(block.stream_in for block in blocks[1:]), blocks[-1].stream_out]
    pairs = zip(blocks, behind, strict=True)
    for is_chosen, run in groupby(pairs, key=lambda pair: pair[0].id in chosen):
        if is_chosen:
            found = list(run)
            yield tuple(block for block, _ in found), found[-1][1]


def _pass_by(graph: ir.Graph, run: Sequence[Block], end: ir.Value, whole: ir.Value) -> list[str]:
    """Put a run of blocks into an If; the names of their caches."""
    release_shapes([node for block in run for node in (*block.nodes, block.join, *block.sums)], run[0])
    join = run[-1].join
    if join.graph is graph and join.op_type in SKIP_NORMS:
        split_join(join)
    sort(graph)
    start, end = current(run[0].stream_in), current(end)
    caches = [cache for block in run for cache in block.caches]
    kept = {current(value) for cache in caches for value in cache.outputs}
    written = [value for value in graph.outputs if value in kept]
    pasts = [value for cache in caches for value in cache.inputs]
    nodes = _only_for(graph, start, (end, *written))
    linears = [one.node for block in run for branch in block.branches for one in branch.linears]
    if why := _why_not(nodes, [start, end], [*linears, end.producer()], written, pasts):
        raise EditError(f"{_span(run)} cannot be passed by: {why}")
    names = [value.name or "" for value in written]
    name = f"{run[0].id}/shortcut"
    nodes = _without_sizes(nodes, {start, *pasts})
    enclose(nodes, (end, *written), whole, _passed(graph, start, written, f"{name}/passed"), name)
    return names


def _span(run: Sequence[Block]) -> str:
    return run[0].id if len(run) == 1 else f"{run[0].id} to {run[-1].id}"


def _only_for(graph: ir.Graph, start: ir.Value, results: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes after `start` that compute `results` and nothing else, in running order."""
    others = {start, *graph.outputs} - set(results)
    needed, live = _makers(graph, results, ()), _makers(graph, others, results)
    return [node for node in graph if node in needed and node not in live]


def _without_sizes(nodes: Sequence[ir.Node], data: Collection[ir.Value]) -> list[ir.Node]:
    """`nodes` but for those that come from neither `data` nor a linear: sizes, and parts of masks.

    Outside, ONNX Runtime computes them once for all layers; it folds no constants of outer graphs inside.
    """
    made: set[ir.Value] = set(data)
    kept: set[ir.Node] = set()
    for node in nodes:
        if node.op_type in WEIGHT_INPUTS or made.intersection((*node.inputs, *captured_values(node))):
            kept.add(node)
            made.update(node.outputs)
    own = {node for node in nodes if node.op_type == "Constant" and _read_by(node) <= kept}
    return [node for node in nodes if node in kept or node in own]


def _read_by(node: ir.Node) -> set[ir.Node]:
    return {use.node for output in node.outputs for use in output.uses()}


def _makers(graph: ir.Graph, roots: Collection[ir.Value], known: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes of a graph that compute `roots` where `known` are given."""
    found: set[ir.Node] = set()
    work = list(roots)
    while work:
        node = work.pop().producer()
        if node is not None and node.graph is graph and node not in found:
            found.add(node)
            inputs = (value for value in (*node.inputs, *captured_values(node)) if value is not None)
            work += [value for value in inputs if value not in known]
    return found


def _why_not(
    nodes: Collection[ir.Node],
    stream: Collection[ir.Value],
    parts: Collection[ir.Node | None],
    written: Collection[ir.Value],
    pasts: Collection[ir.Value],
) -> str:
    """Why these nodes, all `parts` of the blocks among them, cannot be passed by; empty where they can."""
    if any(storage(value) is not None for value in stream):
        return "the stream is stored by a scale of its own"
    part = next((node for node in parts if node not in nodes), None)
    if part is not None:
        return f"others read what node '{part.name}' ({part.op_type}) leads to"
    shared = next((value for value in written if value.producer() not in nodes), None)
    if shared is not None:
        return f"others read its '{shared.name}'"
    read = next((past for past in pasts if any(use.node not in nodes for use in past.uses())), None)
    if read is not None:
        return f"others read the size of its '{read.name}'"
    return ""


def _passed(graph: ir.Graph, start: ir.Value, written: Sequence[ir.Value], name: str) -> ir.Graph:
    """What is there in place of a run: the stream before it, and caches without tokens."""
    stream = ir.node("Identity", [start])
    nodes = [stream]
    outputs = [stream.outputs[0], *(constant(_empty(value), nodes) for value in written)]
    passed = ir.Graph([], outputs, nodes=nodes, opset_imports=dict(graph.opset_imports), name=name)
    rename(passed, name)
    return passed


def _empty(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """No tokens of a cache: sizes that are known are kept."""
    shape = [dim if isinstance(dim, int) else 0 for dim in value.shape or (0, 0, 0, 0)]
    return np.zeros(shape, (value.dtype or ir.DataType.FLOAT).numpy())
