"""The same model in other clothes: what optimizers and quantizers make of an exported file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools import zoo_quantized as quantized
from tools.zoo_truth import Family

SECONDS = 30

Dialect = Callable[[Path, Path, Family], None]


def _ort(level: str) -> Dialect:
    """What ONNX Runtime itself runs on a CPU, saved."""

    def write(source: Path, target: Path, family: Family) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return write


def _fused(half: bool) -> Dialect:
    """ONNX Runtime's transformer optimizer, in Python, for the family's `model_type`."""

    def write(source: Path, target: Path, family: Family) -> None:
        from onnxruntime.transformers.optimizer import optimize_model

        heads, width = (0, 0) if family.modality == "clip" else (4, 32)
        model: Any = optimize_model(
            str(source), model_type=family.ort_type, num_heads=heads, hidden_size=width, opt_level=0,
            only_onnxruntime=False,
        )  # fmt: skip
        if half:
            model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(target))

    return write


def _onnxslim(source: Path, target: Path, family: Family) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(target), verbose=False)


def _onnxsim(source: Path, target: Path, family: Family) -> None:
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(str(source))
    onnx.save(simplified, target)


def _then(*steps: Dialect) -> Dialect:
    """One treatment after another."""

    def write(source: Path, target: Path, family: Family) -> None:
        with TemporaryDirectory() as folder:
            for number, step in enumerate(steps[:-1]):
                made = Path(folder) / f"{number}.onnx"
                step(source, made, family)
                source = made
            steps[-1](source, target, family)

    return write


def _plain(treatment: Callable[[Path, Path], None]) -> Dialect:
    """A treatment that does not ask for the family."""
    return lambda source, target, family: treatment(source, target)


DIALECTS: dict[str, Dialect] = {
    "ort-basic": _ort("ENABLE_BASIC"),
    "ort-extended": _ort("ENABLE_EXTENDED"),
    "ort-all": _ort("ENABLE_ALL"),
    "fused": _fused(half=False),
    "fused-fp16": _fused(half=True),
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "int8": _plain(quantized.dynamic),
    "int8-ort": _then(_plain(quantized.dynamic), _ort("ENABLE_EXTENDED")),
    "fused-int8": _then(_fused(half=False), _plain(quantized.dynamic)),
    "int4": _plain(partial(quantized.blocks, symmetric=False)),
    "int4-gather": _plain(partial(quantized.blocks, symmetric=True, tables=True)),
    "int4-qdq": _plain(partial(quantized.blocks, symmetric=False, qdq=True)),
    "qdq": _plain(partial(quantized.static, qdq=True)),
    "qdq-ort": _then(_plain(partial(quantized.static, qdq=True)), _ort("ENABLE_EXTENDED")),
    "qoperator": _plain(partial(quantized.static, qdq=False)),
    "weight-only": _plain(partial(quantized.weights, dequantize=False)),
    "weight-qdq": _plain(partial(quantized.weights, dequantize=True)),
    "fp16": _plain(partial(quantized.half, keep_io=False)),
    "fp16-mixed": _plain(partial(quantized.half, keep_io=True, islands=True)),
    "bf16": _plain(quantized.brain),
}
QUANTIZED = (
    "int8", "int8-ort", "fused-int8", "int4", "int4-gather", "int4-qdq", "qdq", "qdq-ort", "qoperator",
    "weight-only", "weight-qdq",
)  # fmt: skip
HALF = ("fp16", "fp16-mixed", "fused-fp16", "bf16")


def treat(name: str, source: Path, target: Path, family: Family) -> None:
    """Write the dialect of `source`; raises the tool's error, or ONNX Runtime's where that cannot load it.

    A graph whose operators have no kernel for a CPU is as good as any: nothing here runs it.
    """
    import onnxruntime as ort
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    with limited(SECONDS):
        DIALECTS[name](source, target, family)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with contextlib.suppress(NoKernel):
        ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])


class _TooLongError(BaseException):
    """Passes through a tool's own `except Exception`."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` after so long: symbolic shape inference does not end on some graphs."""

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except _TooLongError:
        raise TimeoutError(f"not done in {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
