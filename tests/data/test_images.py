"""Images in folders: their labels, and pixels as transformers' own image processors make them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.data.dataset import read_data
from graphprune.data.pixels import read_processor
from graphprune.errors import GraphpruneError, LoadError, MissingExtraError
from tests.data import bundles

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def picture(path: Path, size: tuple[int, int] = (9, 6), seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def vision(path: Path, axes: list[int | str], processor: Mapping[str, Any] | None = None) -> Path:
    """A bundle whose model gives back the images that it takes."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("pixel_values", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["y"])], "g", *([v] for v in values)
    )
    path.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        path / "model.onnx",
    )
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


CROP = {"height": 8, "width": 8}
PROCESSORS = {
    "vit": ("ViTImageProcessor", {"size": {"height": 8, "width": 8}}, 8),
    "vit, bicubic": ("ViTImageProcessor", {"size": {"height": 8, "width": 10}, "resample": 3}, (8, 10)),
    "vit, no mean": ("ViTImageProcessor", {"size": {"height": 8, "width": 8}, "do_normalize": False}, 8),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 8}, "crop_size": {"height": 6, "width": 6}}, 6),
    "clip, larger": ("CLIPImageProcessor", {"size": {"shortest_edge": 6}, "crop_size": CROP}, 8),
    "deit": ("DeiTImageProcessor", {"size": {"height": 10, "width": 10}, "crop_size": CROP}, 8),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 14}, "crop_pct": 0.875}, 14),
    "convnext, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, 384),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(9, 6), (20, 31)])
@pytest.mark.parametrize("open_axes", [True, False])
def test_as_transformers_does_it(tmp_path: Path, name: str, size: tuple[int, int], open_axes: bool) -> None:
    import transformers

    kind, options, wanted = PROCESSORS[name]
    sides = [wanted, wanted] if isinstance(wanted, int) else list(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own
        processor = getattr(transformers, kind)(**options)
        axes = ["b", 3, "h", "w"] if open_axes else ["b", 3, *sides]
        model = vision(tmp_path / "model", axes, processor.to_dict())
        files = [picture(tmp_path / "d" / f"{number}.png", size, number) for number in range(3)]
        expected = processor([Image.open(file) for file in files], return_tensors="np")["pixel_values"]
    (batch,) = read_data(tmp_path / "d").batches(model)
    found = batch.source.arrays["pixel_values"]
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("axes", "shape"), [(["b", 1, 4, 5], (1, 4, 5)), (["b", 4, 5, 3], (4, 5, 3)), ([2, 3, 4, 4], (3, 4, 4))]
)
def test_without_a_processor(
    tmp_path: Path, axes: list[int | str], shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    model = vision(tmp_path / "model", axes)
    file = picture(tmp_path / "d" / "a.bmp")
    array = read_processor(model).array(file)
    height, width = (shape[1:], shape[:2])[shape[-1] == 3]
    resized = Image.open(file).convert("L" if shape[0] == 1 else "RGB").resize((width, height), 2)
    pixels = np.asarray(resized, np.float64).reshape(height, width, -1) / 255 * 2 - 1
    expected = pixels if shape[-1] == 3 else pixels.transpose(2, 0, 1)
    assert array.shape == shape and array == pytest.approx(expected, abs=1e-6)
    assert f"images are made {width} × {height} pixels, from −1 to 1" in caplog.text
    (batch,) = read_data(tmp_path / "d").batches(model)
    assert batch.rows.tolist() == [0] * (2 if axes[0] == 2 else 1)


def test_labels_by_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("owl/1.png", "cat/2.JPG", "cat/deep/3.webp", "owl/4.bmp")):
        picture(tmp_path / "d" / name, seed=number)
    (tmp_path / "d" / "notes.txt").write_text("no image")
    data = read_data(tmp_path / "d", metric="accuracy")
    assert data.labels is not None and data.labels.tolist() == ["cat", "cat", "owl", "owl"]
    plain = bundles.write(tmp_path / "plain", "images")
    numbers = data.batches(plain)[0].labels
    assert numbers is not None and numbers.tolist() == [0, 0, 1, 1]
    assert data.take(1).batches(plain)[0].labels is not None
    told = bundles.write(tmp_path / "told", "images", config={"label2id": {"owl": 0, "cat": 2}})
    numbers = data.batches(told)[0].labels
    assert numbers is not None and numbers.tolist() == [2, 2, 0, 0]


def test_folders_that_are_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "2"):
        picture(tmp_path / name / "a.png")
    labels = read_data(tmp_path).labels
    assert labels is not None and labels.tolist() == [10, 2, 9]


@pytest.mark.parametrize("header", ["", "file,kind\n"])
def test_labels_by_table(tmp_path: Path, header: str) -> None:
    for name in ("a.png", "b/c.png"):
        picture(tmp_path / name)
    (tmp_path / "labels.csv").write_text(f"{header}b/c.png,1\na.png,2\n")
    labels = read_data(tmp_path).labels
    assert labels is not None and labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("files", "table", "told"),
    [
        ([], None, "holds neither images"),
        (["a/b.png", "c.png"], None, "c.png has no label: put it into a sub-folder"),
        (["a.png"], "a.png,1\nb.png,2\n", "line 2: there is no image b.png"),
        (["a.png", "b.png"], "a.png,1\n", "b.png has no label in labels.csv"),
        (["a.png"], "", "labels.csv is empty"),
    ],
)
def test_what_is_declined(tmp_path: Path, files: list[str], table: str | None, told: str) -> None:
    for name in files:
        picture(tmp_path / name)
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(LoadError, match=told):
        read_data(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_images_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = picture(tmp_path / "a.png", (40, 40))
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(LoadError, match=r"a\.png cannot be read as an image"):
        read_data(tmp_path)


def test_a_cut_jpeg_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = picture(tmp_path / "d" / "a.jpg", (80, 80))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(LoadError, match=r"a\.jpg cannot be read as an image"):
        read_data(tmp_path / "d").batches(vision(tmp_path / "model", ["b", 3, 8, 8]))[0]


@pytest.mark.parametrize(
    ("axes", "told"),
    [(["b", 4, 8, 8], "takes 4 channels"), (["b", 8, 8], "takes no images: none of its inputs")],
)
def test_models_that_take_no_images(tmp_path: Path, axes: list[int | str], told: str) -> None:
    picture(tmp_path / "d" / "a.png")
    with pytest.raises(GraphpruneError, match=told):
        read_data(tmp_path / "d").batches(vision(tmp_path / "model", axes))


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"graphprune\[images\]"):
        read_data(tmp_path)
