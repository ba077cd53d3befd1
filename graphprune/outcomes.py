"""What the passes of a recipe answered, settled against each other.

Every pass is asked about the original model, so two of them may want the same block, and the
files of a bundle may answer differently. Settled means:

- copies of one stack, in one file or several, change together or not at all;
- layers whose keys and values another file computes stay;
- caches that the loader of the result cannot do without are still put out (`keeping`);
- what a larger edit removes needs no edit of its own, and what an earlier step removed none later (a norm
  that stays behind where its block goes may change all the same);
- a stack that would lose every block is an error, and so are two orders for one stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from graphprune.errors import SelectionError
from graphprune.keeping import caches_kept
from graphprune.prunepass import Edit, Skipped
from graphprune.slots import cache_slot

if TYPE_CHECKING:
    from graphprune.architecture import Block, Norm
    from graphprune.prunepass import PrunePass
    from graphprune.survey import SurveyedFile

_Target: TypeAlias = "tuple[int, str]"  # a step, and what it aims at: one decision for all copies


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one pass said about one target in one file. `step` counts the recipe's passes from 0."""

    file: str
    step: int
    name: str
    answer: Edit | Skipped

    @property
    def target(self) -> _Target:
        """The step and its target: the key that copies share."""
        return self.step, self.answer.target

    def skipped(self, reason: str) -> Outcome:
        """The same target, left alone because of `reason`."""
        return replace(self, answer=Skipped(self.answer.target, reason))

    def keeping(self, reason: str) -> Outcome:
        """The same change with the caches left because of `reason`, where there is such a change."""
        make = self.answer.keeping if isinstance(self.answer, Edit) else None
        return replace(self, answer=make(reason)) if make else self


def ask(passes: Iterable[PrunePass], files: Sequence[SurveyedFile]) -> tuple[Outcome, ...]:
    """What every pass says about every file, settled. Raises `SelectionError`."""
    answers = [
        Outcome(file.name, step, one.name, answer)
        for step, one in enumerate(passes)
        for file in files
        for answer in one.plan(file.architecture)
    ]
    outcomes = _settled(_unless_others_compute(answers, files), files)
    _refuse_two_orders(outcomes)
    return outcomes


def _replaced(outcomes: Iterable[Outcome]) -> set[int]:
    """The `id()` of blocks in whose place something else stands."""
    edits = (outcome.answer for outcome in outcomes if isinstance(outcome.answer, Edit))
    return {id(block) for edit in edits if edit.instead is not None for block in edit.removes}


def removed(outcomes: Iterable[Outcome]) -> tuple[Block, ...]:
    """All blocks that are gone afterwards, copies and replaced ones included, each once."""
    blocks = {
        id(block): block
        for outcome in outcomes
        if isinstance(outcome.answer, Edit)
        for block in outcome.answer.removes
    }
    return tuple(blocks.values())


def edits_in_order(outcomes: Iterable[Outcome], files: Iterable[SurveyedFile]) -> list[Edit]:
    """The edits as they are to be applied: those that rearrange a whole stack after those within it.

    So a layer that runs twice runs twice as it was changed, whatever the order of the passes. Those that
    are to be last come at the very end.
    """
    stacks = {stack.name for file in files for stack in file.architecture.stacks}
    edits = [outcome.answer for outcome in outcomes if isinstance(outcome.answer, Edit)]
    return sorted(edits, key=lambda edit: (edit.last, edit.target in stacks))


def _settled(answers: list[Outcome], files: Sequence[SurveyedFile]) -> tuple[Outcome, ...]:
    """One decision for all copies, each block removed once, and the caches left that have to be.

    Where an edit cannot leave the caches of what it removes, it is taken back, and what it would have
    made needless may be needed after all.
    """
    outcomes = _without_repeats(_all_copies_or_none(answers, files), files)
    _refuse_emptying(outcomes, files)
    reasons = _caches_that_stay(outcomes, files)
    stuck = {o.target for o in outcomes if o.target in reasons and _must_go(o)}
    if stuck:
        why = {target: f"its KV cache has to stay: {reasons[target]}" for target in stuck}
        return _settled([a.skipped(why[a.target]) if a.target in why else a for a in answers], files)
    return tuple(o.keeping(reasons[o.target]) if o.target in reasons else o for o in outcomes)


def _must_go(outcome: Outcome) -> bool:
    """Whether there is no edit like this one that leaves the caches."""
    return isinstance(outcome.answer, Edit) and outcome.answer.keeping is None


def _caches_that_stay(outcomes: Sequence[Outcome], files: Sequence[SurveyedFile]) -> dict[_Target, str]:
    """The targets of edits that must leave caches, in one file at least, and why."""
    reasons: dict[_Target, str] = {}
    for file in files:
        edits = {o.answer: o.target for o in outcomes if o.file == file.name and isinstance(o.answer, Edit)}
        kept = caches_kept(file.architecture, edits)
        reasons |= {edits[edit]: reason for edit, reason in kept.items()}
    return reasons


def _unless_others_compute(answers: list[Outcome], files: Sequence[SurveyedFile]) -> list[Outcome]:
    """Take back edits of layers whose keys and values a file without a decoder computes.

    Whisper's encoder does, as onnxruntime-genai's builder writes it: it would go on to give them by
    the old numbers.
    """
    makers = {slot: file.name for file in files for slot in _made_for_others(file)}
    if not makers:
        return answers
    stacks = {(f.name, stack.name): stack for f in files for stack in f.architecture.stacks}
    settled = []
    for answer in answers:
        edit = answer.answer
        blocks = list(edit.removes) if isinstance(edit, Edit) else []
        if isinstance(edit, Edit) and edit.order:
            blocks = list(stacks[answer.file, edit.target].blocks)
        names = [name for block in blocks for cache in block.caches for name in cache.input_names]
        maker = next((makers[slot] for name in names if (slot := cache_slot(name, "past")) in makers), "")
        reason = f"{maker} computes keys and values for it, and would not follow"
        settled.append(answer.skipped(reason) if maker else answer)
    return settled


def _made_for_others(file: SurveyedFile) -> list[str]:
    """The slots of caches that a file gives of which none is a block's own."""
    graph = file.architecture.model.graph
    if any(block.caches for block in file.architecture.blocks) or any(
        cache_slot(value.name or "", "past") for value in graph.inputs
    ):
        return []
    slots = (cache_slot(value.name or "", "present") for value in graph.outputs)
    return [slot for slot in slots if slot]


def _all_copies_or_none(answers: list[Outcome], files: Sequence[SurveyedFile]) -> list[Outcome]:
    """Take back the edits of targets that some file or copy does not go along with."""
    by_target: dict[_Target, list[Outcome]] = defaultdict(list)
    for answer in answers:
        by_target[answer.target].append(answer)
    reasons = {target: _left_behind(target[1], group, files) for target, group in by_target.items()}
    return [
        answer.skipped(reasons[answer.target])
        if isinstance(answer.answer, Edit) and reasons[answer.target]
        else answer
        for answer in answers
    ]


def _left_behind(target: str, group: Sequence[Outcome], files: Sequence[SurveyedFile]) -> str:
    """Why not all copies of `target` can change; empty where they can, or none was to."""
    edited = {outcome.file for outcome in group if isinstance(outcome.answer, Edit)}
    gone = {id(block) for block in removed(group)}
    ids = {block.id for block in removed(group)}
    for file in files if edited else ():
        copies = [block for block in file.architecture.blocks if _about(target, block.id)]
        if copies and file.name not in edited:
            own = [o.answer.reason for o in group if o.file == file.name and isinstance(o.answer, Skipped)]
            return f"its copy in {file.name} stays: {own[0] if own else 'the pass leaves it alone'}"
        if any(block.id in ids and id(block) not in gone for block in file.architecture.blocks):
            return f"another copy of it in {file.name} stays"
    return ""


def _about(target: str, block: str) -> bool:
    """Whether a target (a stack, a layer, a block, or a part of one) and a block's id meet."""
    return f"{target}.".startswith(f"{block}.") or f"{block}.".startswith(f"{target}.")


def _without_repeats(answers: list[Outcome], files: Sequence[SurveyedFile]) -> tuple[Outcome, ...]:
    """Take back every edit whose blocks all go by a larger edit, or by an equal one before it."""
    removals: dict[int, list[tuple[int, int, Outcome]]] = defaultdict(list)
    for order, outcome in enumerate(answers):
        if isinstance(outcome.answer, Edit) and outcome.answer.removes:
            for gone in (*outcome.answer.removes, *outcome.answer.norms):
                removals[id(gone)].append((len(outcome.answer.removes), -order, outcome))
    blocks = {file.name: tuple(file.architecture.blocks) for file in files}
    return tuple(
        _unless_repeated(outcome, order, removals, blocks[outcome.file])
        for order, outcome in enumerate(answers)
    )


def _unless_repeated(
    outcome: Outcome,
    order: int,
    removals: dict[int, list[tuple[int, int, Outcome]]],
    blocks: Sequence[Block],
) -> Outcome:
    answer = outcome.answer
    if isinstance(answer, Skipped):
        return outcome
    own = [block for block in blocks if f"{answer.target}.".startswith(f"{block.id}.")]
    touched: Sequence[Block | Norm] = answer.removes or answer.norms or own
    rank = (len(answer.removes), -order)
    stronger = [max((r for r in removals[id(b)] if r[:2] > rank), default=None, key=_rank) for b in touched]
    if not stronger or None in stronger:
        return outcome
    return outcome.skipped(f"removed by {' and '.join(sorted({s[2].name for s in stronger if s}))}")


def _rank(removal: tuple[int, int, Outcome]) -> tuple[int, int]:
    return removal[:2]


def _refuse_two_orders(outcomes: Iterable[Outcome]) -> None:
    """Each order counts the layers of the original model: two of one stack do not add up."""
    first: dict[str, Outcome] = {}
    for outcome in outcomes:
        if isinstance(outcome.answer, Edit) and outcome.answer.order:
            earlier = first.setdefault(outcome.answer.target, outcome)
            if earlier.step != outcome.step:
                names = " and ".join(dict.fromkeys((earlier.name, outcome.name)))
                raise SelectionError(
                    f"{names} would arrange the layers of '{outcome.answer.target}' twice: prune the result "
                    "of the first in a second run"
                )


def _refuse_emptying(outcomes: Iterable[Outcome], files: Sequence[SurveyedFile]) -> None:
    gone = {id(block) for block in removed(outcomes)} - _replaced(outcomes)
    for file in files:
        for stack in file.architecture.stacks:
            if stack.layers and gone and all(id(block) in gone for block in stack.blocks):
                last = len(stack.layers) - 1
                raise SelectionError(
                    f"{file.name}: this would take every block of {stack.name} (layers 0-{last}): "
                    "leave at least one"
                )
