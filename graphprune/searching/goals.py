"""What a search is to reach: limits on what the model costs, a floor under its quality, or both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from graphprune.errors import RunError

if TYPE_CHECKING:
    from graphprune.searching.evaluating import Quality

# What a choice costs, by the name of the cost.
Price: TypeAlias = Mapping[str, float]
COSTS = ("latency", "parameters", "macs", "size")
_UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "speedup": {"": 1.0, "x": 1.0, "×": 1.0},
        "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
        "parameters": {"": 1.0, "%": 1e-2, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9},
        "macs": {"": 1.0, "%": 1e-2, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
        "size": {"": 1.0, "%": 1e-2, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
        "quality": {"": 1.0, "%": 1e-2},
    }
)
_VALUE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-zµ×%]*)")
_EXAMPLES = "speedup=1.5, latency=3.2ms, parameters=0.7, macs=1.2G, size=50MB or quality=0.995"


@dataclass(frozen=True)
class Target:
    """One thing to reach: `speedup`, `quality` at least `value`; all others at most, in seconds or pieces.

    `parameters`, `macs` and `size` up to 1 are shares of the dense model's.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


def parse_target(text: str) -> Target:
    """`speedup=1.5` and the like as a target. Raises `RunError`."""
    name, _, value = (part.strip().lower() for part in text.partition("="))
    match = _VALUE.fullmatch(value)
    if name not in _UNITS or match is None or match[2] not in _UNITS[name]:
        raise RunError(f"{text!r} is no target: it is like {_EXAMPLES}")
    number = float(match[1]) * _UNITS[name][match[2]]
    if number <= 0 or (name == "speedup" and number < 1):
        raise RunError(
            f"{text!r} is no target: it has to be {'1 or more' if name == 'speedup' else 'above 0'}"
        )
    return Target(name, number)


@dataclass(frozen=True)
class Goal:
    """Limits on costs, in their own units, and a floor under the share of the dense quality, or None.

    `dense` is the price of the dense model; `cost` is what the frontier is drawn over, and what is
    lowered where there is a floor and no limit.
    """

    dense: Price
    limits: Mapping[str, float]
    floor: float | None
    cost: str

    def excess(self, price: Price) -> float:
        """How far a price is above the limits: of each the share of what has to be saved; 0 if within."""
        return sum(
            max(0.0, price[name] - limit) / max(self.dense[name] - limit, 1e-12 * limit)
            for name, limit in self.limits.items()
        )

    def within(self, price: Price) -> bool:
        """Whether a price is within all limits."""
        return all(price[name] <= limit * (1 + 1e-9) for name, limit in self.limits.items())

    def saved(self, price: Price) -> float:
        """What a price brings: of each limit the share of the way to it; without any, of `cost`."""
        if not self.limits:
            return 1 - price[self.cost] / self.dense[self.cost]
        return len(self.limits) - self.excess(price)

    def shortfall(self, quality: Quality) -> float:
        """How far a quality is below the floor; 0 without one."""
        return 0.0 if self.floor is None else max(0.0, self.floor - worth(quality))

    def met(self, price: Price, quality: Quality) -> bool:
        """Whether all that is asked for is reached."""
        return self.within(price) and self.shortfall(quality) == 0 and math.isfinite(quality.kept)

    def rank(self, price: Price, quality: Quality) -> tuple[float, ...]:
        """What choices are compared by: the smaller, the better.

        First what is amiss. Then, with limits, the quality and what it costs; without, the other way round.
        """
        amiss = (0.0 if self.within(price) else self.excess(price)) + self.shortfall(quality)
        lost, cost = -worth(quality), price[self.cost]
        return (amiss, lost, cost) if self.limits else (amiss, cost, lost)

    def limited(self, name: str, limit: float) -> Goal:
        """The same with another limit on one cost."""
        return replace(self, limits={**self.limits, name: limit})


def worth(quality: Quality) -> float:
    """The share of the dense quality; that of a model that puts out no numbers is below all others."""
    return quality.kept if math.isfinite(quality.kept) else -math.inf


def costs_of(targets: Sequence[Target]) -> tuple[str, ...]:
    """The costs that targets are about; the latency where none is."""
    names = ["latency" if target.name == "speedup" else target.name for target in targets]
    return tuple(dict.fromkeys(name for name in names if name in COSTS)) or ("latency",)


def goal_of(targets: Sequence[Target], dense: Price) -> Goal:
    """The goal of several targets, for a dense model of this price. Raises `RunError`."""
    if not targets:
        raise RunError(f"there is no target: it is like {_EXAMPLES}")
    limits: dict[str, float] = {}
    for target in targets:
        if target.name == "quality":
            continue
        name = "latency" if target.name == "speedup" else target.name
        limits[name] = min(_limit(target, dense), limits.get(name, math.inf))
    floors = [target.value for target in targets if target.name == "quality"]
    return Goal(dense, limits, max(floors, default=None), costs_of(targets)[0])


def _limit(target: Target, dense: Price) -> float:
    if target.name == "speedup":
        return dense["latency"] / target.value
    share = target.name != "latency" and target.value <= 1
    return target.value * dense[target.name] if share else target.value
