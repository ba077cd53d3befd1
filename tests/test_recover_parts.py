"""What recovery says is inside the blocks: linear maps by role, parameters, caches, against torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.architecture import Stack as FoundStack
from graphprune.bundle import load
from graphprune.recover import recover
from tests.recovered import STAGED
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_feeds import SLOT
from tools.zoo_truth import Stack

LISTED = [pytest.param(e, id=e.family.name) for e in entries(fast=True) if e.family.listed]


def _pairs(entry: Entry) -> Iterator[tuple[Path, FoundStack, Stack]]:
    """The stacks of all files (not of subgraphs), found and true, side by side."""
    try:
        files = entry.files()
    except NotExportableError as refusal:
        pytest.skip(f"not exportable: {str(refusal)[:200]}")
    for file in files:
        (loaded,) = load(file).files
        found = {stack.name: stack for stack in recover(loaded.model).stacks if not stack.path}
        for truth in entry.stacks(file.stem):
            if truth.name in found:  # not in a merged decoder, nor where stages have their own names
                yield file, found[truth.name], truth


@pytest.mark.parametrize("entry", LISTED)
def test_names(entry: Entry) -> None:
    if entry.family.name in STAGED:
        pytest.skip("its stages are stacks of their own")
    for file in entry.files():
        (loaded,) = load(file).files
        found = {stack.name for stack in recover(loaded.model).stacks}
        assert found == {stack.name for stack in entry.stacks(file.stem)}, file.stem


@pytest.mark.parametrize("entry", LISTED)
def test_roles(entry: Entry) -> None:
    for file, found, truth in _pairs(entry):
        for got, want in zip(found.layers, truth.layers, strict=True):
            for block, true in zip(got.blocks, want.blocks, strict=True):
                roles = sorted(linear.role for branch in block.branches for linear in branch.linears)
                wanted = sorted(role for part in true.parts for role in part.roles)
                if file.stem == "decoder_with_past_model" and true.kind == "cross_attention":
                    wanted = ["o", "q"]  # k and v come out of the cache
                if wanted:
                    assert roles == wanted, f"{file.stem} {block.id}"


@pytest.mark.parametrize("entry", LISTED)
def test_parameters(entry: Entry) -> None:
    """A norm after the join stays when its block goes, and is not counted."""
    model = entry.torch_model()
    for file, found, truth in _pairs(entry):
        if file.stem == "decoder_with_past_model":
            continue  # has no k and v of the cross attention
        for got, want in zip(found.layers, truth.layers, strict=True):
            kept = [f"{block.norm}." for block in want.blocks if block.placement == "post"]
            wanted = sum(
                parameter.numel()
                for name, parameter in model.get_submodule(want.path).named_parameters()
                if "relative_attention_bias" not in name and not any(map(name.startswith, kept))
            )
            held = sum(block.parameters for block in got.blocks)
            assert held == wanted, f"{file.stem} layer {got.index}"


@pytest.mark.parametrize("entry", LISTED)
def test_caches(entry: Entry) -> None:
    for file, found, _ in _pairs(entry):
        for number, got in enumerate(found.layers):
            names = {
                value.name
                for block in got.blocks
                for cache in block.caches
                for value in (*cache.inputs, *cache.outputs)
            }
            graph = found.graph
            given = {v.name for v in (*graph.inputs, *graph.outputs) if _slot(v.name) == number}
            assert names == given, f"{file.stem} layer {number}"
            for block in got.blocks:
                kinds = {cache.kind for cache in block.caches}
                assert kinds <= {"cross" if block.kind == "cross_attention" else "self"}, block.id


def _slot(name: str | None) -> int:
    match = SLOT.match(name or "")
    return int(match[2]) if match else -1
