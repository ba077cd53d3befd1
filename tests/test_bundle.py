"""Loading and saving bundles: what comes back is what was there, and nothing else is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune import storage, weights
from graphprune.bundle import ModelFile, load
from graphprune.errors import CheckError, LoadError, SaveError
from tests import small


def outputs(path: Path) -> np.ndarray[Any, Any]:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    result: np.ndarray[Any, Any] = ort.InferenceSession(path).run(None, {"ids": ids})[0]
    return result


def locations(path: Path) -> set[str]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}


def test_a_file_comes_back_equal(tmp_path: Path) -> None:
    source = small.write(tmp_path / "m.onnx")
    out = load(source).save(tmp_path / "out" / "n.onnx")
    assert np.array_equal(outputs(out), outputs(source))
    assert small.names(out.parent) == {"n.onnx"}


@pytest.mark.parametrize(
    ("external", "where"), [("auto", {"n.onnx_data"}), ("always", {"n.onnx_data"}), ("never", set())]
)
def test_external_weights_go_where_they_are_asked_to(
    tmp_path: Path, external: storage.External, where: set[str]
) -> None:
    source = small.write(tmp_path / "in" / "m.onnx", external=True)
    bundle = load(source)
    out = bundle.save(tmp_path / "out" / "n.onnx", external=external)
    assert locations(out) == where
    assert small.names(out.parent) == {"n.onnx"} | where
    assert np.array_equal(outputs(out), outputs(source))
    assert all(
        isinstance(v.const_value, ir.ExternalTensor)
        for v in bundle.files[0].model.graph.initializers.values()
    )


def test_weights_beyond_one_message_go_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "INLINE_LIMIT", 1000)
    bundle = load(small.write(tmp_path / "m.onnx"))
    assert locations(bundle.save(tmp_path / "out.onnx")) == {"out.onnx_data"}
    with pytest.raises(SaveError, match="put them outside"):
        bundle.save(tmp_path / "never.onnx", external="never")


def test_loading_leaves_weights_on_the_disk(tmp_path: Path) -> None:
    model = load(small.write(tmp_path / "m.onnx", external=True)).files[0].model
    tensors = [v.const_value for v in model.graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) and t.raw is None for t in tensors)
    assert weights.weight_bytes(model) == 704 + 2 * 1024
    assert all(isinstance(t, ir.ExternalTensor) and t.raw is None for t in tensors)


def test_shared_bytes_are_written_once(tmp_path: Path) -> None:
    source = small.write(tmp_path / "in" / "m.onnx", external=True)
    model = onnx.load(source, load_external_data=False)
    model.graph.initializer[2].external_data[1].value = model.graph.initializer[1].external_data[1].value
    source.write_bytes(model.SerializeToString())
    out = load(source).save(tmp_path / "out" / "m.onnx")
    assert (tmp_path / "out" / "m.onnx_data").stat().st_size == 704 + 1024
    assert np.array_equal(outputs(out), outputs(source))


def test_symlinked_and_hard_linked_weights(tmp_path: Path) -> None:
    """As in the Hugging Face cache: names that link to blobs in another folder."""
    real = small.write(tmp_path / "blobs" / "m.onnx", external=True)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to("../../blobs/m.onnx")
    (snapshot / "weights.bin").symlink_to("../../blobs/weights.bin")
    os.link(real.parent / "weights.bin", tmp_path / "another name")
    out = load(snapshot).save(tmp_path / "out")
    assert small.names(out) == {"model.onnx", "model.onnx_data"}
    assert not any(path.is_symlink() for path in out.iterdir())
    assert np.array_equal(outputs(out / "model.onnx"), outputs(real))


def test_a_folder_takes_what_belongs_along(tmp_path: Path) -> None:
    bundle = load(small.write_folder(tmp_path / "in"))
    out = bundle.save(tmp_path / "out")
    expected = {"model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert small.names(out) == expected
    assert (out / "config.json").read_text() == (tmp_path / "in" / "config.json").read_text()


def test_a_changed_config_is_written(tmp_path: Path) -> None:
    bundle = load(small.write_folder(tmp_path / "in")).clone()
    bundle.configs["config.json"]["num_hidden_layers"] = 1
    out = bundle.save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == {"num_hidden_layers": 1, "model_type": "small"}


def test_models_in_onnx_subfolder(tmp_path: Path) -> None:
    small.write(tmp_path / "in" / "onnx" / "encoder_model.onnx")
    small.write(tmp_path / "in" / "onnx" / "decoder_model.onnx")
    bundle = load(tmp_path / "in")
    assert [file.name for file in bundle.files] == ["onnx/decoder_model.onnx", "onnx/encoder_model.onnx"]
    assert small.names(bundle.save(tmp_path / "out")) == {
        "onnx/decoder_model.onnx",
        "onnx/encoder_model.onnx",
    }


def test_a_clone_changes_alone_and_shares_weights(tmp_path: Path) -> None:
    bundle = load(small.write(tmp_path / "m.onnx", external=True))
    clone = bundle.clone()
    clone.files[0].model.graph.node("join_0").name = "renamed"
    assert {n.name for n in bundle.files[0].model.graph} == {"embed", "up_0", "join_0", "up_1", "join_1"}
    before, after = (b.files[0].model.graph.initializers["w0"].const_value for b in (bundle, clone))
    assert before is after


def test_provenance_and_its_history(tmp_path: Path) -> None:
    source = small.write(tmp_path / "m.onnx", external=True)
    first = load(source).save(tmp_path / "1.onnx", provenance={"recipe": "one"})
    second = load(first).save(tmp_path / "2.onnx", provenance={"recipe": "two"})
    props = load(second).files[0].model.metadata_props
    assert props["exporter"] == "by hand"
    assert props["graphprune.recipe"] == "two"
    assert props["graphprune.source_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert list(json.loads(props["graphprune.source_data"])) == ["1.onnx_data"]
    (earlier,) = json.loads(props["graphprune.history"])
    assert earlier["recipe"] == "one"
    assert earlier["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    third = load(second).save(tmp_path / "3.onnx")
    assert "graphprune.recipe" not in load(third).files[0].model.metadata_props


def test_the_fingerprint_sees_other_weights_of_the_same_size(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(6 << 20)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data[::-1])
    (tmp_path / "c").write_bytes(data)
    a, b, c = (weights.sampled_sha256(tmp_path / name) for name in "abc")
    assert a == c != b


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link"])
def test_a_source_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    source = small.write(tmp_path / "m.onnx")
    before = source.read_bytes()
    target = source if kind == "itself" else tmp_path / "link.onnx"
    if kind == "symlink":
        target.symlink_to(source)
    elif kind == "hard link":
        os.link(source, target)
    with pytest.raises(SaveError, match="never overwritten"):
        load(source).save(target, overwrite=True)
    assert source.read_bytes() == before


def test_a_source_folder_and_its_data_are_never_overwritten(tmp_path: Path) -> None:
    folder = small.write_folder(tmp_path / "in")
    os.link(folder / "weights.bin", folder / "n.onnx_data")
    (tmp_path / "link").symlink_to(folder)
    for target in (folder, tmp_path, tmp_path / "link"):
        with pytest.raises(SaveError, match="never overwritten"):
            load(folder).save(target, overwrite=True)
    with pytest.raises(SaveError, match="never overwritten"):
        load(folder / "model.onnx").save(folder / "n.onnx", overwrite=True)


def test_targets_of_the_wrong_kind(tmp_path: Path) -> None:
    file, folder = small.write(tmp_path / "m.onnx"), small.write_folder(tmp_path / "in")
    for source, target in ((file, tmp_path / "folder"), (folder, tmp_path / "n.onnx")):
        with pytest.raises(SaveError, match="must be a"):
            load(source).save(target)


def test_an_existing_target_stays_unless_allowed(tmp_path: Path) -> None:
    file = load(small.write(tmp_path / "m.onnx"))
    folder = load(small.write_folder(tmp_path / "in"))
    for bundle, target in ((file, tmp_path / "n.onnx"), (folder, tmp_path / "out")):
        bundle.save(target)
        with pytest.raises(SaveError, match="exists"):
            bundle.save(target)
        bundle.save(target, overwrite=True)
    assert small.names(tmp_path / "out") == {
        "model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "1_Pooling/config.json",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["n.onnx", "out"])
def test_a_full_disk_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    bundle = (
        load(small.write(tmp_path / "in" / "m.onnx"))
        if target == "n.onnx"
        else load(small.write_folder(tmp_path / "in"))
    )
    kept = bundle.save(tmp_path / "target" / target)
    before = {path: path.stat().st_mtime_ns for path in kept.parent.rglob("*")}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="No space left on device"):
        bundle.save(kept, overwrite=True)
    with pytest.raises(SaveError, match="No space left on device"):
        bundle.save(tmp_path / "target" / f"other_{target}")
    assert {path: path.stat().st_mtime_ns for path in kept.parent.rglob("*")} == before


def test_a_failed_check_leaves_nothing(tmp_path: Path) -> None:
    def refuse(file: ModelFile, path: Path) -> None:
        assert outputs(path).shape == (2, 3, small.WIDTH)
        raise CheckError(f"{file.name} is refused")

    with pytest.raises(CheckError, match=r"m\.onnx is refused"):
        load(small.write(tmp_path / "m.onnx")).save(tmp_path / "out" / "n.onnx", check=refuse)
    assert not small.names(tmp_path / "out")


KILLED = """
import os, sys
from graphprune.bundle import load
load(sys.argv[1]).save(sys.argv[2], overwrite=True, check=lambda file, path: os._exit(9))
"""


@pytest.mark.parametrize("old", [True, False])
def test_a_killed_save_leaves_the_old_or_nothing(tmp_path: Path, old: bool) -> None:
    source, target = small.write_folder(tmp_path / "in"), tmp_path / "out"
    if old:
        small.write(target / "model.onnx")
    before = (target / "model.onnx").read_bytes() if old else None
    killed = subprocess.run([sys.executable, "-c", KILLED, source, target], check=False)
    assert killed.returncode == 9
    assert small.names(target) == ({"model.onnx"} if old else set())
    assert not old or (target / "model.onnx").read_bytes() == before


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        load(tmp_path / "no.onnx")
    with pytest.raises(LoadError, match=r"holds no \.onnx file"):
        load(tmp_path)
    folder = small.write_folder(tmp_path / "in")
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json cannot be read as JSON"):
        load(folder)
