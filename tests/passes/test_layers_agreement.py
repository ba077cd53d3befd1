"""Layers that are merged, or run side by side, give what torch gives, in families and dialects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import graphprune as gp
from tests.passes.agreement import TOLERANCE, Job, Site, sites
from tests.passes.test_agreement import subject
from tools.zoo import Entry, entries

FAST = ("bert", "llama")
MORE = (
    "gpt2",
    "distilbert",
    "opt",
    "qwen3",
    "phi3",
    "gptj",
    "gemma2",
    "t5",
    "bart",
    "whisper",
    "vit",
    "clip",
    "esm",
)
DIALECTS = ("exported", "ort-extended", "ort-all", "fused", "onnxslim")


def cases() -> Iterator[object]:
    for name in (*FAST, *MORE):
        for entry in entries(name):
            if not entry.main or entry.exporter not in {"optimum", "dynamo"}:
                continue
            for dialect in DIALECTS:
                fast = name in FAST and dialect == "exported" and entry.exporter == "optimum"
                marks = () if fast else (pytest.mark.matrix,)
                for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files):
                    yield pytest.param(entry, file, dialect, marks=marks, id=f"{entry.id}-{file}-{dialect}")


def jobs(name: str, layers: list[list[Site]]) -> Iterator[Job]:
    """What can be done to the first layers of a stack."""
    attentions = [site.truth.kind for site in layers[0] if "attention" in site.kinds]
    attentions += [site.truth.kind for site in layers[0] if site.truth.kind == "cross_attention"]
    kinds = ["attention" if kind == "parallel" else kind for kind in attentions]
    gone = frozenset((layer, kind) for layer in (1, 2) for kind in kinds)
    step = {"merge_layers": {"layers": f"{name}.1-2"}}
    yield Job("merge 1-2 into 0", (step,), (("merge", (name, (1, 2), 0), {}),), gone)
    step = {"merge_layers": {"layers": f"{name}.1", "into": f"{name}.2"}}
    gone = frozenset((1, kind) for kind in kinds)
    yield Job("merge 1 into 2", (step,), (("merge", (name, (1,), 2), {}),), gone)
    if all(site.truth.placement in {"pre", "sandwich"} for layer in layers for site in layer):
        step = {"parallelize": f"{name}.1-2"}
        yield Job("1 beside 2", (step,), (("beside", (name, 1, 2), {}),))
    if len(layers[0]) > 1 and all(site.truth.placement in {"pre", "sandwich"} for site in layers[0]):
        step = {"parallelize": {"layers": f"{name}.0", "what": "blocks"}}
        yield Job("blocks of 0", (step,), (("beside", (name, 0), {}),))


@pytest.mark.parametrize(("entry", "file", "dialect"), list(cases()))
def test_layers_agree_with_torch(entry: Entry, file: str, dialect: str, tmp_path: Path) -> None:
    given = subject(entry, file, dialect)
    architecture = gp.inspect(given.bundle)[0].architecture
    wrong: list[str] = []
    for stack in entry.stacks(file):
        for job in jobs(stack.name, sites(architecture, stack)):
            found = given.compare(job, tmp_path)
            wrong += [f"{job.name}: {reason}" for reason in found.skipped]
            if not found.worst <= TOLERANCE:
                wrong.append(f"{job.name}: off by {found.worst:.2g}, moved by {found.moved:.2g}")
    assert not wrong, "\n".join(wrong)
