"""What a model says of its gates, and the masks that users ask for by naming blocks.

`surgery/skips.py` makes gates. `run_mask`, bool [gates], is an optional input; the metadata key
`graphprune.gates` has the ids of the blocks in its order, as a list in JSON. Models whose gates go by rules
have further inputs of the same length: `skip_thresholds`, float, and `decode_mask` or `prefill_mask`, bool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

GATES = "graphprune.gates"
MASK = "run_mask"
THRESHOLDS = "skip_thresholds"
# The masks that count in one phase only.
PHASE_MASKS = {"decode": "decode_mask", "prefill": "prefill_mask"}
EXIT_THRESHOLDS = "exit_thresholds"  # `surgery/exiting.py`
NONE = "none"  # among blocks to skip
NEVER = 1e9  # as a threshold: no score is over it
_SHOWN = 6


def read_gates(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The blocks that a model has gates for, by its metadata; what is no list of names counts as none."""
    try:
        found = json.loads(metadata.get(GATES, "[]"))
    except (ValueError, RecursionError):
        return ()
    named = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return tuple(found) if named else ()


def gates_to_json(file: str, model: ir.Model) -> dict[str, Any]:
    """The gates of a file: their blocks in the mask's order, whether each runs by default, and rules.

    Each rule is an optional input with its values: thresholds, or the mask of one phase.
    """
    blocks = read_gates(model.metadata_props)
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    known = {name: stored[name] for name in (MASK, THRESHOLDS, *PHASE_MASKS.values()) if name in stored}
    values = {name: value.numpy().tolist() for name, value in known.items() if value is not None}
    runs = values.pop(MASK, [])
    return {"file": file, "blocks": list(blocks), "runs": runs, "rules": values if blocks else {}}


def mask_without(gates: Sequence[str], skipped: Iterable[str]) -> list[bool]:
    """For each gate whether its block runs where those `skipped` do not.

    An item is a block's id, a layer such as `decoder.3`, a stack, or a number: that layer of every stack;
    `none` alone lets all blocks run, whatever the model's default.
    """
    items = [*skipped]
    return [not any(_names(item, id) for item in items) for id in gates]


def require_gates(gates: Sequence[str], skipped: Iterable[str], name: str) -> None:
    """Raise `RunError` where a model has no gates, or none that an item of `skipped` names.

    `name` is the model's, for the message.
    """
    if not gates:
        raise RunError(f"{name} has no gates, so that all of its blocks run: insert_skips makes them")
    for item in skipped:
        if item != NONE and not any(_names(item, id) for id in gates):
            raise RunError(f"{name} has no gate for {item!r}: it has {_told(gates)}")


def without_rules(optional: Mapping[str, Sequence[int | str | None]]) -> dict[str, NDArray[Any]]:
    """Values of the optional inputs of a model, with their shapes, by which all blocks run for all samples.

    Steps with a cache then are what one pass over all tokens is.
    """
    import numpy as np

    masks = {name: optional[name] for name in PHASE_MASKS.values() if name in optional}
    values: dict[str, NDArray[Any]] = {
        name: np.ones(_sizes(shape), np.bool_) for name, shape in masks.items()
    }
    if THRESHOLDS in optional:
        values[THRESHOLDS] = np.full(_sizes(optional[THRESHOLDS]), NEVER, np.float32)
    if EXIT_THRESHOLDS in optional:
        exits = _sizes(optional[EXIT_THRESHOLDS])  # patience counts up to their number
        values[EXIT_THRESHOLDS] = np.full(exits, max(NEVER, 1.0 + sum(exits)), np.float32)
    return values


def _sizes(shape: Sequence[int | str | None]) -> list[int]:
    return [size for size in shape if isinstance(size, int)]


def _names(item: str, id: str) -> bool:
    return f"{id}.".startswith(f"{item}.") or (item.isdecimal() and id.split(".")[-2:-1] == [item])


def _told(gates: Sequence[str]) -> str:
    shown = ", ".join(gates[:_SHOWN])
    return shown if len(gates) <= _SHOWN else f"{shown} and {len(gates) - _SHOWN} more, to {gates[-1]}"
