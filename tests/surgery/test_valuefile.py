from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphprune.errors import RecipeError
from graphprune.surgery import FittedValues, fingerprint


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_arrays_of_a_block(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "v.npz",
        **{"a.0.ffn/scale": np.ones(4), "a.0.ffn/bias": np.zeros(4), "a.1.ffn/scale": np.ones(4)},
    )
    values = FittedValues.open(path)
    assert values.of("a.0.ffn") == {"scale", "bias"} and values.of("a.0") == set()
    assert values.read("a.0.ffn", "scale", [4]).dtype == np.float32
    with pytest.raises(RecipeError, match=r"v.npz: 'a.1.ffn/bias' is missing"):
        values.read("a.1.ffn", "bias", [4])


def test_only_the_file_that_was_hashed(tmp_path: Path) -> None:
    path = npz(tmp_path / "v.npz", **{"a/scale": np.ones(4)})
    before = fingerprint(path)
    FittedValues.open(path, before)
    npz(path, **{"a/scale": np.zeros(4)})
    with pytest.raises(
        RecipeError, match=f"v.npz: these are other values than the recipe was made with: {before}"
    ):
        FittedValues.open(path, before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text", b"\x80\x04."])
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"v.npz: no file of fitted values"):
        FittedValues.open(path)


def test_one_array_is_no_such_file(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(3))
    with pytest.raises(RecipeError, match="it holds one array without a name"):
        FittedValues.open(tmp_path / "v.npy")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone.npz: .*No such file"):
        FittedValues.open(tmp_path / "gone.npz")
    with pytest.raises(RecipeError, match=r"gone.npz: .*No such file"):
        fingerprint(tmp_path / "gone.npz")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_neither_folders_nor_devices_are_read(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(RecipeError, match="no file of fitted values, but a folder or a device"):
            FittedValues.open(path)
        with pytest.raises(RecipeError, match="no file of fitted values, but a folder or a device"):
            fingerprint(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = npz(tmp_path / "v.npz", **{"a/scale": np.array([{}], dtype=object)})
    with pytest.raises(RecipeError, match=r"'a/scale' cannot be read: .*allow_pickle=False"):
        FittedValues.open(path).read("a", "scale", [1])


def an_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"a/scale": np.arange(6.0), "a/bias": np.ones(2)})
    return buffer.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_refused_in_one_way(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(an_npz())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "v.npz"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(RecipeError):
        values = FittedValues.open(path)
        for key in ("scale", "bias"):
            values.read("a", key, [None])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=90))
def test_strange_arrays_are_refused_in_one_way(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "v.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/scale.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(RecipeError):
        FittedValues.open(path).read("a", "scale", [None])
