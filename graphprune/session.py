"""ONNX Runtime sessions for the files of a bundle, with errors that say which file and what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import LoadError, RunError
from graphprune.slots import cache_slot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

# onnxruntime's names of element types, as far as models take them as inputs
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True, eq=False)
class Session:
    """One loaded file: its name in the bundle, and what it takes and gives, in graph order."""

    name: str
    runtime: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def pasts(self) -> int:
        """How many KV caches it takes."""
        return sum(bool(cache_slot(name, "past")) for name in self.inputs)

    @property
    def reads_earlier(self) -> bool:
        """Whether it takes what another file may have put out: an encoder's states, a cache."""
        return self.pasts > 0 or any(name.startswith("encoder_") for name in self.inputs)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run once: all outputs by name. Inputs beyond the model's are left out.

        Raises `RunError` where an input is missing or the runtime refuses one.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise RunError(f"{self.name}: inputs without a value: {', '.join(missing)}")
        try:
            values = self.runtime.run(None, {name: feeds[name] for name in self.inputs})
        except Exception as error:  # the runtime's own exceptions share no public base
            raise RunError(f"{self.name}: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def cast(self, name: str, array: NDArray[Any]) -> NDArray[np.generic]:
        """`array` in the element type that the input `name` takes."""
        return array.astype(self.element_type(name) or array.dtype, copy=False)

    def element_type(self, name: str) -> str | None:
        """Numpy's name for the element type that the input `name` takes; None where numpy has none."""
        kind = next(one.type for one in self.runtime.get_inputs() if one.name == name)
        return _TYPES.get(kind)


def open_session(
    path: Path, name: str, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Session:
    """Load one file. `threads` 0 leaves their number to ONNX Runtime. Raises `LoadError`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        runtime = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # as above
        raise LoadError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
    inputs = tuple(one.name for one in runtime.get_inputs())
    return Session(name, runtime, inputs, tuple(one.name for one in runtime.get_outputs()))


def open_sessions(path: str | Path, *, threads: int = 0) -> tuple[Session, ...]:
    """Sessions for every file of a bundle, those first whose outputs others take as inputs.

    Raises `LoadError`, also where the files do not belong together.
    """
    from graphprune.bundle import load
    from graphprune.fileset import require_set

    bundle = load(path)
    require_set(bundle)
    return in_turn(open_session(file.path, file.name, threads=threads) for file in bundle.files)


def in_turn(sessions: Iterable[Session]) -> tuple[Session, ...]:
    """The sessions of a bundle's files, those first whose outputs others take as inputs."""
    return tuple(sorted(sessions, key=_turn))


def _turn(session: Session) -> tuple[bool, int]:
    """Encoders run before what reads their output, a decoder without past before one with it."""
    return session.reads_earlier, session.pasts


def first_line(error: Exception) -> str:
    """What an exception of the runtime says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
