"""What a choice of blocks costs, in all the costs that a goal is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from graphprune.searching.costs import Costs

if TYPE_CHECKING:
    from pathlib import Path

    from graphprune.healing.choice import Choice
    from graphprune.play import Source
    from graphprune.searching.goals import Price
    from graphprune.searching.trials import Trials
    from graphprune.settings import Settings


@dataclass(frozen=True, eq=False)
class Pricing:
    """The costs by their names. An action of which the cost is not known counts as if it saved nothing."""

    costs: Mapping[str, Costs]

    @cached_property
    def dense(self) -> Price:
        """The price of the dense model."""
        return {name: costs.total for name, costs in self.costs.items()}

    def of(self, choice: Choice) -> Price:
        """The price of a choice."""
        return {name: costs.of(_known(costs, choice)) for name, costs in self.costs.items()}


def _known(costs: Costs, choice: Choice) -> Choice:
    return {block: action for block, action in choice.items() if costs.knows(block, action)}


def price_model(
    model: Path,
    names: Sequence[str],
    sources: Sequence[Source],
    settings: Settings,
    steps: int,
    trials: Trials,
) -> Pricing:
    """What the blocks of a model cost, in the costs `names`; what was measured is remembered with the trials.

    Raises `LoadError`, `RunError`.
    """
    from graphprune.searching.counting import count_costs
    from graphprune.searching.latency import measure_costs

    costs: dict[str, Costs] = {}
    if "latency" in names:
        cells = [(one.batch, one.sequence, bool(one.arrays)) for one in sources]
        how = f"{settings.providers}, {settings.threads} threads, {settings.level}"
        key = f"latency at {cells}, {steps} steps, with {how}"
        measured = trials.remember(
            key, lambda: measure_costs(model, sources, settings, steps=steps).to_json()
        )
        costs["latency"] = Costs.of_json(measured)
    if set(names) - {"latency"}:
        counted = count_costs(model, sources)
        costs |= {name: counted[name] for name in names if name != "latency"}
    return Pricing(costs)
