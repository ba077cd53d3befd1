"""Check a written model: valid ONNX, shapes that infer, a runtime that loads and runs it.

A source may already fail a check, as graphs full of contrib ops do. Then the pruned model is
not blamed for the same finding: the source is asked, but only once something is found.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from graphprune.errors import CheckError
from graphprune.inputs import make_inputs
from graphprune.reading import read_model
from graphprune.storage import write_model

# (batch, sequence, past) to try in turn until two have run. Some models take only one batch,
# and ONNX Runtime's GroupQueryAttention no prompt on top of a past in larger ones.
SHAPES = ((2, 7, 0), (1, 5, 3), (2, 1, 4), (1, 6, 0), (1, 1, 2))
_WANTED = 2

log = logging.getLogger(__name__)

Names = Sequence[str | None]
Finding = Callable[[Path], str | None]


@dataclass(frozen=True)
class CheckReport:
    """What held: the (batch, sequence, past) that ran, and what the source fails as well."""

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    tolerated: tuple[str, ...]


def check_model(
    path: str | Path,
    *,
    expected_inputs: Names,
    expected_outputs: Names,
    run: bool = True,
    source: Path | None = None,
    name: str | None = None,
) -> CheckReport:
    """Check a written model: ONNX's checker with shape inference, the signature, loading, a run.

    The names of inputs and outputs must be as expected, in that order. With `run`, outputs on
    random inputs of two shapes must be finite; without, weights are only mapped, so that a
    model of any size is checked in little memory. What `source`, the file that the model was
    made from, fails in the same way is tolerated. `name` stands for the file in messages.

    Raises `CheckError` with the file and, where one is to blame, the node.
    """
    path = Path(path)
    blame = partial(_blame, name or path.name, path, source)
    _check_signature(name or path.name, path, expected_inputs, expected_outputs)
    invalid = blame("the ONNX checker", _checker_error)
    unloadable = blame("loading it in ONNX Runtime", partial(_load_error, light=not run))
    shapes = () if not run or unloadable else _run(name or path.name, path, source)
    tolerated = tuple(text for text in (invalid, unloadable) if text)
    for text in tolerated:
        log.info("%s: tolerated, as the source fails in the same way: %s", name or path.name, text)
    return CheckReport(name or path.name, shapes, tolerated)


def _blame(name: str, path: Path, source: Path | None, stage: str, finding: Finding) -> str | None:
    """What `finding` says of `path`, if the source gives the same cause for it; else raise."""
    found = finding(path)
    if found is None:
        return None
    with _rewritten(source) as unpruned:
        before = None if unpruned is None else finding(unpruned)
    if before is not None and _causes(found) <= _causes(before):
        return found
    raise CheckError(f"{name} fails {stage}: {_cut(found)}; nothing was written")


@contextmanager
def _rewritten(source: Path | None) -> Iterator[Path | None]:
    """The source as graphprune reads and writes it, repairs and real weight files included."""
    if source is None:
        yield None
        return
    with TemporaryDirectory(prefix="graphprune.") as folder:
        path = Path(folder) / source.name
        write_model(read_model(source)[0], path, external="auto", metadata={})
        yield path


# ONNX Runtime stops at the first operator that it has no kernel for: without that one, it names the next.
_NO_KERNEL = re.compile(r"(find an implementation|find kernel) for \S+")


def _causes(finding: str) -> set[str]:
    """What a message complains of, without the names, paths and numbers of one model."""
    finding = _NO_KERNEL.sub(r"\1", finding)
    texts = (line.partition("==> Context")[0] for line in finding.splitlines())
    parts = (part for text in texts for part in text.split("(op_type:"))
    return {re.sub(r"'[^']*'|node name: [^)]*|\S*/\S*|\d+", "", part).strip() for part in parts}


def _check_signature(name: str, path: Path, inputs: Names, outputs: Names) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for kind, found, expected in (("inputs", graph.input, inputs), ("outputs", graph.output, outputs)):
        names = [value.name for value in found]
        if names != list(expected):
            wrong = sorted(map(str, set(names) ^ set(expected))) or "their order"
            raise CheckError(f"{name} has not the {kind} that were promised; they differ in {wrong}")


def _checker_error(path: Path) -> str | None:
    """What the checker and strict shape inference find; by path, so of any size.

    Where the checker refuses an op that only the runtime knows, the shapes are still inferred: what
    ails them would come to light, and look new, in a model that has lost that op.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        return "\n".join(filter(None, (_one_line(error), _inference_error(path))))
    except Exception as error:  # InferenceError and DecodeError share no base
        return _one_line(error)
    return None


def _inference_error(path: Path) -> str | None:
    model = onnx.load(path, load_external_data=False)
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        return _one_line(error)
    return None


def _load_error(path: Path, *, light: bool) -> str | None:
    try:
        _session(path, light=light)
    except Exception as error:  # the runtime's own exceptions share no public base
        return _one_line(error)
    return None


def _session(path: Path, *, light: bool) -> ort.InferenceSession:
    """A session for one use; a light one only maps the weights and optimizes nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    if light:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(name: str, path: Path, source: Path | None) -> tuple[tuple[int, int, int], ...]:
    """The first two of `SHAPES` that run with finite outputs.

    A shape that the source cannot run either is passed over; a fault of the pruned model
    alone raises `CheckError`.
    """
    return tuple(islice(_runnable(name, path, source), _WANTED))


def _runnable(name: str, path: Path, source: Path | None) -> Iterator[tuple[int, int, int]]:
    session = _session(path, light=False)
    for shape in SHAPES:
        found = _run_error(session, shape)
        if found is None:
            yield shape
        elif not _runs_neither(source, shape):
            batch, sequence, past = shape
            where = f"on random inputs (batch {batch}, sequence {sequence}, past {past})"
            raise CheckError(f"{name} fails {where}: {_cut(found)}; nothing was written")


def _runs_neither(source: Path | None, shape: tuple[int, int, int]) -> bool:
    with _rewritten(source) as unpruned:
        if unpruned is None:
            return False
        if _load_error(unpruned, light=False) is not None:
            return True
        return _run_error(_session(unpruned, light=False), shape) is not None


def _run_error(session: ort.InferenceSession, shape: tuple[int, int, int]) -> str | None:
    batch, sequence, past = shape
    feeds: Mapping[str, Any] = make_inputs(session, batch=batch, sequence=sequence, past=past)
    try:
        values = session.run(None, dict(feeds))
    except Exception as error:  # the runtime's own exceptions share no public base
        return _one_line(error)
    for output, value in zip(session.get_outputs(), values, strict=True):
        if isinstance(value, np.ndarray) and value.dtype.kind in "fV" and not _finite(value):
            return f"output {output.name!r} is not finite"
    return None


def _finite(value: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return bool(np.isfinite(value.astype(np.float32)).all())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _cut(text: str, limit: int = 400) -> str:
    text = text.replace("\n", "; ")
    return text if len(text) <= limit else text[: limit - 1] + "…"
