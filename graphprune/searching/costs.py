"""What choices of blocks cost, by what every block costs: seconds, parameters, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphprune.errors import SelectionError

if TYPE_CHECKING:
    from graphprune.healing.choice import Action, Choice


@dataclass(frozen=True)
class Costs:
    """What a model costs: `total`, and of it what goes with each block.

    `blocks` is what dropping one saves, `linears` what a linear map of full rank in its place adds to that (a
    patch is one, too), `means` a constant. Blocks that are not there can only be kept.
    """

    total: float
    blocks: Mapping[str, float]
    linears: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)

    def of(self, choice: Choice) -> float:
        """The cost of a choice of blocks, as if those of its blocks added up."""
        return self.total - sum(self.saved(block, action) for block, action in choice.items())

    def saved(self, block: str, action: Action) -> float:
        """What an action on a block saves. Raises `SelectionError` where that is not known."""
        if action == "keep":
            return 0.0
        added = {
            "drop": self.blocks, "mean": self.means, "linear": self.linears, "patch": self.linears,
        }[action]  # fmt: skip
        if block not in self.blocks or block not in added:
            raise SelectionError(f"what {block} costs with the action {action!r} was not measured")
        return self.blocks[block] - (0.0 if action == "drop" else added[block])

    def scaled(self, factor: float) -> Costs:
        """The same with every cost multiplied by `factor`."""
        parts = (
            {block: cost * factor for block, cost in one.items()}
            for one in (self.blocks, self.linears, self.means)
        )
        return Costs(self.total * factor, *parts)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "total": self.total, "blocks": dict(self.blocks), "linears": dict(self.linears),
            "means": dict(self.means),
        }  # fmt: skip

    @staticmethod
    def of_json(said: Mapping[str, Any]) -> Costs:
        """What `to_json` made."""
        return Costs(said["total"], said["blocks"], said["linears"], said["means"])
