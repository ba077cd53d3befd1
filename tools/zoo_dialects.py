"""The same model in other clothes: what optimizers and quantizers make of an exported file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def _int8(source: Path, target: Path, family: Family) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def _int4(source: Path, target: Path, family: Family) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer: Any = MatMulNBitsQuantizer(onnx.load(source), block_size=16)
    quantizer.process()
    onnx.save(quantizer.model.model, target)


def _qdq(source: Path, target: Path, family: Family) -> None:
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    from tools.zoo_feeds import Feeds, make_feeds

    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    past = 3 if any(value.name.startswith("past") for value in session.get_inputs()) else 0
    batches = [make_feeds(session, past=past)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One random batch."""

        def get_next(self) -> Feeds | None:
            return batches.pop() if batches else None

    quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ)


DIALECTS: dict[str, Dialect] = {
    "ort-basic": _ort("ENABLE_BASIC"),
    "ort-extended": _ort("ENABLE_EXTENDED"),
    "ort-all": _ort("ENABLE_ALL"),
    "fused": _fused(half=False),
    "fused-fp16": _fused(half=True),
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "int8": _int8,
    "int4": _int4,
    "qdq": _qdq,
}


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
