"""How much time the blocks of a model take, measured on pruned models in turns with the dense one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.searching.costs import Costs
from graphprune.searching.probes import Group, costs_of, groups_of, probes

if TYPE_CHECKING:
    from graphprune.bundle import Bundle
    from graphprune.healing.choice import Action
    from graphprune.play import Source
    from graphprune.settings import Settings
    from graphprune.timing import Bench

    Bencher = Callable[..., Bench]
    # A size of input, and the phase.
    Cell = tuple[int, int, str]

# How often every model is loaded; the rounds that it then runs first, and that do not count; and how many of
# the others there are at least, and at most.
_LOADS, _WARMUP, _FEWEST, _MOST = 2, 1, 8, 60


def measure_costs(
    path: str | Path,
    sources: Sequence[Source],
    settings: Settings | None = None,
    *,
    steps: int = 0,
    seconds: float = 20.0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Costs:
    """Seconds of one pass over a model, and what its blocks have in it.

    For every group of blocks that are alike, models without half of them, and with linear maps and constants
    in their place, are written to a temporary folder and timed beside the dense one (`timing.bench`, which
    `settings`, `steps` and `clock` are for). Sources, and the phases of models with a cache, count alike:
    `total` is the mean of their seconds, and of what a block saves, as a share, the mean is taken. All this
    takes about `seconds`, or more where the fewest rounds take longer. Raises `LoadError`; `RunError`, also
    where the model takes none of the sources.
    """
    from graphprune.bundle import load
    from graphprune.timing import bench

    timed = partial(bench, source=sources, steps=steps, settings=settings, footprint=False, clock=clock)
    bundle, dense = load(path), Path(path)
    groups = groups_of(bundle)
    totals = {
        cell: [one]
        for cell, one in _seconds(timed([dense], rounds=2, loads=1, warmup=_WARMUP), dense).items()
    }
    each = sum(one[0] for one in totals.values()) * sum(1 + group.probed for group in groups)
    rounds = int(min(max(seconds / max(each, 1e-9) - _LOADS * (_WARMUP + 1), _FEWEST), _MOST))
    shares: dict[Group, dict[Action, list[float]]] = {}
    for group in groups:
        found = _timed(bundle, dense, group, partial(timed, rounds=rounds, loads=_LOADS, warmup=_WARMUP))
        if found is None:
            continue
        shares[group], again = found
        for cell, one in again.items():
            totals.setdefault(cell, []).append(one)
    return costs_of(fmean(median(all) for all in totals.values()), shares)


def _timed(
    bundle: Bundle, dense: Path, group: Group, timed: Bencher
) -> tuple[dict[Action, list[float]], dict[Cell, float]] | None:
    """The shares that the probes of a group save in each cell, and the dense model's seconds."""
    try:
        with TemporaryDirectory(prefix="graphprune.", ignore_cleanup_errors=True) as folder:
            models: dict[Action, Path] = {}
            for action, pruned in probes(bundle, group, Path(folder)).items():
                name = action if bundle.folder is not None else f"{action}.onnx"
                models[action] = pruned.save(Path(folder) / name, run=False)
            if not models:
                return None
            found = timed([dense, *models.values()])
    except OSError as error:
        raise RunError(
            f"cannot write temporary files to time the blocks of {dense}: {error.strerror or error}"
        ) from error
    ratios = {action: _ratios(found, model) for action, model in models.items()}
    cells = [cell for cell in _seconds(found, dense) if all(cell in one for one in ratios.values())]
    shares = {action: [1 - one[cell] for cell in cells] for action, one in ratios.items()}
    return shares, _seconds(found, dense)


def _seconds(found: Bench, model: Path) -> dict[Cell, float]:
    timings = (one for one in found.timings if one.model == str(model))
    return {(one.batch, one.sequence, one.phase): one.median / 1e3 for one in timings}


def _ratios(found: Bench, model: Path) -> dict[Cell, float]:
    """To the dense model, in the cells in which both were timed."""
    timings = (one for one in found.timings if one.model == str(model))
    return {(one.batch, one.sequence, one.phase): one.ratio for one in timings if one.ratio is not None}
