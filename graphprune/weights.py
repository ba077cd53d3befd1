"""Weights outside the .onnx file: where they really are, and whether they are all there.

`onnx_ir` refuses weights that are symlinks out of the folder or hard links, as in the
Hugging Face cache, though ONNX Runtime reads them. So every location is checked here once,
and each tensor then points at the real path.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from graphprune.errors import GraphError, LoadError

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def rebase_weights(model: ir.Model, path: Path) -> None:
    """Point the external tensors of `model`, read from `path`, at their real files.

    External tensors in node attributes become ordinary ones: `onnx_ir` writes out only
    initializers. Raises `LoadError` where a location leads out of the folder, or its file is
    missing or too short.
    """
    real = cache(lambda location: _real_file(path, location))
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _rebased(value.const_value, path, *real(str(value.const_value.location)))
        for node in graph:
            for attribute in list(node.attributes.values()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    tensor = _rebased(attribute.value, path, *real(str(attribute.value.location)))
                    inline = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, inline)


def external_files(model: ir.Model) -> frozenset[Path]:
    """The real paths of the weight files that `model` reads."""
    tensors = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    return frozenset(Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor))


def weight_bytes(model: ir.Model) -> int:
    """The size in bytes of all initializers, subgraphs included."""
    tensors = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def sampled_sha256(path: Path) -> str:
    """A fingerprint of a file of weights: the SHA-256 of its size and of 64 samples of 64 KiB.

    The samples are evenly spaced from the first byte to the last; a file of at most 4 MiB is
    read whole. It tells fine-tuned copies of a model apart at no cost to speak of; it is no
    protection against someone who means to deceive.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Raise `GraphError` where a tensor holds more or less data than its type and shape say."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    for tensor in (*proto.graph.initializer, *_attribute_tensors(nodes)):
        label = f"{path}: tensor {tensor.name!r}"
        try:
            bits = _bits(tensor.data_type)
        except (ValueError, TypeError) as error:
            raise GraphError(f"{label} has the unknown type {tensor.data_type}") from error
        if any(dim < 0 for dim in tensor.dims):
            raise GraphError(f"{label} has the negative shape {list(tensor.dims)}")
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _check_data(tensor, bits, label)


def _check_data(tensor: onnx.TensorProto, bits: int, label: str) -> None:
    """Compare the data inside the message with the shape; `bits` an element, 0 for strings."""
    if tensor.HasField("raw_data"):
        expected, found = math.ceil(math.prod(tensor.dims) * bits / 8), len(tensor.raw_data)
        if expected != found:
            raise GraphError(f"{label} of shape {list(tensor.dims)} has {found} bytes, not {expected}")
        return
    try:
        fits = bits > 0 or len(tensor.string_data) == math.prod(tensor.dims)
        if bits:
            ir.serde.TensorProtoTensor(tensor).numpy()
    except Exception as error:  # numpy's and onnx_ir's many ways to dislike the data
        raise GraphError(f"{label} of shape {list(tensor.dims)} does not hold that many values") from error
    if not fits:
        raise GraphError(f"{label} of shape {list(tensor.dims)} holds {len(tensor.string_data)} strings")


def _bits(data_type: int) -> int:
    dtype = ir.DataType(data_type)
    return 0 if dtype == ir.DataType.STRING else dtype.bitwidth


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every tensor in the attributes of nodes, and in the subgraphs there."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graph.initializer
                yield from _attribute_tensors(graph.node)


def _real_file(path: Path, location: str) -> tuple[Path, int]:
    """The real path and the size of external data, whose `location` is relative to the model."""
    where = f"{path}: external data at {location!r}"
    windows = PureWindowsPath(location)
    if not location or windows.drive or windows.root or PurePosixPath(location).is_absolute():
        raise LoadError(f"{where} is not a relative path inside the model's folder: refused")
    if ".." in windows.parts:
        raise LoadError(f"{where} leads out of the model's folder: refused")
    try:
        real = (path.parent / location).resolve(strict=True)
        size = real.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:  # missing, a loop of links, a NUL in the name
        raise LoadError(f"{where} cannot be found: get the file and put it beside the model") from error
    if not real.is_file():
        raise LoadError(f"{where} is not a file")
    return real, size


def _rebased(tensor: ir.ExternalTensor, path: Path, real: Path, size: int) -> ir.ExternalTensor:
    """The same tensor at its real path. An empty `base_dir` tells onnx_ir that it was checked."""
    start, stop = tensor.offset or 0, (tensor.offset or 0) + tensor.nbytes
    label = f"{path}: tensor {tensor.name!r}"
    if tensor.length not in (None, tensor.nbytes):
        raise LoadError(f"{label} needs {tensor.nbytes} bytes, but its external data have {tensor.length}")
    if start < 0 or stop > size:
        raise LoadError(
            f"{label} needs bytes {start} to {stop} of {real.name}, which has {size}: "
            "the file is truncated, or belongs to another model"
        )
    return ir.ExternalTensor(
        real,
        start,
        tensor.nbytes,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=tensor.metadata_props,
    )
