from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphprune import datafile


def external(path: Path, start: int, size: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(path, start, size, ir.DataType.UINT8, shape=ir.Shape([size]), name="")


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "one", tmp_path / "two"
    for seed, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(seed).bytes(5000))
    return paths


@pytest.mark.parametrize("step", [1, 64, 1000, 1 << 26])
def test_bytes_are_those_of_the_tensors(
    tmp_path: Path, sources: tuple[Path, Path], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datafile, "_STEP", step)
    one, two = sources
    tensors: list[ir.TensorProtocol] = [
        external(one, 10, 90),
        external(one, 100, 1900),  # follows
        external(two, 2000, 500),  # another file, though at the place that would follow
        external(two, 2400, 700),  # overlaps
        ir.tensor(np.arange(300, dtype=np.float32)),
        external(two, 3100, 1),  # would follow, but for the tensor between
        external(two, 3101, 1899),
        external(two, 0, 5000),
    ]
    size = sum(tensor.nbytes for tensor in tensors)
    datafile.write_data(tmp_path / "data", tensors, size)
    assert (tmp_path / "data").read_bytes() == b"".join(tensor.tobytes() for tensor in tensors)


def test_what_follows_in_the_source_is_copied_at_once(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    one, two = sources
    tensors = [external(one, start, 100) for start in range(0, 5000, 100)]
    joined = list(datafile._joined([*tensors, external(two, 0, 7)]))
    assert [(tensor.path, tensor.nbytes) for tensor in joined] == [(str(one), 5000), (str(two), 7)]
