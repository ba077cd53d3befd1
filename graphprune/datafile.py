"""Write a file of weights about as fast as the system copies files.

Weights that lie in a file are copied by the kernel (`copy_file_range`, called by `onnx_ir`, which
reads and writes where there is none), in long pieces that start and end with the target's pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

# Weights are copied this many bytes at a time, and then the disk is told to write them.
_STEP = 1 << 26


def write_data(path: Path, tensors: Iterable[ir.TensorProtocol], size: int) -> None:
    """Write tensors one after the other, `size` bytes in all.

    The space is taken first: a full disk is found before anything is copied, and copying into
    space that is there takes less time. The disk writes what is done while the rest is still
    being copied, so that flushing the file afterwards finds little left to wait for.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        started = 0
        for tensor in _in_steps(_joined(tensors), file):
            if hasattr(tensor, "tofile"):  # all of onnx_ir's own have it
                tensor.tofile(file)
            else:
                file.write(tensor.tobytes())
            if file.tell() - started >= _STEP:
                _start_writing(file, started)
                started = file.tell()


def _joined(tensors: Iterable[ir.TensorProtocol]) -> Iterator[ir.TensorProtocol]:
    """The same bytes in the same order; tensors that follow each other in their file become one."""
    run: ir.TensorProtocol | None = None
    for tensor in tensors:
        if isinstance(run, ir.ExternalTensor) and _follows(tensor, run):
            run = _bytes_of(run, _start(run), _stop(run) + tensor.nbytes)
            continue
        if run is not None:
            yield run
        run = tensor
    if run is not None:
        yield run


def _follows(tensor: ir.TensorProtocol, run: ir.ExternalTensor) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and (tensor.path, _start(tensor)) == (run.path, _stop(run))


def _in_steps(tensors: Iterable[ir.TensorProtocol], file: BinaryIO) -> Iterator[ir.TensorProtocol]:
    """The same bytes; external tensors are cut where `file`, their target, reaches a multiple of the step.

    Each is to be written before the next is asked for.
    """
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            yield tensor
            continue
        start = _start(tensor)
        while start < _stop(tensor):
            stop = min(start + _STEP - file.tell() % _STEP, _stop(tensor))
            yield _bytes_of(tensor, start, stop)
            start = stop


def _start(tensor: ir.ExternalTensor) -> int:
    return tensor.offset or 0


def _stop(tensor: ir.ExternalTensor) -> int:
    return _start(tensor) + tensor.nbytes


def _bytes_of(tensor: ir.ExternalTensor, start: int, stop: int) -> ir.ExternalTensor:
    """The bytes from `start` to `stop` of the file that `tensor` is in."""
    shape = ir.Shape([stop - start])
    return ir.ExternalTensor(tensor.path, start, stop - start, ir.DataType.UINT8, shape=shape, name="")


def _start_writing(file: BinaryIO, start: int) -> None:
    """Let the disk write what stands in `file` from `start` on, without waiting for it.

    That is what Linux does when told that pages still to be written will not be needed soon;
    they stay in the cache all the same. Elsewhere it is a hint that changes nothing.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), start, file.tell() - start, os.POSIX_FADV_DONTNEED)
