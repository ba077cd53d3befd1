"""What choices of blocks cost, by what every action on a block saves: seconds, parameters, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.errors import SelectionError

if TYPE_CHECKING:
    from graphprune.healing.choice import Action, Choice


@dataclass(frozen=True)
class Costs:
    """What a model costs: `total`, and what of it every action saves, by block.

    A patch is a linear map of full rank, too. Blocks that are not there can only be kept.
    """

    total: float
    saves: Mapping[Action, Mapping[str, float]]

    def of(self, choice: Choice) -> float:
        """The cost of a choice of blocks, as if those of its blocks added up."""
        return self.total - sum(self.saved(block, action) for block, action in choice.items())

    def knows(self, block: str, action: Action) -> bool:
        """Whether it is known what an action on a block saves."""
        return action == "keep" or block in self.saves.get(_alike(action), {})

    def saved(self, block: str, action: Action) -> float:
        """What an action on a block saves. Raises `SelectionError` where that is not known."""
        if not self.knows(block, action):
            raise SelectionError(f"what {block} costs with the action {action!r} was not measured")
        return 0.0 if action == "keep" else self.saves[_alike(action)][block]

    def scaled(self, factor: float) -> Costs:
        """The same with every cost multiplied by `factor`."""
        saves = {
            action: {block: cost * factor for block, cost in by.items()} for action, by in self.saves.items()
        }
        return Costs(self.total * factor, saves)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"total": self.total, "saves": {action: dict(by) for action, by in self.saves.items()}}

    @staticmethod
    def of_json(said: Mapping[str, Any]) -> Costs:
        """What `to_json` made."""
        return Costs(said["total"], said["saves"])


def _alike(action: Action) -> Action:
    return "linear" if action == "patch" else action
