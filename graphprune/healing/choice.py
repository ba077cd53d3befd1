"""What becomes of each block: the one thing that healing, search and ranking agree on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from graphprune.errors import SelectionError

# What stands for the branch: a constant (mean), a linear map of what the block reads (linear), one of the
# stream that brings its channels to the magnitudes that they have behind the block (patch), or an FFN of so
# many of its own neurons (half, quarter, eighth).
Action: TypeAlias = Literal["keep", "drop", "mean", "linear", "patch", "half", "quarter", "eighth"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# The share of the neurons that stays.
SHARES: Mapping[Action, float] = MappingProxyType({"half": 0.5, "quarter": 0.25, "eighth": 0.125})
# Block id → action; blocks that are not named are kept.
Choice: TypeAlias = Mapping[str, Action]


def require_choice(
    choice: Choice, actions: Mapping[str, tuple[Action, ...]], declined: Mapping[str, str]
) -> None:
    """Raise `SelectionError` where a choice names a block, or an action on it, that there is not."""
    for block, action in choice.items():
        if action == "keep" or action in actions.get(block, ()):
            continue
        if block in actions:
            known = ", ".join(("keep", *actions[block]))
            raise SelectionError(f"{block}: there is no action {action!r} on it: it is one of {known}")
        reason = declined.get(block, f"there is no such block: choose among {', '.join(actions)}")
        raise SelectionError(f"{block} cannot be healed: {reason}")
