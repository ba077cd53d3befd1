"""Heal blocks that the user names: from a model and selections to a pruned and healed model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast, get_args

from graphprune.architecture import BlockKind
from graphprune.errors import SelectionError
from graphprune.healing.calibration import open_calibration
from graphprune.healing.choice import Action
from graphprune.healing.healed import Healing
from graphprune.selection import select_blocks

if TYPE_CHECKING:
    from graphprune.architecture import Architecture
    from graphprune.data.dataset import Data
    from graphprune.healing.repairs import Repairs
    from graphprune.pipeline import Pruned
    from graphprune.settings import Settings


@dataclass(frozen=True, eq=False)
class Healed:
    """A pruned and healed bundle, not written yet, and how it came to be.

    `healing` has the steps, the error and the score; `dense` is the dense model's score, both by `metric`.
    """

    healing: Healing
    pruned: Pruned
    metric: str
    dense: float

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write and check the model, with the fitted values beside it, all or nothing.

        Raises `SaveError`, `CheckError`.
        """
        from graphprune.healing.building import VALUES, Built, save_values

        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            values = Path(folder) / VALUES
            save_values(values, self.healing.values())
            return Built(self.pruned, values).write(Path(out), overwrite=overwrite)


def heal(
    model: str | Path,
    data: Data | None = None,
    *,
    drop: str | Iterable[str] = (),
    linear: str | Iterable[str] = (),
    mean: str | Iterable[str] = (),
    half: str | Iterable[str] = (),
    quarter: str | Iterable[str] = (),
    eighth: str | Iterable[str] = (),
    repairs: Repairs | None = None,
    settings: Settings | None = None,
) -> Healed:
    """Take blocks out of a model, or replace them, and fit what is left to the dense model, in closed form.

    `drop` and the others are selections: layers (`2-4`: all of their blocks) and blocks
    (`encoder.1.ffn`), or blocks of one kind (`ffn:1-3`); several in a list. What is named by `linear` gets
    one linear map in its place, by `mean` a constant, by `half`, `quarter` and `eighth` an FFN of so many of
    its neurons. Three quarters of `data` (a sample text by default) are
    fitted to, the rest judges which repairs are kept. Raises `SelectionError`, `RunError`, `LoadError`.
    """
    from graphprune.bundle import load
    from graphprune.data.dataset import read_data
    from graphprune.healing.building import build
    from graphprune.survey import inspect

    bundle = load(model)
    asked = {
        "drop": drop, "linear": linear, "mean": mean, "half": half, "quarter": quarter, "eighth": eighth,
    }  # fmt: skip
    selections = {action: _listed(one) for action, one in asked.items()}
    choice = choice_of([file.architecture for file in inspect(bundle)], selections)
    opened = open_calibration(model, data or read_data(), settings=settings, repairs=repairs)
    healing = opened.heal(choice)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        pruned = build(bundle, choice, healing, Path(folder)).pruned
    return Healed(healing, pruned, opened.judge.metric, opened.judge.dense)


def choice_of(
    architectures: Iterable[Architecture], selections: Mapping[str, Iterable[str]]
) -> Mapping[str, Action]:
    """The action on every block that selections name, which are listed by action.

    Raises `SelectionError` where they name none, one that is not there, or one twice.
    """
    choice: dict[str, Action] = {}
    for architecture in architectures:
        for action, selected in selections.items():
            for id in (block for one in selected for block in _selected(architecture, one)):
                if choice.setdefault(id, cast(Action, action)) != action:
                    raise SelectionError(f"{id} is named for {choice[id]} and for {action}: name it once")
    if not choice:
        raise SelectionError("no block is named: say what to drop, or to replace by a linear or a mean")
    return MappingProxyType(choice)


def _selected(architecture: Architecture, text: str) -> Iterable[str]:
    """The ids that `ffn:1-3` or `1-3` names."""
    kinds: tuple[BlockKind, ...] = get_args(BlockKind)
    kind, colon, rest = text.partition(":")
    if colon and kind in kinds:
        return [block.id for block in select_blocks(architecture, rest, (kind,))]
    return [block.id for block in select_blocks(architecture, text, kinds)]


def _listed(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) and given else list(given)
