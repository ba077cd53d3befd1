from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import RunError
from graphprune.footprint import EndedError, disk_bytes, usage
from graphprune.play import Source
from graphprune.settings import Settings
from graphprune.timing import bench
from tests import small, tiny
from tools.zoo import entries

SIDE = 4096
MB = SIDE * SIDE * 4 / 1e6  # 67.1

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux only")


def products(path: Path, *, external: bool = False) -> Path:
    """x [batch, 4096] · w [4096, 4096], then as many columns again as an outer product: 67 MB each."""
    weights = numpy_helper.from_array(np.ones((SIDE, SIDE), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", SIDE]) for n in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "h"], ["outer"]),
        helper.make_node("MatMul", ["h", "outer"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location="weights")
    return path


def script(path: Path, line: str) -> Path:
    """A program that stands in for Python."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_bytes_on_the_disk_are_those_of_the_model_and_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "other.onnx_data").write_bytes(b"not of this model")
    path = small.write(tmp_path / "model.onnx", external=True)
    files = [one for one in tmp_path.iterdir() if one.name != "other.onnx_data"]
    assert len(files) == 2
    assert disk_bytes(path) == sum(one.stat().st_size for one in files)
    (tmp_path / "link.onnx").symlink_to(path)
    assert disk_bytes(tmp_path / "link.onnx") == disk_bytes(path)


@linux
@pytest.mark.parametrize("external", [False, True])
def test_memory_is_that_of_weights_and_of_what_one_pass_makes(external: bool, tmp_path: Path) -> None:
    path = products(tmp_path / "model.onnx", external=external)
    found = usage(path, Source(batch=2), Settings(threads=1))
    assert found.load_ms > 0
    assert found.loaded_mb is not None and found.peak_mb is not None
    assert MB - 2 <= found.loaded_mb <= 3.3 * MB
    assert found.peak_mb >= found.loaded_mb
    assert 2 * MB - 4 <= found.peak_mb <= 4.3 * MB


@linux
def test_a_small_model_takes_hardly_more_than_nothing(tmp_path: Path) -> None:
    """Neither what the runtime itself takes nor what reading the model took counts."""
    found = usage(tiny.save(tmp_path / "model.onnx"), Source(), Settings(threads=1))
    assert found.peak_mb is not None and 0 < found.peak_mb < 20


def test_arrays_settings_and_steps_reach_the_other_process(tmp_path: Path) -> None:
    source = Source({"x": np.ones((2, 3, 5), np.float32)})  # tiny takes 8 columns
    with pytest.raises(RunError, match=r"model.onnx: "):
        usage(tiny.save(tmp_path / "model.onnx"), source, Settings(threads=1))
    settings = Settings(provider_options={"tensorrt": {"a": "b"}}, providers=("tensorrt", "cpu"))
    with pytest.raises(RunError, match="tensorrt"):
        usage(tmp_path / "model.onnx", Source(), settings)
    folder = next(entry for entry in entries("t5") if entry.task.endswith("with-past")).folder()
    assert usage(folder, Source(sequence=4), Settings(threads=1), steps=5).load_ms > 0


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for Python")
def test_a_process_that_is_ended_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "fails", "exit 3")))
    with pytest.raises(RunError, match=r"model.onnx: the process that measured it ended with exit code 3"):
        usage(path, Source(), Settings())
    found = bench([path], rounds=2)
    (model,), (timing,) = found.models, found.timings
    assert (model.load_ms, model.loaded_mb, timing.peak_mb) == (None, None, None)
    assert len(found.notes) == 1 and "memory was not measured" in found.notes[0]
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "killed", "kill -KILL $$")))
    with pytest.raises(EndedError, match="ended by SIGKILL, as it is when memory runs out"):
        usage(path, Source(), Settings())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(RunError, match="in a process of its own: No such file"):
        usage(path, Source(), Settings())


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for Python")
def test_a_size_at_which_the_system_ends_the_process_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the sizes before it are not lost, and the process that asks lives on."""
    path = tiny.save(tmp_path / "model.onnx")
    killed = """for last; do :; done; grep -q '"batch": 9' "$last/request.json" && kill -KILL $$"""
    line = f'{killed}; exec {shlex.quote(sys.executable)} "$@"'
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", line)))
    found = bench([path], [Source(batch=2), Source(batch=9)], rounds=2)
    assert [one.batch for one in found.timings] == [2]
    (left_out,) = found.left_out
    assert left_out.batch == 9 and "SIGKILL" in left_out.reason
    (model,) = found.models
    assert model.load_ms is not None and model.load_ms > 0 and model.spread is not None
    assert (found.timings[0].peak_mb is None) == (model.loaded_mb is None) == (sys.platform != "linux")
    with pytest.raises(RunError, match="cannot be timed at batch 9"):
        bench([path], Source(batch=9), rounds=2)
