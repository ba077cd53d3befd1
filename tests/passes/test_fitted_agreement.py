"""Passes that write fitted values give what torch gives with the same values, in families and dialects."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from graphprune.surgery import ffn_neurons, output_projections, place_for, post_norm
from tests.passes.agreement import TOLERANCE, Job, Site, Subject, sites
from tests.passes.test_agreement import subject
from tools.zoo import Entry, entries

# One family for each way in which blocks are built, the fast ones first.
FAST = ("bert", "gpt2", "llama")
MORE = (
    "t5", "albert", "gptj", "distilbert", "mpnet", "opt", "phi3", "bloom", "gpt_neox", "falcon", "bart",
    "whisper", "vit", "clip", "esm", "modernbert", "qwen3", "gemma2", "electra", "deberta", "marian",
)  # fmt: skip
DIALECTS = ("exported", "ort-extended", "ort-all", "fused", "onnxslim", "fp16")
HALF = 3e-2  # what is off after some layers whose numbers have 11 bits


def cases() -> Iterator[object]:
    known = {entry.family.name for entry in entries(fast=True)}
    for name in (*FAST, *(name for name in MORE if name in known)):
        for entry in entries(name):
            if not entry.main or entry.exporter not in {"optimum", "dynamo"}:
                continue
            for dialect in (
                DIALECTS if entry.family.modality == "text" else DIALECTS[:-1]
            ):  # torch takes no halves
                fast = name in FAST and dialect == "exported" and entry.exporter == "optimum"
                marks = () if fast else (pytest.mark.matrix,)
                for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files):
                    yield pytest.param(entry, file, dialect, marks=marks, id=f"{entry.id}-{file}-{dialect}")


class Values:
    """Values for one block, as small random numbers, in a file."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, np.random.default_rng(seed)
        self.arrays: dict[str, np.ndarray] = {}

    def draw(self, key: str, *shape: int, size: float = 0.3) -> np.ndarray:
        self.arrays[key] = (self.random.standard_normal(shape) * size).astype(np.float32)
        np.savez(self.path, **self.arrays)
        return self.arrays[key]


def jobs(site: Site, values: Values) -> Iterator[Job]:
    """What can be done to one block by fitted values."""
    block, at, kind = site.found, site.at, site.truth.kind
    gone = frozenset((site.layer, one) for one in site.kinds if "attention" in one)
    place = place_for(block)
    one_norm = sum(norm.role == "pre" for norm in block.norms) == 1 or site.truth.placement == "post"
    if not isinstance(place, str) and one_norm:
        width = place.width
        constant = values.draw(f"{block.id}/constant", width)
        linear = values.draw(f"{block.id}/linear", width, width)
        options = {"blocks": block.id, "values": str(values.path)}
        change = ("replace", (*at, kind, linear, constant), {})
        yield Job(f"linear {block.id}", ({"replace_linear": options},), (change,), gone)
        change = ("replace", (*at, kind, None, constant), {})
        yield Job(f"mean {block.id}", ({"replace_mean": options},), (change,), gone)
    norm = post_norm(block)
    if not isinstance(norm, str):
        width = norm.gamma.shape[-1]
        scale = values.draw(f"{block.id}/scale", width)
        shift = values.draw(f"{block.id}/shift", width)
        change = ("refit_norm", (*at, kind, scale, shift), {})
        yield Job(
            f"norm {block.id}", ({"refit": {"values": str(values.path), "blocks": block.id}},), (change,)
        )
        drop = {"attention": "drop_attention", "ffn": "drop_ffn"}.get(kind)
        if drop and block.droppable:
            changes = (change, ("drop", (*at, kind), {}))
            steps = ({drop: block.id}, {"refit": {"values": str(values.path), "blocks": block.id}})
            yield Job(f"drop, norm {block.id}", steps, changes, gone)
            yield Job(f"norm, drop {block.id}", steps[::-1], changes, gone)


def outputs(site: Site, values: Values) -> Iterator[Job]:
    """The refit of a block's output projections."""
    block, found = site.found, output_projections(site.found)
    if not isinstance(found, str):
        drawn = {
            branch.kind: values.draw(f"{block.id}/weight.{number}", part.inputs, found.width)
            for number, (branch, part) in enumerate(zip(block.branches, found.parts, strict=True))
        }
        weights = [drawn[kind] for kind in site.kinds]
        bias = values.draw(f"{block.id}/bias", found.width)
        change = ("refit_output", (*site.at, site.truth.kind, weights, bias), {})
        yield Job(
            f"output {block.id}", ({"refit": {"values": str(values.path), "blocks": block.id}},), (change,)
        )


def narrower(site: Site, values: Values) -> Iterator[Job]:
    """Some of an FFN's neurons, with another output projection: the others count nothing in torch."""
    block, found = site.found, ffn_neurons(site.found)
    if not isinstance(found, str):
        kept = np.sort(values.random.permutation(found.count)[: found.count // 3])
        values.arrays[f"{block.id}/neurons"] = kept
        weight = values.draw(f"{block.id}/neurons.weight", len(kept), found.down.width)
        bias = values.draw(f"{block.id}/bias", found.down.width)
        whole = np.zeros((found.count, found.down.width), np.float32)
        whole[kept] = weight
        options = {"values": str(values.path), "blocks": block.id}
        change = ("refit_output", (*site.at, site.truth.kind, [whole], bias), {})
        yield Job(f"neurons {block.id}", ({"narrow_ffn": options}, {"refit": options}), (change,))


def problems(given: Subject, job: Job, folder: Path, tolerance: float = TOLERANCE) -> Iterator[str]:
    found = given.compare(job, folder)
    if not found.worst <= tolerance:
        yield f"{job.name}: off by {found.worst:.2g}, having moved the output by {found.moved:.2g}"
    yield from (f"{job.name}: {reason}" for reason in found.skipped)


@pytest.mark.parametrize(("entry", "file", "dialect"), list(cases()))
def test_fitted_values_agree_with_torch(entry: Entry, file: str, dialect: str, tmp_path: Path) -> None:
    given = subject(entry, file, dialect)
    architecture = gp.inspect(given.bundle)[0].architecture
    wrong: list[str] = []
    for stack in entry.stacks(file):
        layers = sites(architecture, stack)
        seed = zlib.crc32(f"{entry.id} {file} {stack.name}".encode())
        layer = layers[seed % len(layers)]
        for number, site in enumerate(layer):
            one = Values(tmp_path / f"{stack.name}{number}.npz", seed)
            two = Values(tmp_path / f"{stack.name}{number}o.npz", seed)
            three = Values(tmp_path / f"{stack.name}{number}n.npz", seed)
            for job in (*jobs(site, one), *outputs(site, two), *narrower(site, three)):
                wrong += problems(given, job, tmp_path, HALF if dialect == "fp16" else TOLERANCE)
    assert not wrong, "\n".join(wrong)
