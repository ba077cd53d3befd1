"""How near the limit of the machine a kernel, a block or a model runs.

The roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785): no kernel is done before
its products are computed, at most as fast as the machine multiplies, nor before its bytes are moved, at
most as fast as its memory is. Both speeds are measured here, through ONNX Runtime itself, on the provider
and with the threads that the model has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graphprune.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.phases import KernelTime, PartTime
    from graphprune.session import Feeds, Session

Bound = Literal["compute", "memory", "cache", ""]

# Rows, columns and depth of the products that are tried, as long as runs are shorter than this.
_SIZES, _LONG_RUN = (256, 512, 1024, 2048, 4096, 8192), 0.02
# An array beyond most caches, as elements of 4 bytes, and arrays in caches, each with its passes in a run.
_LARGE, _CACHED = 32 << 20, ((1 << 18, 16), (1 << 21, 4))
# Each probe runs so many seconds, and so many times at least.
_SECONDS, _TIMES = 0.08, 3

# ONNX Runtime's names of the types in which products are computed, 8-bit integers as one.
_TYPES = {
    "float": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.FLOAT16,
    "double": ir.DataType.DOUBLE, "int8": ir.DataType.UINT8, "uint8": ir.DataType.UINT8,
}  # fmt: skip
# Ops that take real numbers and multiply 8-bit integers.
_INTEGER = {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_OPSETS = {"": 17}


@dataclass(frozen=True)
class Peak:
    """What the machine did at most: multiply-accumulates a second, and bytes a second.

    `macs_per_s` holds for products of matrices of one element type, `bytes_per_s` for arrays in main memory
    (on a GPU, its own), read and written bytes counted alike. `caches` are sizes of arrays that fit in
    caches, in bytes and from the smallest, with their bytes a second.
    """

    macs_per_s: float
    bytes_per_s: float
    caches: tuple[tuple[int, float], ...] = ()

    @property
    def cache_bytes_per_s(self) -> float:
        """The speed of the nearest cache that was measured."""
        return self.caches[0][1] if self.caches else self.bytes_per_s

    def cached(self, size: float) -> float | None:
        """The speed of the nearest cache that holds so many bytes; None where none does."""
        return next((max(speed, self.bytes_per_s) for held, speed in self.caches if size <= held), None)


@dataclass(frozen=True)
class Limit:
    """The least time that is possible, in microseconds, its share of the time that was taken, and why.

    `bound` is what most of the limit comes from: `compute`, `memory`, `cache`, or "" where there is
    nothing to compute and nothing to move.
    """

    us: float
    share: float
    bound: Bound


def peak(settings: Settings | None = None, element: str = "float") -> Peak:
    """Measure the machine once in a process, for less than two seconds, with the settings of a session.

    `element` is ONNX Runtime's name of a type: float, float16 (bfloat16 is taken for it), double, int8 or
    uint8 (one and the same). The best
    of all runs counts: other load on the machine makes single ones slower, and never faster. Raises
    `LoadError` where the provider has no product of that type, `RunError`.
    """
    settings = settings or Settings()
    options = tuple((name, tuple(one.items())) for name, one in settings.provider_options.items())
    given = _Probed(settings.providers, settings.threads, options)
    caches = tuple((4 * size, _bytes_per_s(given, size, count)) for size, count in _CACHED)
    return Peak(_macs_per_s(given, element), _bytes_per_s(given, _LARGE, 1), caches)


def limit_of(part: PartTime, settings: Settings | None = None) -> Limit | None:
    """The limit of a block, or of another part of a profile that was made with `settings`: see `limit`.

    None where a kernel did not run on the CPU: elsewhere a profile has the times of starting kernels.
    """
    if any(kernel.provider != "cpu" for kernel in part.kernels):
        return None
    return limit(part.kernels, lambda element: peak(settings, element))


def limit(kernels: Iterable[KernelTime], peak_of: Callable[[str], Peak]) -> Limit:
    """The least time for these kernels, one after another: the sum of what each needs.

    A kernel needs the longer of two times: of its products at the peak of their element type, and of its
    bytes at the speed of main memory. One that was quicker than main memory is had its data in a cache: the
    limit is then the speed of a cache that holds as many bytes. Where a kernel was quicker even so, its own
    time is the limit. Softmax, norms and activations count by their bytes alone.
    """
    needs: dict[Bound, float] = {}
    total = 0.0
    for kernel in kernels:
        bound, us = _need(kernel, peak_of)
        needs[bound] = needs.get(bound, 0.0) + us
        total += kernel.us
    least = sum(needs.values())
    main: Bound = max(needs, key=needs.__getitem__) if least else ""
    return Limit(least, min(least / total, 1.0) if total else 0.0, main)


def element_of(kernel: KernelTime) -> str:
    """The type in which a kernel multiplies, by ONNX Runtime's name of it."""
    if kernel.op in _INTEGER:
        return "uint8"
    return kernel.type if kernel.macs and kernel.type in _TYPES else "float"


def computing_us(kernel: KernelTime, peak_of: Callable[[str], Peak]) -> float:
    """The microseconds that a kernel's products take at least, at the peak of their element type."""
    return kernel.macs / peak_of(element_of(kernel)).macs_per_s * 1e6 if kernel.macs else 0.0


def _need(kernel: KernelTime, peak_of: Callable[[str], Peak]) -> tuple[Bound, float]:
    """What limits a kernel, and the microseconds that it needs at least."""
    computing = computing_us(kernel, peak_of)
    bound, moving = _moving(kernel, peak_of(element_of(kernel)))
    if computing >= moving:
        return ("compute" if computing else ""), min(computing, kernel.us)
    return bound, min(moving, kernel.us)


def _moving(kernel: KernelTime, speeds: Peak) -> tuple[Bound, float]:
    """Where a kernel's bytes were, as far as its time tells, and the microseconds from there."""
    us = kernel.bytes / speeds.bytes_per_s * 1e6
    if us <= kernel.us:
        return "memory", us
    cached = speeds.cached(kernel.bytes / kernel.count) if kernel.count else None
    return ("memory", us) if cached is None else ("cache", kernel.bytes / cached * 1e6)


@dataclass(frozen=True)
class _Probed:
    """The settings that a peak depends on."""

    providers: tuple[str, ...]
    threads: int
    options: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    def open(self, graph: ir.Graph) -> Session:
        """A session of one graph, whose inputs stay on the device."""
        from graphprune.bundle import ModelFile
        from graphprune.changed import open_changed

        options = MappingProxyType({name: dict(one) for name, one in self.options})
        settings = Settings(
            self.providers, self.threads, "disabled", binding=True, provider_options=options
        )  # fmt: skip
        model = ir.Model(graph, ir_version=10)
        return open_changed(ModelFile(Path("probe"), "the probe of the machine", model), model, settings)


@lru_cache(maxsize=32)
def _macs_per_s(given: _Probed, element: str) -> float:
    dtype = _TYPES[element]
    best, size = 0.0, 0
    for size in _SIZES:
        seconds = _quickest(given.open(_product(dtype, size)), {"x": _ones(dtype, size, size)})
        best = max(best, size**3 / seconds)
        if seconds > _LONG_RUN:
            break
    return best


@lru_cache(maxsize=32)
def _bytes_per_s(given: _Probed, size: int, count: int) -> float:
    """The best of reading alone, and of reading and writing as much, `count` times in a run."""
    feeds = {"x": _ones(ir.DataType.FLOAT, size)}
    nbytes = feeds["x"].nbytes * count
    written = 2 * nbytes / _quickest(given.open(_chain(size, count)), feeds)
    return max(written, nbytes / _quickest(given.open(_sums(size, count)), feeds))


def _quickest(session: Session, feeds: Feeds) -> float:
    """The seconds of the quickest run."""
    run = session.prepared(feeds)
    run()
    best, end, times = float("inf"), time.perf_counter() + _SECONDS, 0
    while times < _TIMES or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best, times = min(best, time.perf_counter() - start), times + 1
    return best


def _ones(dtype: ir.DataType, *shape: int) -> NDArray[Any]:
    import numpy as np

    return np.ones(shape, dtype.numpy())


def _product(dtype: ir.DataType, size: int) -> ir.Graph:
    """A product of an input and a constant matrix, of 8-bit integers signed as quantizers write it."""
    integers = dtype == ir.DataType.UINT8
    x = ir.val("x", dtype, (size, size))
    weights = _ones(ir.DataType.INT8 if integers else dtype, size, size)
    w = ir.val("w", const_value=ir.tensor(weights, name="w"))
    node = ir.node("MatMulInteger" if integers else "MatMul", [x, w])
    return _graph(x, [node], ir.DataType.INT32 if integers else dtype, [w])


def _chain(size: int, count: int) -> ir.Graph:
    """An array, read and written `count` times."""
    x = value = ir.val("x", ir.DataType.FLOAT, (size,))
    nodes = []
    for _ in range(count):
        nodes.append(ir.node("Relu", [value]))
        value = nodes[-1].outputs[0]
    return _graph(x, nodes, ir.DataType.FLOAT)


def _sums(size: int, count: int) -> ir.Graph:
    """An array, read `count` times."""
    x = ir.val("x", ir.DataType.FLOAT, (size,))
    nodes = [ir.node("ReduceMax", [x], {"keepdims": 0}) for _ in range(count)]
    return _graph(x, [*nodes, ir.node("Sum", [n.outputs[0] for n in nodes])], ir.DataType.FLOAT)


def _graph(
    x: ir.Value, nodes: list[ir.Node], dtype: ir.DataType, weights: Sequence[ir.Value] = ()
) -> ir.Graph:
    result = nodes[-1].outputs[0]
    result.name, result.type = "y", ir.TensorType(dtype)
    return ir.Graph([x], [result], nodes=nodes, initializers=weights, opset_imports=_OPSETS, name="probe")
