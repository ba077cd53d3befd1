"""How important every block and every layer is, by several criteria, on the user's data.

All of them say what to try first, none what may go: `importance.criteria` has for each what it says, what it
does not, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.importance.criteria import CHEAP, STREAMED, require_criteria
from graphprune.importance.results import Measured, Ranked, Ranking, Scale, Stretch

if TYPE_CHECKING:
    from pathlib import Path

    from graphprune.architecture import Stack
    from graphprune.data.dataset import Batch, Data
    from graphprune.importance.change import Change, Meter
    from graphprune.importance.leaving import Losses
    from graphprune.settings import Settings

    Told = Callable[[str], None]

# Rows of the data that are named where the model goes wrong on them.
_NAMED = 3


@dataclass(frozen=True)
class _Findings:
    """What was found so far: criterion → id → value."""

    found: dict[str, Mapping[str, Measured]] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)

    def take(self, criterion: str, losses: Losses) -> None:
        self.found[criterion] = losses.found
        if losses.scale is not None:
            self.scales[criterion] = losses.scale

    def of(self, id: str, kind: str, by: Iterable[str]) -> Ranked:
        return Ranked(id, kind, {name: self.found[name].get(id, _NOT_RUN) for name in by})


_NOT_RUN = Measured(reason="it does not run on these inputs")


def rank(
    path: str | Path,
    data: Data | None = None,
    *,
    by: Iterable[str] = CHEAP,
    batch: int = 32,
    settings: Settings | None = None,
    on_step: Told = lambda step: None,
) -> Ranking:
    """Measure every block and layer of a bundle on `data`, by default a sample text, by the criteria `by`.

    "influence", "angular" and "norm" take one pass with the streams of one batch in memory, however much
    data there is. "loss" leaves each block and each layer out by a gated session, "healed" drops and repairs
    it; without the blocks of a layer, the norms after them are kept. `on_step` is told what is measured next.
    Raises `LoadError`, `SelectionError` for a criterion that there is not, and `RunError` where the model
    does not run on the data or its streams are not finite, or where nothing at all could be measured.
    """
    from graphprune.data.dataset import read_data
    from graphprune.importance.leaving import measure_healed, measure_losses

    by = require_criteria(by)
    data = data or read_data()
    stacks = _stacks(path)
    batches = data.batches(path, batch)
    streamed = tuple(name for name in by if name in STREAMED)
    findings = _Findings()
    meter = _metered(path, batches, streamed, settings, on_step) if streamed else None
    if meter is not None:
        findings.found.update({name: _first((*meter.blocks, *meter.layers), name) for name in streamed})
    if "loss" in by:
        findings.take("loss", measure_losses(path, data, batches, _groups(stacks), settings, on_step))
    if "healed" in by:
        findings.take("healed", measure_healed(path, data, batch, _groups(stacks), settings, on_step))
    ranking = Ranking(
        by, data.name, data.examples,
        tuple(findings.of(block.id, block.kind, by) for stack in stacks for block in stack.blocks),
        tuple(findings.of(id, "layer", by) for stack in stacks for id in _layers(stack)),
        _stretches(meter) if meter else (), findings.scales,
    )  # fmt: skip
    _require_any(path, ranking)
    return ranking


def _stacks(path: str | Path) -> tuple[Stack, ...]:
    """The stacks of a bundle, of copies the first. Raises `RunError` where there is none."""
    from graphprune.bundle import load
    from graphprune.survey import distinct_stacks, inspect

    stacks = distinct_stacks(inspect(load(path)))
    if not stacks:
        raise RunError(f"{path}: no blocks were found in it, so there is nothing to rank")
    return stacks


def _layers(stack: Stack) -> dict[str, list[str]]:
    """The blocks of each layer, by its name."""
    return {f"{stack.name}.{layer.index}": [block.id for block in layer.blocks] for layer in stack.layers}


def _groups(stacks: Iterable[Stack]) -> dict[str, list[str]]:
    """What is left out: every block, then every layer of more than one."""
    stacks = list(stacks)
    blocks = {block.id: [block.id] for stack in stacks for block in stack.blocks}
    return blocks | {name: ids for stack in stacks for name, ids in _layers(stack).items()}


def _metered(
    path: str | Path, batches: Sequence[Batch], by: tuple[str, ...], settings: Settings | None, told: Told
) -> Meter:
    """One pass over the data. Raises `RunError` where a stream is not finite."""
    from graphprune.importance.change import open_meter

    told("loading the model")
    meter = open_meter(path, by, settings)
    for number, batch in enumerate(batches, 1):
        told(f"looking at the streams, batch {number} of {len(batches)}")
        meter.add(batch.source)
        if meter.broken:
            raise _not_finite(path, *next(iter(meter.broken.items())), batch)
    return meter


def _not_finite(path: str | Path, id: str, places: tuple[int, ...], batch: Batch) -> RunError:
    rows = [int(batch.rows[place]) for place in places if place < len(batch.rows)]
    shown = ", ".join(map(str, rows[:_NAMED])) + (" …" if len(rows) > _NAMED else "")
    where = f"row {shown}" if rows else "some rows"
    return RunError(
        f"{path}: the stream at {id} is not finite for {where} of the data: the model overflows there, or "
        "these are no inputs for it: leave them out"
    )


def _first(changes: Iterable[Change], criterion: str) -> dict[str, Measured]:
    """The means of a criterion by id: of copies the first that there is, else the first reason."""
    found: dict[str, Measured] = {}
    for change in changes:
        mean = change.means[criterion]
        if change.id not in found or (found[change.id].value is None and mean.value is not None):
            found[change.id] = Measured(mean.value, reason=mean.reason)
    return found


def _stretches(meter: Meter) -> tuple[Stretch, ...]:
    found: dict[tuple[str, int], Stretch] = {}
    for change in meter.runs:
        mean, (stack, _, start) = change.means["angular"], change.id.rpartition(".")
        key = change.id, change.length
        if key not in found or (found[key].distance is None and mean.value is not None):
            found[key] = Stretch(stack, int(start), change.length, mean.value, mean.reason)
    return tuple(found.values())


def _require_any(path: str | Path, ranking: Ranking) -> None:
    """Raise `RunError` where nothing has a value, with the first reason."""
    found = [one for ranked in (*ranking.blocks, *ranking.layers) for one in ranked.found.values()]
    if not any(one.value is not None for one in found):
        raise RunError(f"{path}: nothing could be measured: {found[0].reason}")
