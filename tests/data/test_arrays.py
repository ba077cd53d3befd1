"""Arrays from files: rows in batches are those that were saved; what cannot be used is declined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.data.dataset import Batch, Data, read_data
from graphprune.data.judging import open_judge
from graphprune.errors import GraphpruneError
from tests.data import bundles

PIXELS = np.random.default_rng(0).standard_normal((7, 1, 4, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])
IDS = np.arange(12).reshape(4, 3)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def rows_of(data: Data, path: Path, name: str, size: int = 3) -> dict[int, np.ndarray]:
    """Every row by its number."""
    batches: list[Batch] = [*data.batches(path, size)]
    assert all(len(batch.rows) <= size and batch.source.batch == len(batch.rows) for batch in batches)
    return {
        int(row): batch.source.arrays[name][place]
        for batch in batches
        for place, row in enumerate(batch.rows)
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "images", "images")


@pytest.mark.parametrize("label", [None, "labels"])
def test_npz(tmp_path: Path, images: Path, label: str | None) -> None:
    data = read_data(save(tmp_path / "d.npz", pixel_values=PIXELS, labels=LABELS), label=label)
    assert data.examples == 7 and data.labels is not None and (data.labels == LABELS).all()
    part = data.take(4, seed=1)
    for row, array in rows_of(part, images, "pixel_values").items():
        assert (array == PIXELS[part.chosen[row]]).all()
    assert part.labels is not None and (part.labels == LABELS[part.chosen]).all()


def test_accuracy(tmp_path: Path, images: Path) -> None:
    path = save(tmp_path / "d.npz", pixel_values=PIXELS, truth=LABELS[:, None])
    data = read_data(path, label="truth", metric="accuracy")
    batches = data.batches(images, 2)
    judge = open_judge(data, batches, bundles.outputs(images, batches))
    found = (PIXELS.reshape(7, -1) @ bundles.head("images")).argmax(1)
    assert judge.dense == float((found == LABELS).mean())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=20)
def test_folders(tmp_path_factory: pytest.TempPathFactory, counts: list[int], only: bool) -> None:
    folder = tmp_path_factory.mktemp("folder")
    images = bundles.write(tmp_path_factory.mktemp("model"), "images")
    whole = np.random.default_rng(0).standard_normal((sum(counts), 1, 4, 4))
    for number, part in enumerate(np.split(whole, np.cumsum(counts)[:-1])):
        if only:
            np.save(folder / f"{number}.npy", part)
        else:
            save(folder / f"{number}.npz", pixel_values=part, label=np.full(len(part), number))
    data = read_data(folder)
    found = rows_of(data, images, "pixel_values", 2)
    assert [found[row].tolist() for row in range(sum(counts))] == whole.tolist()
    if not only:
        assert data.labels is not None
        assert data.labels.tolist() == np.repeat(range(len(counts)), counts).tolist()


def test_lengths_that_differ_from_file_to_file(tmp_path: Path) -> None:
    model = bundles.write(tmp_path / "model", "states")
    for number, length in enumerate((3, 5, 3)):
        ids = np.full((2, length), number)
        save(tmp_path / f"{number}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    batches = [*read_data(tmp_path).batches(model, 32)]
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 4, 5], [2, 3]]
    assert [(batch.source.batch, batch.source.sequence) for batch in batches] == [(4, 3), (2, 5)]


NAN = PIXELS.copy()
NAN[5, 0, 1, 1] = np.nan
SCALAR = np.float32(1)
NO_LABELS = np.where(LABELS, 1, np.nan)


@pytest.mark.parametrize(
    ("arrays", "options", "told"),
    [
        ({"pixel_values": NAN}, {}, "pixel_values is not finite in row 5"),
        ({"pixel_values": PIXELS, "labels": LABELS[:5]}, {}, "as each other: pixel_values 7, labels 5"),
        ({"pixel_values": PIXELS, "labels": LABELS}, {"label": "y"}, "no array y: name one of pixel_values"),
        ({"pixel_values": PIXELS, "labels": NO_LABELS}, {}, "the label of row 0 is not finite"),
        ({"pixel_values": PIXELS, "labels": PIXELS}, {}, "labels are float32"),
        ({"labels": LABELS}, {}, "holds nothing but labels"),
        ({"pixel_values": PIXELS[:0]}, {}, "is empty"),
        ({"pixel_values": SCALAR}, {}, "pixel_values has no axes"),
        ({"pixel_values": np.array(["a"])}, {}, "holds <U1, not numbers"),
        ({}, {}, "holds no arrays"),
        ({"pixel_values": PIXELS, "extra": LABELS}, {}, "has no input extra: it takes pixel_values"),
        ({"pixel_values": PIXELS[:, 0]}, {}, r"examples of shape \[4, 4\], and .* takes \[any, 1, 4, 4\]"),
        ({"pixel_values": PIXELS}, {"text": 0}, "has no columns of texts"),
        ({"pixel_values": PIXELS}, {"metric": "accuracy"}, "accuracy needs labels"),
    ],
)  # fmt: skip
def test_what_is_declined(
    tmp_path: Path, images: Path, arrays: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(GraphpruneError, match=told):
        read_data(path, **options).batches(images)


def test_folders_that_are_declined(tmp_path: Path) -> None:
    model = bundles.write(tmp_path / "model", "states")
    np.save(tmp_path / "a.npy", IDS)
    with pytest.raises(GraphpruneError, match=r"one input, and .* takes input_ids, attention_mask"):
        read_data(tmp_path).batches(model)
    save(tmp_path / "b.npz", input_ids=IDS)
    with pytest.raises(GraphpruneError, match="the files hold different arrays"):
        read_data(tmp_path)
    (tmp_path / "a.npy").unlink()
    save(tmp_path / "c.npz", input_ids=IDS, labels=np.arange(4))
    with pytest.raises(GraphpruneError, match="1 of 2 files have no array labels"):
        read_data(tmp_path)


@given(st.binary(max_size=200), st.sampled_from(["d.npz", "d.npy"]))
@settings(deadline=None)
def test_any_bytes_are_declined(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with pytest.raises(GraphpruneError, match=name):
        read_data(path)


def test_a_cut_file_is_declined(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", pixel_values=PIXELS).read_bytes()
    for size in (1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "d.npz").write_bytes(whole[:size])
        with pytest.raises(GraphpruneError, match="not a file of arrays"):
            read_data(tmp_path / "d.npz")
