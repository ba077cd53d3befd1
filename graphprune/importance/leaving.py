"""What is lost where a block or a layer is left out: as it is, and after healing what stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.importance.results import Measured, Scale

if TYPE_CHECKING:
    from pathlib import Path

    from graphprune.data.dataset import Batch, Data
    from graphprune.data.judging import Judge
    from graphprune.healing.calibration import Calibration
    from graphprune.scoring import Scorer
    from graphprune.settings import Settings

    # The blocks that are left out together, by the name of the block or layer that they make.
    Groups = Mapping[str, Collection[str]]
    Told = Callable[[str], None]


_BROKEN = "without it the outputs are not finite, or all the same"


@dataclass(frozen=True)
class Losses:
    """What is known of each of the groups, and what its scores are told against."""

    found: Mapping[str, Measured]
    scale: Scale | None = None


def measure_losses(
    path: str | Path,
    data: Data,
    batches: Sequence[Batch],
    groups: Groups,
    settings: Settings | None,
    told: Told,
) -> Losses:
    """Leave out each group of blocks by one session, the norms after them kept: the share of quality lost.

    Raises `LoadError`, `SelectionError`, and `RunError` where the dense model's outputs cannot be judged.
    """
    from graphprune.data.judging import open_judge
    from graphprune.scoring import open_scorer

    try:
        scorer = open_scorer(path, [batch.source for batch in batches], settings)
    except RunError as error:
        return Losses(dict.fromkeys(groups, Measured(reason=str(error))))
    judge = open_judge(data, batches, scorer.outputs())
    found = {name: _lost(scorer, judge, blocks) for name, blocks in _each(groups, told)}
    return Losses(found, _scale(judge))


def _lost(scorer: Scorer, judge: Judge, blocks: Collection[str]) -> Measured:
    reason = _missing(blocks, scorer.blocks, scorer.declined)
    if reason:
        return Measured(reason=reason)
    try:
        score = judge.score(scorer.outputs(blocks))
    except RunError as error:
        return Measured(reason=str(error))
    if score - score != 0:
        return Measured(reason=_BROKEN)
    return Measured(1 - judge.kept(score), score)


def measure_healed(
    path: str | Path, data: Data, batch: int, groups: Groups, settings: Settings | None, told: Told
) -> Losses:
    """Drop each group of blocks and heal what stays; the error that remains on rows held out of the fit.

    A quarter of the examples is held out, and judged. Raises `LoadError`, `SelectionError`.
    """
    from graphprune.healing.calibration import open_calibration

    told("collecting what the dense model computes")
    try:
        calibration = open_calibration(path, data, settings=settings, batch=batch)
    except RunError as error:
        return Losses(dict.fromkeys(groups, Measured(reason=str(error))))
    found = {name: _remains(calibration, blocks) for name, blocks in _each(groups, told)}
    return Losses(found, _scale(calibration.judge))


def _remains(calibration: Calibration, blocks: Collection[str]) -> Measured:
    droppable = [block for block, actions in calibration.actions.items() if "drop" in actions]
    reason = _missing(blocks, droppable, calibration.declined)
    if reason:
        return Measured(reason=reason)
    try:
        healing = calibration.heal(dict.fromkeys(blocks, "drop"))
    except RunError as error:
        return Measured(reason=str(error))
    if healing.error - healing.error != 0:
        return Measured(reason=_BROKEN)
    return Measured(healing.error, healing.score if healing.score == healing.score else None)


def _each(groups: Groups, told: Told) -> Iterator[tuple[str, Collection[str]]]:
    for number, (name, blocks) in enumerate(groups.items(), 1):
        told(f"without {name} ({number} of {len(groups)})")
        yield name, blocks


def _missing(blocks: Collection[str], known: Collection[str], declined: Mapping[str, str]) -> str:
    """Why the blocks cannot be left out together; "" where they can."""
    missing = next((block for block in blocks if block not in known), None)
    if missing is None:
        return ""
    reason = declined.get(missing, "it is not among those that can be left out")
    return reason if len(blocks) == 1 else f"{missing}: {reason}"


def _scale(judge: Judge) -> Scale:
    return Scale(judge.metric, judge.better, judge.dense)
