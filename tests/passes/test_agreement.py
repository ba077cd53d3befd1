"""Every pass gives what torch gives, whatever the family, the exporter and the optimizer.

The fast suite takes optimum's main export of the families that must work; `-m matrix` takes all
families, dynamo's exports, and what ONNX Runtime and OnnxSlim make of the files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.errors import EditError
from tests.passes.agreement import TOLERANCE, Job, Subject
from tools.zoo import Entry, NotExportableError, entries

# Two FFNs in a layer, or layers in stages of several stacks: the oracle does not know one from another.
NOT_TOLD_APART = {"wav2vec2_conformer", "swin", "segformer"}
MIXED = 2  # recipes of several passes a stack
DIALECTS = ("exported", "ort-extended", "ort-all", "fused", "onnxslim")
# Why a pass may leave alone what torch could change: the file does not hold it.
TIED = (
    "holds a subgraph and cannot run twice",  # DeBERTa chooses position tables by an If
    "puts out other axes first",  # SqueezeBERT's channels come first, but in the output
)
FROM_CACHE = {"it has no bias of k", "it has no bias of v"}  # cross-attention, once its keys are cached


def cases() -> Iterator[object]:
    """Each file of each export; beyond the fast suite marked as the matrix."""
    fast = {entry.id for entry in entries(fast=True) if entry.family.listed}
    for entry in entries():
        if (
            not entry.main
            or entry.exporter not in {"optimum", "dynamo"}
            or entry.family.name in NOT_TOLD_APART
        ):
            continue
        for dialect in DIALECTS:
            marks = () if entry.id in fast and dialect == "exported" else (pytest.mark.matrix,)
            for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files):
                yield pytest.param(entry, file, dialect, marks=marks, id=f"{entry.id}-{file}-{dialect}")


def subject(entry: Entry, stem: str, dialect: str) -> Subject:
    """The file, or a skip where there is none."""
    try:
        file = next((file for file in entry.files() if file.stem == stem), None)
        if file is not None:
            return Subject.of(entry, entry.dialect(file, dialect))
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    pytest.skip(f"this export has no {stem}")


@pytest.mark.parametrize(("entry", "file", "dialect"), list(cases()))
def test_passes_agree_with_torch(entry: Entry, file: str, dialect: str, tmp_path: Path) -> None:
    given = subject(entry, file, dialect)
    wrong = []
    for stack in entry.stacks(file):
        jobs = given.jobs(stack, seed=zlib.crc32(f"{entry.id} {file} {stack.name}".encode()))
        for job in (*jobs.every(), *(job for _ in range(MIXED) for job in jobs.mixed())):
            wrong += [f"{job.name}: {problem}" for problem in problems(given, job, tmp_path, dialect)]
    assert not wrong, "\n".join(wrong)


def problems(given: Subject, job: Job, folder: Path, dialect: str) -> Iterator[str]:
    try:
        found = given.compare(job, folder)
    except EditError as error:
        if not any(text in str(error) for text in TIED):
            yield str(error)
        return
    if not found.worst <= TOLERANCE:
        yield f"off by {found.worst:.2g}, having moved the output by {found.moved:.2g}"
    if dialect == "exported":
        yield from (reason for reason in found.skipped if not declines_rightly(given.stem, reason))


def declines_rightly(stem: str, reason: str) -> bool:
    with_past = stem in {"decoder_with_past_model", "decoder_model_merged"}
    return reason in FROM_CACHE and with_past
