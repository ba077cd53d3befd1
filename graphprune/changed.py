"""A session of a model that was changed in memory; weights outside of the file are read where they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune.errors import LoadError
from graphprune.session import Session, opened
from graphprune.settings import Settings, session_options
from graphprune.starting import RECORD, create, first_to_start

if TYPE_CHECKING:
    from graphprune.bundle import ModelFile


def open_changed(file: ModelFile, model: ir.Model, settings: Settings | None = None) -> Session:
    """Load `model`, made of that of `file`, under its name. Nothing is kept in the settings' cache.

    Raises `LoadError`, `RunError`.
    """
    settings = settings or Settings()
    data = serialized(file, model)

    def begin(providers: tuple[str, ...]) -> Session:
        return open_bytes(file, data, session_options(settings), settings, providers)

    return first_to_start(settings, file.name, begin)


def open_bytes(
    file: ModelFile, data: bytes, options: Any, settings: Settings, providers: tuple[str, ...]
) -> Session:
    """A session of what `serialized` made, with ONNX Runtime's options. Raises `LoadError`."""
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", file.path.absolute().anchor
    )
    if providers != ("cpu",):
        options.add_session_config_entry(RECORD, "1")
    runtime = create(file.path, options, settings=settings, providers=providers, data=data)
    runtime._model_path = str(file.path)  # inputs are made from what the file says of them
    return opened(runtime, file.name, settings)


def serialized(file: ModelFile, model: ir.Model) -> bytes:
    """The bytes of a model made of that of `file`: where its weights are, counts from the root of all files.

    Changes the external tensors of `model`. Raises `LoadError` where it is too large.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _from_root(value.const_value)
    try:
        data: bytes = ir.to_proto(model).SerializeToString()
    except ValueError as error:
        raise LoadError(f"{file.path}: too large to be held in memory with its weights: {error}") from error
    return data


def _from_root(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same tensor, its file named from the root of the file system."""
    path = Path(tensor.path).absolute()
    place = path.relative_to(path.anchor).as_posix()
    return ir.ExternalTensor(
        place, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )
