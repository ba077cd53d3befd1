"""Keep what ONNX Runtime makes of a model when it loads it, so that the next load is quicker.

A folder holds one entry for every model, version of ONNX Runtime, level, provider and machine:
optimized graphs may use layouts and kernels that another machine lacks.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import LoadError, SaveError
from graphprune.reading import read_model
from graphprune.weights import external_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphprune.settings import Settings

_GRAPH, _WEIGHTS = "model.onnx", "weights"
_CHUNK = 1 << 20


def optimized(
    path: Path, settings: Settings, cache: Path, providers: tuple[str, ...], load: Callable[[Path, Any], Any]
) -> Path:
    """The optimized graph of the file at `path`, made by `load` (a session, given the options) if it is new.

    Raises `LoadError`, and `SaveError` where the folder `cache` cannot be written.
    """
    from graphprune.settings import keep_optimized, session_options

    folder = cache / f"{path.stem}-{_key(path, settings, providers)}"
    if (folder / _GRAPH).is_file():
        return folder / _GRAPH
    options = session_options(settings)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new.", ignore_cleanup_errors=True) as name:
            made = Path(name) / folder.name
            made.mkdir()
            keep_optimized(options, made / _GRAPH, _WEIGHTS)
            load(path, options)
            _put(made, folder)
    except OSError as error:
        raise SaveError(
            f"cannot keep the optimized model in {cache}: {error.strerror or error}; name another folder"
        ) from error
    return folder / _GRAPH


def _put(made: Path, folder: Path) -> None:
    """Move a finished entry to its place, unless another process was quicker."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / _GRAPH).is_file():
            raise
        shutil.rmtree(made, ignore_errors=True)


def _key(path: Path, settings: Settings, providers: tuple[str, ...]) -> str:
    import onnxruntime as ort

    digest = hashlib.sha256()
    for one in (ort.__version__, settings.level, *providers, platform.machine(), _processor()):
        digest.update(one.encode() + b"\0")
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        model, _ = read_model(path)
        for data in sorted(external_files(model)):
            state = data.stat()
            digest.update(f"{data} {state.st_size} {state.st_mtime_ns}".encode())
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What kernels are chosen by: the processor's model and its instructions, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    return "".join(told.get(key, "") for key in ("model name", "flags", "Features"))
