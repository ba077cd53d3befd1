"""What `rank` finds: every criterion of every block and layer, and the order that each of them gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Measured:
    """A criterion of one block or layer; the smaller `value` is, the sooner it can be spared.

    `score` is what the metric says of the model without it, where that was asked. Where `value` is None,
    `reason` says why.
    """

    value: float | None = None
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Ranked:
    """A block, by its id and kind, or a layer (`encoder.2`, of kind "layer"), and what was found of it."""

    id: str
    kind: str
    found: Mapping[str, Measured]


@dataclass(frozen=True)
class Stretch:
    """`length` layers in a row, from layer `start` of a stack: the angular distance over them."""

    stack: str
    start: int
    length: int
    distance: float | None
    reason: str = ""


@dataclass(frozen=True)
class Scale:
    """What scores are told against: the metric, which scores are better, and the dense model's own."""

    metric: str
    better: Literal["higher", "lower"]
    dense: float


@dataclass(frozen=True)
class Ranking:
    """Blocks and layers in the order of the stream, by the criteria `by`.

    `data` and `examples` say what it was measured on. `stretches` are there where angular distances
    were asked for, `scales` for each criterion that has scores.
    """

    by: tuple[str, ...]
    data: str
    examples: int
    blocks: tuple[Ranked, ...]
    layers: tuple[Ranked, ...]
    stretches: tuple[Stretch, ...] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def order(self, criterion: str, *, layers: bool = False) -> tuple[str, ...]:
        """The ids of the blocks, or of the layers, that have a value: the first to spare first."""
        values = values_of(self.layers if layers else self.blocks, criterion)
        return tuple(sorted(values, key=values.__getitem__))

    @property
    def best_stretches(self) -> tuple[Stretch, ...]:
        """For every stack and length the layers with the least distance, as far as it is known."""
        best: dict[tuple[str, int], Stretch] = {}
        for one in self.stretches:
            least = best.get((one.stack, one.length))
            if one.distance is not None and (least is None or one.distance < (least.distance or 0.0)):
                best[one.stack, one.length] = one
        return tuple(best.values())


def values_of(ranked: Iterable[Ranked], criterion: str) -> dict[str, float]:
    """The values of a criterion by id, of those that have one."""
    found = {one.id: one.found[criterion].value for one in ranked if criterion in one.found}
    return {id: value for id, value in found.items() if value is not None}


def ranks_of(ranked: Iterable[Ranked], criterion: str) -> dict[str, int]:
    """The place of each in the order of a criterion, from 1, the first to spare; equal values share one."""
    values = values_of(ranked, criterion)
    ordered = sorted(values.values())
    return {id: 1 + ordered.index(value) for id, value in values.items()}
