from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from graphprune import profiler
from graphprune.compiled import Regions
from graphprune.errors import LoadError, RunError
from graphprune.kernels import read_runs
from graphprune.play import Source
from graphprune.profiled import Profiled
from graphprune.profiler import profile
from graphprune.scopes import Scope
from graphprune.session import Session
from graphprune.settings import Settings
from graphprune.tagging import Trail
from tests import tiny


def cut_events(path: Path, runs: int) -> None:
    """Take the last runs off a profile."""
    events = json.loads(path.read_text())
    ends = [i for i, one in enumerate(events) if one["name"] == "model_run"]
    path.write_text(json.dumps(events[: ends[-runs]]))


def temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go to `folder`, to see what is left of them."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_kernels_that_are_only_started_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session("m.onnx", None, (), (), providers=("cuda", "cpu"))
    one = Profiled(session, None, Trail.of(Scope(())), {}, {}, Regions(), ())
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    profiler._warn_of_launches([one])
    assert not caplog.records
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING")
    profiler._warn_of_launches([one])
    assert "CUDA_LAUNCH_BLOCKING=1" in caplog.text


def test_a_session_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx"), temporary(tmp_path / "t", monkeypatch)
    calls: list[int] = []

    def dying(self: Session, feeds: object) -> object:
        def once() -> object:
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("out of memory")
            return run()

        run = original(self, feeds)  # type: ignore[arg-type]
        return once

    original = Session.prepared
    monkeypatch.setattr(Session, "prepared", dying)
    with pytest.raises(RunError, match=r"^m\.onnx: out of memory"):
        profile(path)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text(""), "empty or cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cut off"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: cut_events(path, 2), "no whole round"),
    ],
)
def test_a_spoiled_profile(
    spoil: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx"), temporary(tmp_path / "t", monkeypatch)

    def finish(self: Profiled) -> object:
        written = Path(self.session.runtime.end_profiling())
        spoil(written)  # type: ignore[operator]
        return read_runs(written)

    monkeypatch.setattr(Profiled, "finish", finish)
    with pytest.raises(RunError, match=message):
        profile(path, rounds=1)
    assert not list(folder.iterdir())


FULL = """
import resource, signal, sys, tempfile
from graphprune.errors import RunError
from graphprune.profiler import profile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tempfile.tempdir = sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    profile(sys.argv[1])
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize(("limit", "message"), [(100, "cannot write temporary files"), (20_000, "cut off")])
def test_a_full_disk(limit: int, message: str, tmp_path: Path) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx", layers=1), tmp_path / "t"
    folder.mkdir()
    arguments = [sys.executable, "-c", FULL, path, folder, str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert message in done.stdout and "room" in done.stdout
    assert not list(folder.iterdir())


def test_no_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="cannot write temporary files"):
        profile(path)


def test_errors_of_a_run_name_nodes_as_the_file_does(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 4, 7), np.float32))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    onnx.save(model, path)
    with pytest.raises(RunError, match=r"0/[qkv]_MatMul") as error:
        profile(path, Source.of_npz(tmp_path / "in.npz"), settings=Settings(threads=1, level="disabled"))
    assert "gp." not in str(error.value)


def test_what_onnx_runtime_refuses(tmp_path: Path) -> None:
    model = tiny.model()
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="NoSuchOp"):
        profile(tmp_path / "m.onnx")
    model.graph.node[0].op_type = "RelativePositionBias"  # has no kernel on a CPU
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="0/q_MatMul") as error:
        profile(tmp_path / "m.onnx")
    assert "gp." not in str(error.value)
