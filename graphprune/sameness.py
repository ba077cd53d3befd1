"""Whether a model in another form puts out what it did before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import CheckError, RunError
from graphprune.play import Source, play
from graphprune.session import open_sessions
from graphprune.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphprune.play import Arrays
    from graphprune.settings import Level

# How far outputs may be from the source's; or as far as the source's own are from those that it has when
# ONNX Runtime does not optimize it, and half as much again.
TOLERANCE, SLACK = 1e-4, 1.5


def gap(source: Path, made: Path, inputs: Source, *, steps: int, level: Level, lenient: bool) -> float | str:
    """How far the outputs of the bundle `made` are from those of `source`, on the same inputs.

    The largest difference of any output over its largest value, or over 1. With `lenient`, what the source
    says that cannot be run on these inputs. Raises `CheckError` where it is too far, `RunError`, `LoadError`.
    """
    try:
        before = _outputs(source, inputs, steps, level)
    except RunError as error:
        if lenient:
            return str(error)
        raise
    found = _apart(before, _outputs(made, inputs, steps, level))
    if found <= TOLERANCE:
        return found
    allowed = max(TOLERANCE, SLACK * _apart(before, _outputs(source, inputs, steps, "disabled")))
    if not found <= allowed:
        raise CheckError(
            f"the outputs of the package are {found:.2g} off the source's (over the largest), where "
            f"{allowed:.2g} is allowed; nothing was written"
        )
    return found


def _outputs(path: Path, inputs: Source, steps: int, level: Level) -> list[Arrays]:
    """What every call puts out; the sessions, which hold the weights, are gone then."""
    return [call.outputs for call in play(open_sessions(path, Settings(level=level)), inputs, steps=steps)]


def _apart(before: Sequence[Arrays], after: Sequence[Arrays]) -> float:
    gaps = (
        _gap(array, others.get(name))
        for outputs, others in zip(before, after, strict=True)
        for name, array in outputs.items()
    )
    return max(gaps, default=0.0)


def _gap(one: Any, other: Any) -> float:
    """Of two outputs, arrays or lists of them; infinite where shapes differ, or what is no number.

    Values that are not finite must be the same.
    """
    import numpy as np

    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_gap, one, other), default=0.0)
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return 0.0 if type(one) is type(other) and one == other else float("inf")
    if one.shape != other.shape or one.dtype.kind not in "fiubV":
        return 0.0 if np.array_equal(one, other) else float("inf")
    a, b = (array.astype(np.float64) for array in (one, other))
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(a).max(initial=0.0)))
