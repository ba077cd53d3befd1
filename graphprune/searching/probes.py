"""Pruned models by which the costs of blocks are found: blocks that are alike are taken out together.

What one block costs is told best by a model without half of its kind: one alone goes under in the noise of
timing, and what a search finds lacks about as many.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphprune.errors import EditError, RunError, SelectionError
from graphprune.healing.building import droppable, plain_recipe, save_values
from graphprune.healing.choice import SHARES
from graphprune.searching.costs import Costs
from graphprune.surgery import Neurons, ffn_neurons, place_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.architecture import Stack
    from graphprune.bundle import Bundle
    from graphprune.healing.choice import Action
    from graphprune.pipeline import Pruned

log = logging.getLogger(__name__)

# What is measured of FFNs with less neurons; what others save follows from it.
PROBED: Action = "quarter"
_STAND_INS: frozenset[Action] = frozenset(("linear", "mean"))


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks of one stack that are alike: the same kind, as many parameters and products.

    `gone` are those that its probes lack, every second one. `stood_in` are the widths of the blocks of the
    stack that a linear or a constant can stand in for; empty but in one group of the stack, for all of it.
    `neurons` is how many an FFN of the group has that can lose some; 0 where none can.
    """

    members: tuple[str, ...]
    gone: tuple[str, ...]
    stood_in: Mapping[str, int] = field(default_factory=dict)
    neurons: int = 0

    @property
    def probed(self) -> int:
        """How many models its probes are."""
        return 1 + 2 * bool(self.stood_in) + bool(self.neurons)


# The share that the probes of each group save, by the action on the blocks that they lack: one for each cell,
# such as a size of input.
Shares: TypeAlias = "Mapping[Group, Mapping[Action, Sequence[float]]]"


def groups_of(bundle: Bundle) -> tuple[Group, ...]:
    """The groups of all stacks of a bundle, copies of a stack once."""
    from graphprune.survey import distinct_stacks, inspect

    files = inspect(bundle)
    able = {id for file in files for id in droppable(file.architecture)}
    return tuple(group for stack in distinct_stacks(files) for group in _groups(stack, able))


def _groups(stack: Stack, able: set[str]) -> Iterator[Group]:
    alike: dict[object, list[str]] = {}
    for block in stack.blocks:
        if block.droppable and block.id in able:
            alike.setdefault((block.kind, block.parameters, block.macs), []).append(block.id)
    found = {block.id: place_for(block) for block in stack.blocks}
    widths = {id: place.width for id, place in found.items() if not isinstance(place, str)}
    neurons = {block.id: ffn_neurons(block) for block in stack.blocks if block.kind == "ffn"}
    groups = [
        Group(tuple(ids), tuple(ids[1::2] or ids), {}, _least(neurons.get(one, "") for one in ids))
        for ids in alike.values()
    ]
    fitting = [group for group in groups if widths.keys() >= set(group.gone)]
    first = max(fitting, key=lambda group: len(group.gone), default=None)
    for group in groups:
        yield replace(group, stood_in=widths) if group is first else group


def _least(found: Iterable[Neurons | str]) -> int:
    """The number of neurons of FFNs that are alike; 0 where those of one are not known."""
    return min((0 if isinstance(one, str) else one.count for one in found), default=0)


def probes(bundle: Bundle, group: Group, folder: Path) -> dict[Action, Pruned]:
    """Models without the blocks of a group that are `gone`, and with what can stand in their place.

    `folder` takes the values for as long as they are used. There are none where those blocks cannot be
    dropped, which is logged.
    """
    from graphprune.pipeline import prune
    from graphprune.recipe import from_options

    options: dict[str, object]
    try:
        found: dict[Action, Pruned] = {
            "drop": prune(bundle, recipe=plain_recipe(bundle, dict.fromkeys(group.gone, "drop")))
        }
    except (EditError, RunError, SelectionError) as error:
        log.info("what %s cost is not known: %s", ", ".join(group.gone), error)
        return {}
    if group.stood_in:
        values = folder / "values.npz"
        save_values(values, _some_values(group))
        options = {"blocks": group.gone, "values": str(values)}
        found["linear"] = prune(bundle, recipe=from_options({"replace_linear": options}))
        found["mean"] = prune(bundle, recipe=from_options({"replace_mean": options}))
    if kept := int(group.neurons * SHARES[PROBED]):
        values = folder / "neurons.npz"
        save_values(values, {f"{block}/neurons": np.arange(kept) for block in group.gone})
        options = {"blocks": group.gone, "values": str(values)}
        found[PROBED] = prune(bundle, recipe=from_options({"narrow_ffn": options}))
    return found


def _some_values(group: Group) -> dict[str, NDArray[Any]]:
    """Random values to stand in for blocks: any cost the same."""
    rng = np.random.default_rng(0)
    values: dict[str, NDArray[Any]] = {}
    for block in group.gone:
        width = group.stood_in[block]
        values[f"{block}/linear"] = rng.normal(0, 0.01, (width, width)).astype(np.float32)
        values[f"{block}/constant"] = rng.normal(0, 0.01, width).astype(np.float32)
    return values


def costs_of(total: float, shares: Shares) -> Costs:
    """The costs of all blocks of a model that costs `total`.

    Cells count alike, however large: of what is saved in each the mean is taken.
    """
    saves: dict[Action, dict[str, float]] = {}
    added: dict[Action, dict[str, float]] = {}
    for group, by in shares.items():
        saved = {action: total * fmean(cells) / len(group.gone) for action, cells in by.items()}
        whole = max(saved["drop"], 0.0)
        saves.setdefault("drop", {}).update(dict.fromkeys(group.members, whole))
        for action in _STAND_INS & saved.keys():
            added.setdefault(action, {}).update(dict.fromkeys(group.stood_in, saved["drop"] - saved[action]))
        if PROBED in saved:
            each = saved[PROBED] / (1 - SHARES[PROBED])  # of all neurons
            for action, share in SHARES.items():
                some = min(max(each * (1 - share), 0.0), whole)
                saves.setdefault(action, {}).update(dict.fromkeys(group.members, some))
    for action, costs in added.items():
        saves[action] = {
            block: saves["drop"][block] - max(cost, 0.0)
            for block, cost in costs.items()
            if block in saves["drop"]
        }
    return Costs(total, saves)
