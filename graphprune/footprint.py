"""What a model takes beside time: bytes on the disk, and, in a process of its own, to load and to run.

A process that has run other models keeps some of their memory, and has the libraries loaded; so each
figure is of a fresh one, above what that process took before it loaded the model.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError, RunError

if TYPE_CHECKING:
    from graphprune.play import Source
    from graphprune.settings import Settings

_STATUS = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs"), "5"  # proc(5): resets the highest resident size
_REQUEST, _ARRAYS, _ANSWER = "request.json", "arrays.npz", "answer.json"
_CHILD = "import sys; from graphprune.footprint import answer; answer(sys.argv[1])"


@dataclass(frozen=True)
class Usage:
    """One fresh process: milliseconds to load a model, and megabytes (10⁶ bytes) of resident memory.

    `loaded_mb` is what the model takes when it is loaded, `peak_mb` the most that loading it and one
    pass over its inputs took, inputs and outputs included. Both are of the computer's own memory, not
    of an accelerator's, and None where the system does not tell.
    """

    load_ms: float
    loaded_mb: float | None
    peak_mb: float | None


class EndedError(RunError):
    """The system ended a process in which a model ran."""


def disk_bytes(path: str | Path) -> int:
    """The size of a bundle's models and of the files with their weights. Raises `LoadError`."""
    from graphprune.bundle import load
    from graphprune.ortformat import packaged
    from graphprune.weights import external_files

    files = load(path).files if not packaged(path) else ()
    models = {one for file in files for one in (file.path, *external_files(file.model))}
    paths = models or {file for file, _ in packaged(path)}
    return sum(one.stat().st_size for one in {one.resolve() for one in paths})


def usage(path: str | Path, source: Source, settings: Settings, *, steps: int = 0) -> Usage:
    """Load a bundle in a fresh process, and run it once, with one further token where `steps` are asked for.

    Raises `RunError` where it cannot be run there, `EndedError` where the system ended the process, as it
    does when memory runs out.
    """
    import numpy as np

    request = {
        "path": str(Path(path).absolute()),
        "source": {"batch": source.batch, "sequence": source.sequence, "seed": source.seed},
        "settings": plain(settings),
        "steps": min(steps, 1),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="graphprune.", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
            np.savez(folder / _ARRAYS, **source.arrays)  # type: ignore[arg-type]
            return _asked(path, folder)
    except OSError as error:
        raise RunError(f"cannot measure {path} in a process of its own: {error.strerror or error}") from error


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them, by the names of their fields."""
    return {
        "providers": list(settings.providers),
        "threads": settings.threads,
        "level": settings.level,
        "memory": settings.memory,
        "binding": settings.binding,
        "cache": None if settings.cache is None else str(settings.cache),
        "provider_options": {name: dict(given) for name, given in settings.provider_options.items()},
    }


def _asked(path: str | Path, folder: Path) -> Usage:
    """What the child says that is started in `folder`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if child.returncode < 0:
        raise EndedError(f"{path}: the process that measured it was ended by {_signal(-child.returncode)}")
    if not (folder / _ANSWER).exists():
        raise RunError(f"{path}: the process that measured it ended with exit code {child.returncode}")
    found: Mapping[str, Any] = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "error" in found:
        raise RunError(found["error"])
    return Usage(**found)


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    return f"{name}, as it is when memory runs out" if name == "SIGKILL" else name


def answer(folder: str) -> None:
    """What the child does: read what is asked in `folder`, and write the answer there."""
    place = Path(folder)
    try:
        found = asdict(_measured(json.loads((place / _REQUEST).read_text(encoding="utf-8")), place))
    except GraphpruneError as error:
        found = {"error": str(error)}
    part = place / f"{_ANSWER}.part"
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(place / _ANSWER)


def _measured(request: Mapping[str, Any], place: Path) -> Usage:
    from graphprune.inputs import make_inputs
    from graphprune.play import Source, play
    from graphprune.session import in_turn, open_session, runnable
    from graphprune.settings import Settings

    given = dict(request["settings"])
    cache = given.pop("cache")
    settings = Settings(**given | {"providers": tuple(given["providers"])}, cache=cache and Path(cache))
    source = Source(_arrays(place / _ARRAYS), **request["source"])
    files = runnable(request["path"])
    for path, _ in files:  # what a graph says of its inputs is read once, and kept
        if path.suffix == ".onnx":
            make_inputs(path, batch=1, sequence=1)
    _start_runtime(place, settings)
    gc.collect()
    _give_back()
    before = _memory()
    start = time.perf_counter()
    sessions = in_turn([open_session(path, name, settings) for path, name in files])
    load_ms = (time.perf_counter() - start) * 1e3
    loaded = _memory()
    calls = play(sessions, source, steps=request["steps"])
    after = _memory()
    del calls
    return Usage(load_ms, _above(loaded, before, 0), _above(after, before, 1))


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _start_runtime(place: Path, settings: Settings) -> None:
    """Load a model of one node, so that what the runtime itself takes is not the model's."""
    from dataclasses import replace

    import onnx
    from onnx import TensorProto, helper

    from graphprune.session import open_session

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "one", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = place / "one.onnx"
    onnx.save(model, path)
    open_session(path, path.name, replace(settings, cache=None))


def _give_back() -> None:
    """Give freed memory back to the system, and forget how much it once was: else it hides what comes."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    path, reset = _FORGET_PEAK
    try:
        path.write_text(reset)
    except OSError:  # not Linux, or not allowed: the peak so far stays in
        return


def _memory() -> tuple[float, float] | None:
    """The resident megabytes of this process, now and at most so far; None where the system does not tell."""
    try:
        lines = (line.split() for line in _STATUS.read_text(encoding="utf-8").splitlines())
        found = {words[0]: int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
        return found["VmRSS:"] * 1024 / 1e6, found["VmHWM:"] * 1024 / 1e6
    except (OSError, KeyError):
        return None


def _above(now: tuple[float, float] | None, before: tuple[float, float] | None, which: int) -> float | None:
    return max(now[which] - before[0], 0.0) if now and before else None
