"""What a search starts from: data in parts, the evaluators on them, the space, what everything costs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError, SelectionError
from graphprune.searching.asking import SHORTLIST
from graphprune.searching.evaluating import HealedOpener, Opener, Stored, UnhealedOpener, opened
from graphprune.searching.space import Space, space_of

if TYPE_CHECKING:
    from graphprune.bundle import Bundle
    from graphprune.data.dataset import Data
    from graphprune.healing.choice import Action
    from graphprune.settings import Settings

# The share of the data that judges; the examples to fit to and to judge by at the levels at which choices
# compete; and the level of all the data, at which the best are compared. Metrics of labels scatter much more
# than agreement with the dense model: the rank correlation of 100 pairs by several hundredths. The shortlist
# only tells what is hopeless.
JUDGED = 0.4
SIZES = {"small": (64, 96), "large": (384, 512)}
LABELLED = {"small": (128, 192), "large": (384, 640)}
_SHORTLIST = 96
ALL = "all"
# One strength of regularization instead of the best of several, while choices compete.
_STRENGTH = (1e-1,)


@dataclass(frozen=True, eq=False)
class Levels:
    """The evaluators by level: the shortlist's, those at which choices compete, and that on all of the data.

    `examples` are the numbers of those fitted to and judged by at each level; `notes` say where it was not
    as usual.
    """

    openers: Mapping[str, Opener]
    racing: tuple[str, ...]
    last: str
    examples: Mapping[str, tuple[int, int]]
    healed: bool
    notes: tuple[str, ...] = ()


def levels_of(path: Path, data: Data, settings: Settings, seed: int) -> Levels:
    """The levels, on a part of the data to fit to and another to judge by; the shortlist's judges unhealed.

    Little data go with light repairs, of what was changed itself: what is left is refitted at later levels.
    Where the model cannot be healed at all, choices are judged as they are, and a note says so. Raises
    `LoadError`, `RunError`, `SelectionError`.
    """
    from graphprune.healing.repairs import Repairs

    judged, fit = data.split(JUDGED, seed)
    sizes = LABELLED if data.metric is not None and data.metric.needs_labels else SIZES
    parts = {name: (fit.take(f, seed), judged.take(j, seed)) for name, (f, j) in sizes.items()}
    parts[ALL] = (fit, judged)
    examples = {name: (fit.examples, judged.examples) for name, (fit, judged) in parts.items()}
    key, racing = _key(path, data, seed), tuple(SIZES)
    repairs = {
        "small": Repairs(output=False, strengths=_STRENGTH), "large": Repairs(strengths=_STRENGTH),
        ALL: Repairs(),
    }  # fmt: skip
    openers: dict[str, Opener] = {
        name: HealedOpener(f"{key} {name}", path, *part, settings, repairs[name])
        for name, part in parts.items()
    }
    try:
        if opened(openers[racing[0]]).blocks:
            few = parts["small"][1].take(_SHORTLIST, seed)
            openers[SHORTLIST] = UnhealedOpener(f"{key} {SHORTLIST}", path, few, settings)
            return Levels(openers, racing, ALL, examples, healed=True)
        why = next(iter(opened(openers[racing[0]]).declined.values()), "no block can be healed")
    except RunError as error:
        why = str(error)
    plain: dict[str, Opener] = {
        name: UnhealedOpener(f"{key} {name} unhealed", path, one, settings)
        for name, (_, one) in parts.items()
    }
    note = f"nothing is healed, choices are judged as they are: {why}"
    return Levels(plain, racing, ALL, examples, healed=False, notes=(note,))


def stored(levels: Levels, folder: Path) -> Levels:
    """The same levels, for other processes: what opens them lies in files in `folder`, which all can read."""
    openers: dict[str, Opener] = {}
    for name, opener in levels.openers.items():
        path = folder / f"{name}.pickle"
        path.write_bytes(pickle.dumps(opener))
        openers[name] = Stored(opener.key, path)
    return replace(levels, openers=openers)


def _key(path: Path, data: Data, seed: int) -> str:
    return f"{path.absolute()} {data.name} {data.examples} {seed} {id(data)}"


def open_space(
    bundle: Bundle, levels: Levels, actions: Sequence[Action], blocks: str
) -> tuple[Space, dict[str, str]]:
    """The space of the first level's evaluator, and why other blocks are not in it.

    Raises `SelectionError` where nothing is left to choose.
    """
    from graphprune.architecture import ALL_KINDS
    from graphprune.healing.building import droppable
    from graphprune.selection import select_blocks
    from graphprune.survey import inspect

    (architecture,) = (file.architecture for file in inspect(bundle))
    evaluator = opened(levels.openers[levels.racing[0]])
    able, declined = dict(evaluator.actions), dict(evaluator.declined)
    if not levels.healed:
        dropped = droppable(architecture)
        declined |= {block: "no pass drops it alone" for block in able if block not in dropped}
        able = {block: found for block, found in able.items() if block in dropped}
    among = [block.id for block in select_blocks(architecture, blocks, ALL_KINDS)]
    return space_of(architecture, able, actions, among), declined


def identity_of(bundle: Bundle, data: Data, levels: Levels, space: Space, seed: int) -> dict[str, Any]:
    """What the quality of a choice depends on, to know a search again by."""
    from graphprune.bundle import fingerprint

    said = fingerprint(bundle.files[0])
    return {
        "model": said["source_sha256"] + said.get("source_data", ""),
        "data": f"{data.name}, {data.examples} examples ({data.fingerprint})",
        "metric": data.metric.name if data.metric else "",
        "healed": levels.healed,
        "levels": dict(levels.examples),
        "actions": {block: list(space.actions[block]) for block in space.blocks},
        "seed": seed,
    }


def require_actions(actions: Sequence[str]) -> tuple[Action, ...]:
    """Actions by their names. Raises `SelectionError`."""
    from graphprune.healing.choice import ACTIONS

    known = [one for one in ACTIONS if one != "keep"]
    unknown = [one for one in actions if one not in known]
    if unknown or not actions:
        raise SelectionError(
            f"{unknown[0] if unknown else ''!r} is no action: choose among {', '.join(known)}"
        )
    return tuple(one for one in known if one in actions)
