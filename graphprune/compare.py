"""How far apart two models are, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError
from graphprune.play import Source, is_cache, play

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from graphprune.play import Arrays, Call
    from graphprune.settings import Settings


@dataclass(frozen=True)
class Difference:
    """How far one output of B is from the same output of A, over all positions that are not padding.

    `max_abs` and `mean_abs` of the elements; `cosine` along the last axis, the mean over
    positions; for logits also `kl`, the mean Kullback–Leibler divergence KL(A‖B) of their softmax
    in nats, and `top1`, the share of positions with the same largest class.
    """

    file: str
    output: str
    step: int
    max_abs: float
    mean_abs: float
    cosine: float
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Limits:
    """What `Difference`s may be at most (`max_…`) or at least (`min_…`); None sets no limit."""

    max_abs: float | None = None
    max_mean_abs: float | None = None
    max_kl: float | None = None
    min_cosine: float | None = None
    min_top1: float | None = None

    def broken(self, differences: Sequence[Difference]) -> tuple[str, ...]:
        """One line for every limit that a difference breaks; not-a-number breaks all of them.

        Raises `RunError` where a limit is about logits, and no output is called so.
        """
        lines = []
        for limit, value in asdict(self).items():
            if value is None:
                continue
            side, measure = limit.split("_", 1)
            measure = "max_abs" if limit == "max_abs" else measure
            found = [(d, getattr(d, measure)) for d in differences if getattr(d, measure) is not None]
            if not found:
                raise RunError(
                    f"--{limit.replace('_', '-')}: no output is called logits; name one by --logits"
                )
            for difference, at in found:
                if not (at <= value if side == "max" else at >= value):
                    lines.append(f"{difference.output}: {measure} {at:.4g}, allowed {side} {value:g}")
        return tuple(lines)


@dataclass(frozen=True)
class Verification:
    """All differences of two models, and the outputs that only one of them has."""

    differences: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def verify(
    a: str | Path,
    b: str | Path,
    source: Source | None = None,
    *,
    steps: int = 2,
    logits: str = "logits",
    settings: Settings | None = None,
) -> Verification:
    """Run two bundles on the same inputs and compare their outputs, caches apart.

    Files go together by name, or by place where both bundles have one. Models that take a cache
    are compared over `steps` further tokens too, each model with its own cache. `logits` is the
    part of an output's name by which logits are known. Raises `LoadError`, `RunError`.
    """
    from graphprune.session import open_sessions

    source = source or Source()
    runs = [play(open_sessions(path, settings), source, steps=steps) for path in (a, b)]
    first, second = (_by_place(calls) for calls in runs)
    differences = [
        _compare(call, other, output, logits, _mask(call))
        for key, call in first.items()
        if (other := second.get(key))
        for output in call.outputs
        if output in other.outputs and not is_cache(output)
    ]
    if not differences:
        raise RunError(f"{a} and {b} have no output in common: nothing to compare")
    return Verification(tuple(differences), _only(first, second), _only(second, first))


def _by_place(calls: Iterable[Call]) -> dict[tuple[str, int], Call]:
    """Calls by the file that was called, without what tells its format, and the step."""
    calls = list(calls)
    alone = len({call.session.name for call in calls}) == 1
    return {("" if alone else call.session.name.rpartition(".")[0], call.step): call for call in calls}


def _only(one: dict[tuple[str, int], Call], other: dict[tuple[str, int], Call]) -> tuple[str, ...]:
    """Outputs of `one` that `other` lacks."""
    found = []
    for (file, step), call in one.items():
        names = other[file, step].outputs if (file, step) in other else {}
        place = f"{call.session.name}:" if file else ""
        found += [f"{place}{name}" for name in call.outputs if step == 0 and name not in names]
    return tuple(found)


def _mask(call: Call) -> NDArray[np.bool_] | None:
    mask = call.feeds.get("attention_mask")
    return None if mask is None or mask.ndim != 2 else mask.astype(bool)


def _compare(a: Call, b: Call, output: str, logits: str, mask: NDArray[np.bool_] | None) -> Difference:
    one, two = (_positions(call.outputs, output, mask) for call in (a, b))
    if one.shape != two.shape:
        shapes = f"{list(a.outputs[output].shape)} and {list(b.outputs[output].shape)}"
        raise RunError(f"{output}: the two models give different shapes: {shapes}")
    return difference(one, two, file=a.session.name, output=output, step=a.step, logits=logits in output)


def _positions(outputs: Arrays, name: str, mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """An output as float64 [positions, width], without the positions that are padding."""
    import numpy as np

    array = np.atleast_1d(outputs[name]).astype(np.float64)
    if mask is not None and array.ndim >= 3 and array.shape[:2] == mask.shape:
        array = array[mask]
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def difference(
    one: NDArray[Any], two: NDArray[Any], *, file: str = "", output: str = "", step: int = 0, logits: bool
) -> Difference:
    """The `Difference` of two arrays [positions, width], of which no element need be finite."""
    import numpy as np

    if not one.size:
        return Difference(file, output, step, 0.0, 0.0, 1.0)
    with np.errstate(all="ignore"):
        error = np.abs(one - two)
        kl, top1 = _distributions(one, two) if logits else (None, None)
    return Difference(
        file, output, step, float(error.max()), float(error.mean()), float(cosines(one, two).mean()), kl, top1
    )


def cosines(one: NDArray[Any], two: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of every row of one array [rows, width] with the same row of another.

    Of a row of zeros it is 1 with another such row, else 0.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
        same = (one == two).all(axis=-1)
        found: NDArray[np.float64] = np.where(norms == 0, same, np.sum(one * two, axis=-1) / norms)
    return found


def divergences(one: NDArray[Any], two: NDArray[Any]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence, in nats, of each row of the scores `two` [rows, width] from `one`."""
    import numpy as np
    from scipy.special import log_softmax

    p, q = log_softmax(one, axis=-1), log_softmax(two, axis=-1)
    found: NDArray[np.float64] = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q)).sum(axis=-1)
    return found


def _distributions(one: NDArray[Any], two: NDArray[Any]) -> tuple[float, float]:
    same = one.argmax(axis=-1) == two.argmax(axis=-1)
    return float(divergences(one, two).mean()), float(same.mean())
