"""With the cache or without: models whose caches go on pass, those that mix them up are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

import graphprune as gp
from graphprune.bundle import load
from graphprune.cachecheck import check_steps, has_cache
from graphprune.errors import CheckError
from tools.zoo import Entry, entries

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
NO_SHARED = "the shared models are not beside this repository"


def entry(name: str) -> Entry:
    return next(entries(name, fast=True))


def swapped(source: Path, target: Path, first: str, second: str) -> Path:
    """The model with the names of two of its outputs changed for each other."""
    model = onnx.load(source)
    names = {first: second, second: first}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    onnx.save(model, target)
    return target


def gaps(path: Path, source: Path) -> str:
    with pytest.raises(CheckError) as caught:
        check_steps(path, source)
    return str(caught.value)


def test_a_cache_of_another_layer_is_found(tmp_path: Path) -> None:
    source = entry("gpt2").files()[0]
    check_steps(source, source)
    broken = swapped(source, tmp_path / "broken.onnx", "present.1.key", "present.2.key")
    message = gaps(broken, source)
    assert message.startswith(
        "broken.onnx: at step 1 after a prompt of 5 tokens, the scores with the cache are "
    )
    assert message.endswith("nothing was written")


def test_what_the_source_does_as_well_is_tolerated(tmp_path: Path) -> None:
    source = entry("gpt2").files()[0]
    broken = swapped(source, tmp_path / "model.onnx", "present.1.key", "present.2.key")
    check_steps(broken, broken)


def test_both_ways_of_an_encoder_decoder_are_checked(tmp_path: Path) -> None:
    source = entry("t5").folder()
    check_steps(source, source)
    for name, number in (("decoder_model.onnx", 1), ("decoder_with_past_model.onnx", 1)):
        folder = tmp_path / name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*-*"))
        slots = (f"present.{number}.decoder.key", f"present.{number + 1}.decoder.key")
        swapped(source / name, folder / name, *slots)
        assert gaps(folder, source).startswith("decoder_with_past_model.onnx after decoder_model.onnx: ")


@pytest.mark.parametrize("dialect", ["int8", "fp16", "qdq"])
def test_what_differs_by_nature_may(dialect: str, tmp_path: Path) -> None:
    zoo = entry("gpt2")
    source = zoo.dialect(zoo.files()[0], dialect)
    gp.prune(load(source), drop_layers=[0, 2]).save(tmp_path / "pruned.onnx")
    assert (tmp_path / "pruned.onnx").exists()


@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
@pytest.mark.parametrize("name", ["genai_gqa_2l", "genai_gpt2_fused_fp32", "gpt2_past_12l"])
def test_files_of_other_makers(name: str, tmp_path: Path) -> None:
    source = SHARED / f"{name}.onnx"
    assert has_cache(load(source).files)
    gp.prune(load(source), drop_layers=[0]).save(tmp_path / "pruned.onnx")


def test_a_refused_bundle_is_not_written(tmp_path: Path) -> None:
    bundle = load(entry("t5").folder())
    seen: list[Path] = []

    def refuse(folder: Path) -> None:
        seen.extend(sorted(folder.glob("*.onnx")))
        raise CheckError("no")

    with pytest.raises(CheckError):
        bundle.save(tmp_path / "out", check_bundle=refuse)
    assert [path.name for path in seen] == [file.name for file in bundle.files]
    assert not [*tmp_path.iterdir()]
