"""Exit heads out of a file of fitted values.

An exit is called by the number of layers that have run before it, `<k>`; the last one stands behind all.

====================================  ===============================================================
`<k>/threshold`                       from how sure on samples leave; the last exit has none
`<k>/temperature`                     what scores are divided by before the softmax, 1 by default
`<k>/rule` [4]                        `sigmoid(w · (largest probability, margin, 1 − H / log C) + b)`
`<k>/weight` [d, C], `<k>/bias` [C]   a classifier of the pooled stream; the last exit has one too
`<k>/pool`                            "mean" (default), "first" or "last": which tokens it is pooled from
`<k>/translator` [d, d]               a map to the stream behind the last layer: `x @ translator + bias`
`<k>/translator_bias` [d]
====================================  ===============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from graphprune.errors import RecipeError
from graphprune.surgery.fitted import Floats
from graphprune.surgery.valuefile import FittedValues

Criterion = Literal["confidence", "margin", "entropy", "saturation", "patience", "rule"]
BatchMode = Literal["all", "per-sample"]
HeadKind = Literal["own", "translator", "classifier"]
Pool = Literal["mean", "first", "last"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
BATCH_MODES: tuple[BatchMode, ...] = get_args(BatchMode)
POOLS: tuple[Pool, ...] = get_args(Pool)
# Always, and never. What is told apart by patience is counted.
LOWEST, HIGHEST = -1.0, 2.0


@dataclass(frozen=True, eq=False)
class ExitHead:
    """One exit, after so many layers. Of `weight` and `translator` one is there, or none.

    Where the file names no `pool`, it is the last of tokens that have scores of their own, else the mean.
    """

    after: int
    threshold: float
    temperature: float
    pool: Pool | None
    weight: Floats | None = None
    translator: Floats | None = None
    bias: Floats | None = None
    rule: Floats | None = None


@dataclass(frozen=True, eq=False)
class Heads:
    """The exits of a stack in running order; `last` is the classifier behind all layers, if there is one."""

    kind: HeadKind
    criterion: Criterion
    batch_mode: BatchMode
    exits: tuple[ExitHead, ...]
    last: ExitHead | None = None

    @property
    def guarded(self) -> bool:
        """Whether heads run the model's own end, or map all tokens: they are left out where they can be."""
        return self.kind == "translator" or (self.kind == "own" and self.criterion != "saturation")


def read_heads(
    values: FittedValues, at: Sequence[int], layers: int, criterion: Criterion, batch_mode: BatchMode
) -> Heads:
    """The heads for exits after `at` of so many layers. Raises `RecipeError` where the file does not fit."""
    kinds = {after: _kind(values, after) for after in at}
    kind = kinds[at[0]]
    if odd := next((after for after, one in kinds.items() if one != kind), None):
        raise RecipeError(
            f"{values.path}: the exit after layer {odd} has another kind of head ({kinds[odd]}) than that "
            f"after layer {at[0]} ({kind}): all are to be of one kind"
        )
    exits = tuple(_head(values, after, kind, criterion, len(at)) for after in at)
    if kind != "classifier":
        return Heads(kind, criterion, batch_mode, exits)
    last = _head(values, layers, kind, criterion, len(at), last=True)
    classes = {head.after: _shape(head.weight) for head in (*exits, last)}
    if odd := next((after for after, shape in classes.items() if shape != classes[layers]), None):
        raise RecipeError(
            f"{values.path}: '{odd}/weight' has the shape {list(classes[odd])}, and '{layers}/weight' "
            f"{list(classes[layers])}: they must be alike"
        )
    return Heads(kind, criterion, batch_mode, exits, last)


def _kind(values: FittedValues, after: int) -> HeadKind:
    keys = values.of(str(after))
    if "threshold" not in keys:
        raise RecipeError(
            f"{values.path}: there is nothing for an exit after layer {after}: no '{after}/threshold'"
        )
    return "classifier" if "weight" in keys else "translator" if "translator" in keys else "own"


def _head(
    values: FittedValues, after: int, kind: HeadKind, criterion: Criterion, exits: int, *, last: bool = False
) -> ExitHead:
    block = str(after)
    keys = values.of(block)
    weight = values.read(block, "weight", [None, None]) if kind == "classifier" else None
    translator = values.read(block, "translator", [None, None]) if kind == "translator" else None
    bias = None
    if weight is not None:
        bias = values.read(block, "bias", [weight.shape[1]])
    if translator is not None:
        bias = values.read(block, "translator_bias", [translator.shape[1]])
    temperature = float(values.read(block, "temperature", [])) if "temperature" in keys else 1.0
    if not temperature > 0:
        raise RecipeError(f"{values.path}: '{after}/temperature' is {temperature:g}, and must be over 0")
    rule = values.read(block, "rule", [4]) if criterion == "rule" and not last else None
    threshold = HIGHEST if last else _threshold(values, block, criterion, exits)
    return ExitHead(after, threshold, temperature, _pool(values, block, keys), weight, translator, bias, rule)


def _threshold(values: FittedValues, block: str, criterion: Criterion, exits: int) -> float:
    threshold = float(values.read(block, "threshold", []))
    highest = max(HIGHEST, exits + 1.0) if criterion == "patience" else HIGHEST
    if not LOWEST <= threshold <= highest:
        raise RecipeError(
            f"{values.path}: '{block}/threshold' is {threshold:g}, and must be from {LOWEST:g} (always) to "
            f"{highest:g} (never)"
        )
    return threshold


def _pool(values: FittedValues, block: str, keys: frozenset[str]) -> Pool | None:
    if "pool" not in keys:
        return None
    pool = values.read_text(block, "pool")
    if pool not in POOLS:
        raise RecipeError(f"{values.path}: '{block}/pool' is '{pool}', and must be one of {', '.join(POOLS)}")
    return pool


def _shape(weight: Floats | None) -> tuple[int, ...]:
    return () if weight is None else weight.shape
