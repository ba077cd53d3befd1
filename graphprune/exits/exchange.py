"""Fitted exits as JSON: written beside the model, printed, and read by the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.exits.asked import Exits

FORMAT = 1


def to_json(exits: Exits) -> dict[str, Any]:
    """All that is known of exits, less the heads themselves."""
    rule = exits.rule
    return {
        "format": FORMAT,
        "data": exits.data,
        "layers": rule.layers,
        "at": list(rule.at),
        "thresholds": list(rule.thresholds),
        "head": rule.head,
        "criterion": rule.criterion,
        "batch_mode": exits.batch_mode,
        "goal": rule.goal,
        "chosen": rule.chosen,
        "fitted": rule.fitted,
        "calibrated": rule.calibrated,
        "told": asdict(rule.told),
        "held": asdict(rule.held),
    }
