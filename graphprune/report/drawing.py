"""The stream as it is drawn: stacks of layers of blocks, with what was removed still in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from graphprune.prunepass import Edit
from graphprune.survey import distinct_stacks

if TYPE_CHECKING:
    from graphprune.architecture import Block, Stack
    from graphprune.phases import PartTime, Phase
    from graphprune.pipeline import Plan
    from graphprune.report.subject import Side
    from graphprune.roofline import Limit
    from graphprune.survey import SurveyedFile


@dataclass(frozen=True, eq=False)
class Measured:
    """A block in one phase of a profile."""

    phase: Phase
    time: PartTime


@dataclass(frozen=True, eq=False)
class DrawnBlock:
    """One block of the drawing. `number` is unique on the page.

    `name` is what it is called there: its id in the dense model, or in the model where that is alone. `id`
    is its id in the model, "" where it was removed. `now` and `before` are its times in one pass over the
    model and the dense model, `phases` the times in the model's phases; None and empty where it is not
    there or was not profiled. `importance` is its influence, `limit` the least time that the machine
    allows. `changes` say what a recipe did to a part of it. `norm_stays` is about a block that went: whether
    the norm after its join is still there.
    """

    number: int
    name: str
    id: str
    block: Block
    removed: bool = False
    now: PartTime | None = None
    before: PartTime | None = None
    phases: tuple[Measured, ...] = ()
    importance: float | None = None
    limit: Limit | None = None
    changes: tuple[str, ...] = ()
    norm_stays: bool = True

    @property
    def time(self) -> PartTime | None:
        """Its time in the model, or in the dense one where it was removed."""
        return self.before if self.removed else self.now


@dataclass(frozen=True, eq=False)
class DrawnLayer:
    """One layer as it runs; `index` is its number in the dense model, `run` counts its repetitions from 1."""

    index: int
    blocks: tuple[DrawnBlock, ...]
    run: int = 1


@dataclass(frozen=True, eq=False)
class DrawnStack:
    """One stack, copies in several files or subgraphs drawn once."""

    name: str
    layers: tuple[DrawnLayer, ...]

    @property
    def blocks(self) -> Iterator[DrawnBlock]:
        """All blocks, in the order of the stream."""
        return (block for layer in self.layers for block in layer.blocks)

    @property
    def kept(self) -> tuple[DrawnBlock, ...]:
        """The blocks that the model has."""
        return tuple(block for block in self.blocks if not block.removed)


@dataclass(frozen=True, eq=False)
class _Row:
    """A layer before its blocks are matched: of each block whether it is gone."""

    index: int
    run: int
    blocks: tuple[tuple[Block, bool], ...]


def draw(
    model: Side,
    dense: Side | None,
    plan: Plan | None,
    importance: Mapping[str, float],
    limits: Mapping[str, Limit],
) -> tuple[tuple[DrawnStack, ...], tuple[str, ...]]:
    """The drawing, and notes where what was removed cannot be shown.

    `plan` is the model's recipe on `dense`. `importance` goes by the ids of the dense model's blocks, or of
    the model's where that is alone, `limits` by the model's.
    """
    numbers = count()
    pen = _Pen(numbers, model, dense, importance, limits)
    own = {stack.name: stack for stack in _in_order(model.files)}
    if dense is not None and plan is not None:
        rows = {stack.name: _rows(stack, plan) for stack in _in_order(plan.files)}
        unlike = _unlike(rows, own, {id(block) for block in plan.exchanged})
        if not unlike:
            return tuple(pen.matched(name, rows[name], own[name], plan) for name in rows), ()
        note = f"what was removed is not shown: by the recipe, {unlike}"
        return tuple(pen.alone(stack) for stack in own.values()), (note,)
    return tuple(pen.alone(stack) for stack in own.values()), ()


def _in_order(files: Sequence[SurveyedFile]) -> list[Stack]:
    """The stacks of a bundle, copies once, an encoder before its decoder."""
    numbered = [stack.name for file in files for stack in file.architecture.numbering]
    stacks = list(distinct_stacks(files))
    return sorted(stacks, key=lambda stack: numbered.index(stack.name) if stack.name in numbered else 0)


def _rows(stack: Stack, plan: Plan) -> list[_Row]:
    """The layers of a dense stack as they run after `plan`, what it removes marked."""
    gone = {id(block) for block in plan.removed} - {id(block) for block in plan.exchanged}
    edits = [outcome.answer for outcome in plan.outcomes if isinstance(outcome.answer, Edit)]
    order = next((edit.order for edit in edits if edit.order and edit.target == stack.name), ())
    rows: list[_Row] = []
    for index in order or range(len(stack.layers)):
        blocks = tuple((block, id(block) in gone) for block in stack.layers[index].blocks)
        run = 1 + sum(row.index == index for row in rows)
        rows.append(_Row(stack.layers[index].index, run, blocks))
    return rows


def _unlike(rows: Mapping[str, Sequence[_Row]], own: Mapping[str, Stack], exchanged: Set[int]) -> str:
    """Why the kept blocks of a plan are not those of the model; "" if they are, kind by kind.

    Those whose `id()` is in `exchanged` have become linear maps, which are read as FFNs.
    """
    for name, layers in rows.items():
        blocks = [block for row in layers for block, gone in row.blocks if not gone]
        kept = ["ffn" if id(block) in exchanged else block.kind for block in blocks]
        there = [block.kind for block in own[name].blocks] if name in own else []
        if kept != there:
            return f"{name} has {len(kept)} blocks, in the file there are {len(there)}, or of other kinds"
    return next((f"there is no {name}" for name in own if name not in rows), "")


@dataclass(frozen=True, eq=False)
class _Pen:
    """What every drawn block takes from: page numbers, the models, influences."""

    numbers: Iterator[int]
    model: Side
    dense: Side | None
    importance: Mapping[str, float]
    limits: Mapping[str, Limit]

    def alone(self, stack: Stack) -> DrawnStack:
        """A stack of the model, with nothing before it."""
        layers = (
            DrawnLayer(layer.index, tuple(self._kept(block, None) for block in layer.blocks))
            for layer in stack.layers
        )
        return DrawnStack(stack.name, tuple(layers))

    def matched(self, name: str, rows: Iterable[_Row], own: Stack, plan: Plan) -> DrawnStack:
        """A stack of the dense model, each kept block with the one of the model that it became."""
        left = iter(own.blocks)
        layers = tuple(
            DrawnLayer(
                row.index,
                tuple(
                    self._removed(block, plan) if gone else self._kept(next(left), block, plan)
                    for block, gone in row.blocks
                ),
                row.run,
            )
            for row in rows
        )
        return DrawnStack(name, layers)

    def _kept(self, block: Block, source: Block | None, plan: Plan | None = None) -> DrawnBlock:
        known = source.id if source else ""
        return DrawnBlock(
            next(self.numbers), known or block.id, block.id, block,
            now=_time(self.model, block.id), before=_time(self.dense, known),
            phases=_phases(self.model, block.id),
            importance=self.importance.get(known if self.dense else block.id),
            limit=self.limits.get(block.id),
            changes=_changes(plan, known),
        )  # fmt: skip

    def _removed(self, block: Block, plan: Plan) -> DrawnBlock:
        return DrawnBlock(
            next(self.numbers), block.id, "", block, removed=True,
            before=_time(self.dense, block.id),
            importance=self.importance.get(block.id),
            norm_stays=_norm_stays(plan, block),
        )  # fmt: skip


def _time(side: Side | None, block: str) -> PartTime | None:
    if side is None or side.profile is None:
        return None
    return next((part for part in side.profile.blocks if part.name == block), None)


def _phases(side: Side, block: str) -> tuple[Measured, ...]:
    phases = side.profile.phases if side.profile else ()
    return tuple(Measured(one, part) for one in phases for part in one.blocks if part.name == block)


def _norm_stays(plan: Plan, block: Block) -> bool:
    """Whether the pass that removes a block keeps the norm after its join."""
    edits = [outcome.answer for outcome in plan.edits if isinstance(outcome.answer, Edit)]
    return not any(edit.norms for edit in edits if any(one is block for one in edit.removes))


def _changes(plan: Plan | None, block: str) -> tuple[str, ...]:
    """What a plan does to a block that stays, or is exchanged, each once."""
    if plan is None or not block:
        return ()
    edits = [outcome.answer for outcome in plan.edits if isinstance(outcome.answer, Edit)]
    within = (edit for edit in edits if f"{edit.target}.".startswith(f"{block}."))
    return tuple(dict.fromkeys(edit.summary for edit in within if edit.instead or not edit.removes))
