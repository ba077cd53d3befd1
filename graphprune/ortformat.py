"""ONNX Runtime's own format, `.ort`: writing it, listing the operators that it needs, knowing it when read.

A file in this format holds a graph that is optimized already, with its weights, at most 2 GiB in all. A
build of the runtime with only the listed operators can run it
(https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html).

`onnxruntime.tools.convert_onnx_models_to_ort` does the same for a command line: it takes the level from
an environment variable and prints. So the session is opened here, with that tool's options.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from graphprune.errors import RunError, SaveError
from graphprune.hints import Hint, read_hint, required_inputs
from graphprune.settings import Level, Settings, session_options

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIX = ".ort"
# A flatbuffer counts its bytes in 31 bits.
LIMIT = 2**31 - 1

Style = Literal["fixed", "runtime"]
Platform = Literal["any", "arm", "native"]

# Where a file says what its graph said of its inputs; ONNX Runtime keeps a model's metadata.
_INPUTS = "graphprune.inputs"
_MINIMAL = "optimization.minimal_build_optimizations"


@dataclass(frozen=True)
class Conversion:
    """How to convert: `level` is how far the graph is optimized before it is written.

    With the style "fixed" the file holds the optimized graph. With "runtime" it is optimized by ONNX
    operators alone, and notes which nodes could be fused (quantized ones, convolutions): for a device that
    takes some of the nodes first (NNAPI, CoreML). The rest is fused when the file is loaded with
    `session.enable_saved_runtime_optimizations`.

    The file runs on "any" platform, is meant for "arm" (int8 stays int8, where x86 is quicker with uint8), or
    is for processors like this one only ("native": convolutions in blocks as wide as its registers).
    Raises `RunError` for what does not exist.
    """

    level: Level = "all"
    style: Style = "fixed"
    platform: Platform = "any"

    def __post_init__(self) -> None:
        Settings(level=self.level)
        for what, given, there in (("style", self.style, Style), ("platform", self.platform, Platform)):
            if given not in get_args(there):
                raise RunError(f"there is no {what} {given!r}: choose one of {', '.join(get_args(there))}")


def convert(model: Path, target: Path, how: Conversion) -> None:
    """Write the .onnx file `model` to `target`. Raises `SaveError` where ONNX Runtime cannot."""
    _write(model, target, how, "save" if how.style == "runtime" else None)


def write_operators(files: Mapping[Path, Path], target: Path, how: Conversion, *, types: bool = False) -> int:
    """Write the operators that the `.ort` files need, by domain and opset; how many there are.

    `files` maps them to the models that they were made from. With `types` the types of tensors that each
    operator is used with go along. This is what `--include_ops_by_config` of ONNX Runtime's build takes.
    """
    needed = [*files, *_fused(files.values(), how)]
    with as_library():
        from onnxruntime.tools.ort_format_model import create_config_from_models
        from onnxruntime.tools.reduced_build_config_parser import parse_config

        create_config_from_models(needed, target, types)
        operators, _ = parse_config(str(target))
    text = target.read_text(encoding="utf-8").splitlines()
    names = [f"# - {file.name}" for file in sorted(files)]
    target.write_text("\n".join([text[0], *names, *(t for t in text if t[0] != "#"), ""]), encoding="utf-8")
    return len({(domain, op) for domain, sets in operators.items() for ops in sets.values() for op in ops})


def _fused(models: Iterable[Path], how: Conversion) -> Iterator[Path]:
    """With the style "runtime", the same models as they are once all that is noted is fused."""
    for model in models if how.style == "runtime" else ():
        target = model.with_suffix(f".fused{SUFFIX}")
        _write(model, target, how, "apply")
        yield target


def _write(model: Path, target: Path, how: Conversion, minimal: str | None) -> None:
    import onnxruntime as ort

    options = session_options(Settings(level=how.level))
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    entries = {"session.save_model_format": "ORT", "session.disable_prepacking": "1"}
    if how.platform != "native":
        entries["session.qdqisint8allowed"] = str(int(how.platform == "arm"))
    if minimal:
        entries[_MINIMAL] = minimal
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    left_out = [] if how.platform == "native" else ["NchwcTransformer"]
    try:
        ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except Exception as error:  # the runtime's own exceptions share no public base
        why = " ".join(str(error).split())
        raise SaveError(f"{model.name}: ONNX Runtime cannot write it in its own format: {why}") from error


@contextmanager
def as_library() -> Iterator[None]:
    """Use modules of `onnxruntime.tools`, which are command-line programs, and undo what they leave behind.

    They print, leave files open, give the root logger a handler, and add to `sys.path`; the package imports
    torch if it is there, for another tool.
    """
    silent, path = logging.NullHandler(), list(sys.path)
    blocked = "torch" not in sys.modules and "onnxruntime.tools" not in sys.modules
    if blocked:
        sys.modules["torch"] = None  # type: ignore[assignment]
    logging.root.addHandler(silent)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.root.removeHandler(silent)
        sys.path[:] = path
        if blocked:
            del sys.modules["torch"]


def packaged(path: str | Path) -> tuple[tuple[Path, str], ...]:
    """The `.ort` files at `path` with their names, if it is one, or a folder with some and no .onnx file.

    They come in the order of the .onnx files that they were made from.
    """
    path = Path(path)
    if path.suffix == SUFFIX and path.is_file():
        return ((path, path.name),)
    found = [file for sub in ("*", "onnx/*") for file in path.glob(sub) if not file.name.startswith(".")]
    if any(file.suffix == ".onnx" for file in found):
        return ()
    files = [file for file in found if file.suffix == SUFFIX and file.is_file()]
    files.sort(key=lambda file: file.with_suffix(".onnx"))
    return tuple((file, file.relative_to(path).as_posix()) for file in files)


def noted_inputs(model: ir.Model) -> dict[str, str]:
    """Metadata that keeps what the graph says of its inputs, which nobody can read off a `.ort` file."""
    hints = {name: asdict(read_hint(value)) for name, value in required_inputs(model.graph).items()}
    defaults = asdict(Hint())
    told = {name: {k: v for k, v in one.items() if v != defaults[k]} for name, one in hints.items()}
    return {_INPUTS: json.dumps(told)}


def read_notes(metadata: Mapping[str, str]) -> dict[str, Hint]:
    """What `noted_inputs` wrote, by the names of inputs; nothing for a file of somebody else."""
    from pydantic import TypeAdapter, ValidationError

    try:
        told = TypeAdapter(dict[str, Hint]).validate_json(metadata.get(_INPUTS, "{}"))
    except ValidationError:
        return {}
    return {name: hint for name, hint in told.items() if _possible(hint)}


def _possible(hint: Hint) -> bool:
    sizes = (hint.limit, hint.channels, hint.stride, hint.head)
    return all(size is None or size > 0 for size in sizes) and (hint.positions is None or hint.positions > 1)
