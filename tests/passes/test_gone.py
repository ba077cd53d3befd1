"""What is dropped is gone: nodes, weights and bytes go as the inspection promised."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.architecture import Block
from tools.zoo import Entry, NotExportableError, entries

PROVENANCE = 1000  # bytes of the note about the recipe
LISTED = [
    pytest.param(entry, file, id=f"{entry.family.name}-{file}")
    for entry in entries(fast=True)
    for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files)
    if entry.family.listed
]


def step(block: Block) -> dict[str, object]:
    """The options that drop a block."""
    if block.kind == "ffn":
        return {"drop_ffn": block.id}
    if block.kind in {"attention", "cross_attention"}:
        which = "self" if block.kind == "attention" else "cross"
        return {"drop_attention": {"blocks": block.id, "which": which}}
    return {"drop_layers": block.id.rpartition(".")[0]}


@pytest.mark.parametrize(("entry", "file"), LISTED)
def test_all_that_was_promised_goes(entry: Entry, file: str, tmp_path: Path) -> None:
    try:
        source = next(path for path in entry.files() if path.stem == file)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    bundle = gp.load(source)
    architecture = gp.inspect(bundle)[0].architecture
    shared = any(len({layer.path for layer in s.layers}) < len(s.layers) for s in entry.stacks(file))
    chosen = random.Random(zlib.crc32(file.encode()))
    for kind in dict.fromkeys(block.kind for block in architecture.blocks if block.droppable):
        block = chosen.choice([b for b in architecture.blocks if b.droppable and b.kind == kind])
        gone(gp.prune(bundle, **step(block)), tmp_path, shared=shared)


def gone(pruned: gp.Pruned, folder: Path, *, shared: bool) -> None:
    before, after, removed = pruned.plan.before, pruned.after, pruned.plan.removed
    promised = sum(len(block.nodes) for block in removed)
    dummies = 2 if any(block.kind == "cross_attention" for block in removed) else 0
    assert promised <= before.nodes - after.nodes <= promised + dummies  # what a merged decoder puts out
    assert before.parameters - after.parameters == (0 if shared else parameters(removed))
    out = pruned.save(folder / "pruned.onnx", run=False, overwrite=True)
    dense = pruned.plan.bundle.save(folder / "dense.onnx", overwrite=True)
    assert dense.stat().st_size - out.stat().st_size >= before.bytes - after.bytes - PROVENANCE
    graph, source = gp.load(out).files[0].model.graph, pruned.plan.bundle.files[0].model.graph
    names, old = (Counter(node.name for node in one.all_nodes()) for one in (graph, source))
    lost = Counter(node.name for block in removed for node in block.nodes)
    assert not [name for name in lost if names[name] > old[name] - lost[name]]
    inputs = {value for block in removed for cache in block.caches for value in cache.inputs}
    assert len(graph.inputs) == len(source.inputs) - len(inputs)


def parameters(removed: tuple[Block, ...]) -> int:
    """The parameters of blocks; of copies, those of the larger one (it has more to do without a past)."""
    largest: dict[str, int] = {}
    for block in removed:
        largest[block.id] = max(block.parameters, largest.get(block.id, 0))
    return sum(largest.values())
