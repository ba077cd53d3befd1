"""Writing: whole or not at all, weights inline or beside the model, never over the source.

Everything is written into a hidden folder beside the target, flushed to the disk, and only
then moved to its place. A crash leaves what was there before, or nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from google.protobuf.message import EncodeError

from graphprune.datafile import write_data
from graphprune.errors import SaveError
from graphprune.weights import external_files, weight_bytes

External = Literal["auto", "always", "never"]

# One protobuf message holds at most 2 GiB; the graph itself needs some of that.
INLINE_LIMIT = 1_800_000_000
# Smaller tensors stay in the .onnx file: shape inference reads them there.
_SMALL = 256


def write_model(model: ir.Model, path: Path, *, external: External, metadata: Mapping[str, str]) -> None:
    """Write `model` to `path`, its weights to `<name>_data` beside it where they are external.

    "auto" keeps them where the source had them, and puts more than 1.8 GB outside. `metadata`
    is written in place of the model's `metadata_props`; `model` stays as it is.
    """
    size = weight_bytes(model)
    if external == "never" and size > INLINE_LIMIT:
        raise SaveError(f"{path.name}: {size:,} bytes of weights do not fit into one file: put them outside")
    outside = (
        external == "always" or size > INLINE_LIMIT or (external == "auto" and bool(external_files(model)))
    )
    data = path.with_name(f"{path.name}_data")
    weights = _external(model, data) if outside else _in_memory(model)
    try:
        with _metadata(model, metadata), weights:
            ir.save(model, path)
    except (ValueError, TypeError, EncodeError, ir.serde.SerdeError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise SaveError(f"{path.name} cannot be written as ONNX: {cause}") from error


@contextmanager
def replacing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into; what it holds is moved to `target` when the block ends well.

    Where `target` ends in `.onnx` or `.ort`, the folder's files go beside it; else the folder becomes
    `target`. Raises `SaveError` where `target` exists and `overwrite` is false, and for
    every error of the file system, after removing what was written.
    """
    if not overwrite and os.path.lexists(target):
        raise SaveError(f"{target} exists: name another target, or allow overwriting")
    hidden: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        content = hidden / "new"  # mkdtemp's own folder is closed to others
        content.mkdir()
        yield content
        _flush(content)
        if target.suffix in (".onnx", ".ort"):
            _place_file(content, target)
        else:
            _place_folder(content, target, hidden / "old")
    except OSError as error:
        raise SaveError(f"cannot write {target}: {error.strerror or error}; nothing was written") from error
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; an existing one is replaced. Raises `SaveError`."""
    hidden: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            hidden = Path(file.name)
            file.write(text)
        hidden.chmod(0o666 & ~_umask())
        hidden.replace(target)
    except OSError as error:
        if hidden is not None:
            hidden.unlink(missing_ok=True)
        raise SaveError(f"cannot write {target}: {error.strerror or error}; nothing was written") from error


def _umask() -> int:
    """What the user's new files are closed to; a temporary one is closed to everyone else."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_files(source: Path, names: Iterable[Path], folder: Path) -> None:
    """Copy the files `names`, relative to `source`, into `folder`; links become files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, folder / name)


def refuse_source(target: Path, sources: Iterable[Path]) -> None:
    """Raise `SaveError` where writing `target` would replace one of the files that are read.

    Links of both kinds are seen through. A folder target must not hold a source either.
    """
    for source in sources:
        for path in _overlaps(target, source):
            raise SaveError(f"{path} is part of the source, which is never overwritten: name another target")


def _overlaps(target: Path, source: Path) -> Iterator[Path]:
    real = source.resolve()
    if target.resolve() in (real, *real.parents):
        yield source
    written = [target, target.with_name(f"{target.name}_data")]
    for path in written if not target.is_dir() else target.rglob("*"):
        if path.is_file() and path.samefile(source):
            yield path


def _place_file(content: Path, target: Path) -> None:
    """Move the model last, so that no model ever stands beside data that are not its own."""
    others = [path for path in content.iterdir() if path.name != target.name]
    if any((target.parent / path.name).exists() for path in others):
        target.unlink(missing_ok=True)
    for path in others:
        path.replace(target.parent / path.name)
    (content / target.name).replace(target)
    _sync(target.parent)


def _place_folder(content: Path, target: Path, old: Path) -> None:
    if os.path.lexists(target):
        target.rename(old)
    try:
        content.rename(target)
    except OSError:
        if os.path.lexists(old):
            old.rename(target)
        raise
    _sync(target.parent)


def _flush(folder: Path) -> None:
    """Wait until every file below `folder` is on the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows has no handles of folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _metadata(model: ir.Model, metadata: Mapping[str, str]) -> Iterator[None]:
    props = model.metadata_props
    before = dict(props)
    try:
        props.clear()
        props.update(metadata)
        yield
    finally:
        props.clear()
        props.update(before)


@contextmanager
def _external(model: ir.Model, data: Path) -> Iterator[None]:
    """Write the weights to `data`; while the block runs, the initializers point there.

    Initializers that shared their bytes in the source still do. Tensors under 256 bytes stay
    in the model.
    """
    swapped: dict[ir.Value, ir.TensorProtocol] = {}
    written: dict[object, ir.TensorProtocol] = {}
    offsets: dict[object, int] = {}
    size = 0
    for value, tensor in _weights(model):
        if tensor.nbytes >= _SMALL and tensor.dtype != ir.DataType.STRING:
            key = _identity(tensor)
            if key not in written:
                written[key], offsets[key] = tensor, size
                size += tensor.nbytes
            swapped[value] = _at(tensor, data.name, offsets[key])
        elif isinstance(tensor, ir.ExternalTensor):
            swapped[value] = _loaded(tensor)
    if written:
        write_data(data, written.values(), size)
    with _swapped(swapped):
        yield


@contextmanager
def _in_memory(model: ir.Model) -> Iterator[None]:
    """External tensors read into memory while the block runs; then they are lazy again."""
    lazy = [(v, tensor) for v, tensor in _weights(model) if isinstance(tensor, ir.ExternalTensor)]
    with _swapped({value: _loaded(tensor) for value, tensor in lazy}):
        yield


@contextmanager
def _swapped(tensors: Mapping[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    """Other tensors in the initializers while the block runs."""
    before = {value: value.const_value for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        yield
    finally:
        for value, former in before.items():
            value.const_value = former


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _identity(tensor: ir.TensorProtocol) -> object:
    if isinstance(tensor, ir.ExternalTensor):
        return (tensor.path, tensor.offset, tensor.nbytes)
    return id(tensor)


def _at(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or ""
    )


def _loaded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    array = tensor.numpy().copy()
    tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
