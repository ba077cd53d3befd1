"""What ONNX Runtime's profiler takes itself, so that it can be taken off what it measures.

The profiler writes shapes, sizes and thread statistics of a kernel into the event before it stops that
kernel's clock: about two microseconds, more than most small kernels run. A chain of additions of single
numbers, run with the profiler and without in turns, tells how much it is here and now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError
from graphprune.kernels import CONTROL, read_runs
from graphprune.settings import Settings, session_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphprune.kernels import Kernel

_LENGTH, _ROUNDS, _WARMUP = 128, 30, 5


@dataclass(frozen=True)
class Cost:
    """Microseconds that the profiler adds to each kernel, and between each and the next."""

    within: float = 0.0
    between: float = 0.0

    def of(self, kernel: Kernel) -> float:
        """What is in the time of a kernel; of one with others inside, also what was between those."""
        if kernel.device or kernel.op in CONTROL:
            return 0.0
        return self.within + self.between * kernel.inside


def measure(folder: Path, settings: Settings) -> Cost:
    """Find out, with as many threads as in `settings`; `folder` is made. Raises `RunError`, `OSError`."""
    import onnxruntime as ort

    folder.mkdir()
    options = [session_options(replace(settings, level="disabled")) for _ in range(2)]
    options[0].enable_profiling = True
    options[0].profile_file_prefix = str(folder / "profile")
    try:
        sessions = [ort.InferenceSession(_chain(), o, providers=["CPUExecutionProvider"]) for o in options]
        whole, bare = map(_low, _in_turns(sessions))
        runs = list(read_runs(Path(sessions[0].end_profiling())))
    except RunError:
        raise
    except Exception as error:  # the runtime's own exceptions share no public base
        raise RunError(f"what the profiler takes itself cannot be measured: {error}") from error
    kernel = _low([sum(k.us for k in run.kernels) / _LENGTH for run in runs])
    return Cost(max(0.0, kernel - bare), max(0.0, whole - kernel))


def _in_turns(sessions: Sequence[Any]) -> list[list[float]]:
    """Microseconds of one addition in each session, for every round."""
    import numpy as np

    times: list[list[float]] = [[] for _ in sessions]
    feeds = {"x": np.ones(1, np.float32)}
    for _ in range(_WARMUP + _ROUNDS):
        for session, found in zip(sessions, times, strict=True):
            start = perf_counter_ns()
            session.run(None, feeds)
            found.append((perf_counter_ns() - start) / 1e3 / _LENGTH)
    return times


def _low(values: Sequence[float]) -> float:
    """The lower quartile of the rounds after the warm-up: what disturbs only adds."""
    ordered = sorted(values[_WARMUP:])
    return ordered[len(ordered) // 4]


def _chain() -> bytes:
    """`x + 1 + 1 + …`, each addition a kernel."""
    from onnx import TensorProto, helper

    names = ["x", *(f"v{i}" for i in range(_LENGTH - 1)), "y"]
    nodes = [helper.make_node("Add", [names[i], "one"], [names[i + 1]], names[i]) for i in range(_LENGTH)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(nodes, "additions", ends[:1], ends[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
