"""From an image's file to the array that a model takes, as transformers' image processors do it.

Read from `preprocessor_config.json` are `size`, `crop_size`, `crop_pct`, `resample`, `rescale_factor`,
`image_mean` and `image_std`, with the switches before them (`do_resize` …).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import LoadError, MissingExtraError, RunError

if TYPE_CHECKING:
    import onnx_ir as ir

_PROCESSOR = "preprocessor_config.json"
# Where nothing is said: bilinear, from 0 to 1, then from −1 to 1.
_BILINEAR, _RESCALE, _MIDDLE = 2, 1 / 255, 0.5
# Below this a ConvNeXt's processor crops what it has resized to more; from it on it does not.
_NO_CROP = 384

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processor:
    """How the input `name` is made from an image: `channels` by `height` by `width`, or channels `last`.

    `rows` is how many images the model takes at a time, None for any number.
    """

    name: str
    channels: int
    height: int
    width: int
    last: bool = False
    rows: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def array(self, path: Path) -> NDArray[np.float32]:
        """The array of one image, without an axis for the batch. Raises `LoadError`."""
        try:
            with image_library().open(path) as opened:
                image = self._sized(opened.convert("RGB" if self.channels == 3 else "L"))
        except OSError as error:
            raise LoadError(f"{path} cannot be read as an image: {error}") from error
        pixels = np.asarray(image, np.float64).reshape(self.height, self.width, self.channels)
        if self.config.get("do_rescale", True):
            pixels = pixels * self.config.get("rescale_factor", _RESCALE)
        if self.config.get("do_normalize", True):
            mean, std = (self.config.get(f"image_{name}", _MIDDLE) for name in ("mean", "std"))
            pixels = (pixels - np.asarray(mean)) / np.asarray(std)
        return (pixels if self.last else pixels.transpose(2, 0, 1)).astype(np.float32)

    def _sized(self, image: Any) -> Any:
        """The image resized, then cut or filled up around its middle to what the model takes."""
        if self.config.get("do_resize", True):
            width, height = self._target(*image.size)
            image = image.resize((width, height), self.config.get("resample", _BILINEAR))
        left, top = (image.size[0] - self.width) // 2, (image.size[1] - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to resize to."""
        size, share = self.config.get("size"), self.config.get("crop_pct")
        crops = self.config.get("do_center_crop", False)
        if isinstance(size, dict) and "shortest_edge" in size:
            edge = int(size["shortest_edge"])
            crops = True if share is None else edge < _NO_CROP
            edge = int(edge / share) if share and crops else edge
        elif isinstance(size, int) and crops:
            edge = size
        else:
            wanted = size if isinstance(size, dict) and {"width", "height"} <= set(size) else {}
            return int(wanted.get("width", self.width)), int(wanted.get("height", self.height))
        if not crops:
            return edge, edge
        shorter = min(width, height)
        return (edge, int(edge * height / width)) if shorter == width else (int(edge * width / height), edge)


def read_processor(path: str | Path) -> Processor:
    """What makes images into inputs of the bundle at `path`.

    Without a `preprocessor_config.json` in its folder, beside the file or one folder above they are resized
    to the size that the graph takes and scaled to −1 … 1, which is logged. Raises `LoadError`, and `RunError`
    where no input takes images.
    """
    from graphprune.bundle import load, read_config
    from graphprune.inputs import make_inputs

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    places = (folder / _PROCESSOR, folder.absolute().parent / _PROCESSOR)
    found = next((place for place in places if place.is_file()), None)
    config = read_config(found) if found else {}
    inputs = {
        value.name or "": (value, file.path) for file in load(path).files for value in _images(file.model)
    }
    if len(inputs) != 1:
        told = f"several do: {', '.join(inputs)}" if inputs else "none of its inputs has four axes"
        raise RunError(f"{path} takes no images: {told}; give arrays (.npz) instead")
    ((name, (value, file)),) = inputs.items()
    shape = make_inputs(file, batch=1, sequence=16)[name].shape
    fixed = [size if isinstance(size, int) else None for size in value.shape or ()]
    processor = _processor(name, shape, fixed, config)
    if found is None:
        log.warning(
            "no %s beside %s: images are made %d × %d pixels, from −1 to 1",
            _PROCESSOR, path, processor.width, processor.height,
        )  # fmt: skip
    return processor


def image_library() -> Any:
    """The module PIL.Image. Raises `MissingExtraError` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images need pillow: pip install 'graphprune[images]'") from error
    return Image


def _images(model: ir.Model) -> list[ir.Value]:
    """The inputs that take images: numbers with four axes, and no caches."""
    from graphprune.hints import required_inputs
    from graphprune.play import is_cache

    values = required_inputs(model.graph).values()
    return [v for v in values if len(v.shape or ()) == 4 and not is_cache(v.name or "")]


def _processor(
    name: str, shape: tuple[int, ...], fixed: list[int | None], config: Mapping[str, Any]
) -> Processor:
    """Sizes that the graph leaves open are those of the configuration, or fit its table of positions."""
    last = fixed[1] not in (1, 3) and fixed[3] in (1, 3)
    channels = shape[3] if last else shape[1]
    if channels not in (1, 3):
        raise RunError(
            f"{name} takes {channels} channels, and images have 1 or 3: give arrays (.npz) instead"
        )
    height, width = shape[1:3] if last else shape[2:]
    places = fixed[1:3] if last else fixed[2:]
    if config and None in places:
        height, width = _configured(config) or (height, width)
    return Processor(name, channels, height, width, last, fixed[0], config)


def _configured(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the processor makes."""
    size = config.get("crop_size") if config.get("do_center_crop") else None
    size = config.get("size") if size is None else size
    if isinstance(size, int):
        return size, size
    if not isinstance(size, dict):
        return None
    if {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    edge = size.get("shortest_edge")
    return (int(edge), int(edge)) if isinstance(edge, int) else None
