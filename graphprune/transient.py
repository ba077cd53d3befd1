"""Sessions of models that are in memory only: copies of files, changed to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphprune.errors import LoadError

if TYPE_CHECKING:
    from graphprune.bundle import ModelFile
    from graphprune.session import Session
    from graphprune.settings import Settings

# The option that names the folder which external weights are looked for in.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def as_bytes(model: ir.Model, path: Path) -> bytes:
    """A model that was read from `path`, its external weights named from the root of the file system.

    `anchor(path)` is to be the value of `WEIGHTS_FOLDER` then. The model's tensors are replaced. Raises
    `LoadError` where weights that are inside make it larger than a protobuf message can be.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _from_root(value.const_value)
    try:
        data: bytes = ir.to_proto(model).SerializeToString()
    except ValueError as error:
        raise LoadError(f"{path}: too large to be measured with its weights inside: {error}") from error
    return data


def anchor(path: Path) -> Path:
    """The root of the file system: external weights are named from there, since they lie anywhere."""
    return Path(path.absolute().anchor)


def open_in_memory(model: ir.Model, file: ModelFile, settings: Settings) -> Session:
    """A session of `model`, which was made from `file`. Raises `LoadError`, `RunError`."""
    from graphprune.session import create, opened
    from graphprune.settings import session_options

    options = session_options(settings)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(anchor(file.path)))
    (providers, *_) = settings.choices()
    data = as_bytes(model, file.path)
    runtime = create(file.path, options, settings=settings, providers=providers, data=data)
    runtime._model_path = str(file.path)  # inputs are made from what the file says of them
    return opened(runtime, file.name, settings)


def _from_root(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same tensor, its file named from the root of the file system."""
    path = Path(tensor.path).absolute()
    place = path.relative_to(path.anchor).as_posix()
    return ir.ExternalTensor(
        place, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )
