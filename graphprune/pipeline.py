"""From a recipe to a pruned bundle: plan (nothing changes), apply (on a clone), save and check.

Every pass is asked about the *original* model, so that numbers mean the same in all steps of
a recipe; `outcomes.py` settles their answers against each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphprune import configs
from graphprune import recipe as recipes
from graphprune.configs_genai import follow_genai
from graphprune.errors import EditError, SelectionError
from graphprune.fileset import require_set
from graphprune.gates import read_gates
from graphprune.macs import Macs
from graphprune.outcomes import Outcome, ask, edits_in_order, removed
from graphprune.prunepass import Edit, Skipped
from graphprune.sizes import Sizes, measure
from graphprune.survey import SurveyedFile, distinct_stacks, inspect, loader_of

if TYPE_CHECKING:
    from graphprune.architecture import Block, Branch, Loader
    from graphprune.bundle import Bundle, ModelFile
    from graphprune.recipe import IrStep, Recipe


@dataclass(frozen=True, eq=False)
class Plan:
    """What a recipe would do to a bundle, and if not, why. Making one changes nothing.

    `loader` is the program that the result is made for.
    """

    bundle: Bundle
    recipe: Recipe
    files: tuple[SurveyedFile, ...]
    outcomes: tuple[Outcome, ...]
    loader: Loader

    @property
    def edits(self) -> tuple[Outcome, ...]:
        """The outcomes that change something."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome.answer, Edit))

    @cached_property
    def removed(self) -> tuple[Block, ...]:
        """The blocks that would be gone, copies included."""
        return removed(self.outcomes)

    @cached_property
    def exchanged(self) -> tuple[Block, ...]:
        """Of these, the blocks in whose place another block stands: a linear map, and no constant alone."""
        edits = (outcome.answer for outcome in self.edits if isinstance(outcome.answer, Edit))
        return tuple(b for edit in edits if edit.instead and edit.instead.terms for b in edit.removes)

    @cached_property
    def before(self) -> Sizes:
        """The sizes of the bundle as it is, all files together."""
        return sizes_of(self.bundle, self.files)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the bundle's configs cannot say about the result, or say wrongly already."""
        config = self.bundle.configs.get("config.json", {})
        found = configs.notes(config, _what_is_kept(self.files, self.outcomes))
        return tuple(f"config.json: {note}" for note in found)

    def require_change(self) -> None:
        """Raise `SelectionError` where nothing at all would change, with the reasons."""
        if not (self.edits or self.recipe.before or self.recipe.after):
            answers = [outcome.answer for outcome in self.outcomes]
            reasons = [f"{one.target}: {one.reason}" for one in answers if isinstance(one, Skipped)]
            what = "; ".join(reasons[:3]) or "no pass was asked for"
            raise SelectionError(f"nothing would change: {what}")

    def apply(self) -> Bundle:
        """A pruned clone of the bundle; the bundle itself stays as it is, weights are shared.

        Raises `EditError` where an edit turns out to be impossible.
        """
        from graphprune import surgery

        bundle = _ir_steps(self.bundle.clone(), self.recipe.before)
        files = inspect(bundle, self.loader)
        outcomes = ask(self.recipe.passes, files)
        for edit in edits_in_order(outcomes, files):
            edit.apply()
        for file in bundle.files:
            surgery.sweep(file.model)
        kept = _what_is_kept(files, outcomes)
        return replace(_ir_steps(bundle, self.recipe.after), configs=_configs(bundle, kept))


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned bundle, not saved yet, and the plan that it came from."""

    bundle: Bundle
    plan: Plan

    @cached_property
    def after(self) -> Sizes:
        """The sizes of all files together; `plan.before` has what they were."""
        stacks = {stack.name for stack in distinct_stacks(self.plan.files)}
        if any(outcome.answer.target in stacks for outcome in self.plan.edits):  # rearranged: read anew
            return sizes_of(self.bundle, inspect(self.bundle))
        edits = [outcome.answer for outcome in self.plan.edits if isinstance(outcome.answer, Edit)]
        return sizes_of(self.bundle, self.plan.files, edits)

    def save(
        self,
        out: str | Path,
        *,
        run: bool = True,
        overwrite: bool = False,
        external: Literal["auto", "always", "never"] = "auto",
    ) -> Path:
        """Write and check it, all or nothing; `run=False` leaves out the checks that run the model.

        Raises `SaveError` and `CheckError`; nothing is left at `out` then that was not there before.
        """

        def check(file: ModelFile, path: Path) -> None:
            from graphprune.check import check_model

            graph = file.model.graph
            check_model(
                path,
                expected_inputs=[value.name or "" for value in graph.inputs],
                expected_outputs=[value.name or "" for value in graph.outputs],
                run=run,
                source=file.path,
                name=file.name,
            )

        def check_bundle(path: Path) -> None:
            from graphprune.cachecheck import check_steps, has_cache

            if run and has_cache(self.bundle.files):
                check_steps(path, self.bundle.folder or self.bundle.files[0].path)

        recipe = replace(self.plan.recipe, loader=self.plan.loader)
        provenance = {"recipe": json.dumps(recipe.to_json())}
        return self.bundle.save(
            out, external=external, overwrite=overwrite, provenance=provenance, check=check,
            check_bundle=check_bundle,
        )  # fmt: skip


def plan(bundle: Bundle, recipe: Recipe, *, loader: Loader | None = None) -> Plan:
    """What `recipe` would do to `bundle`: every pass is asked, nothing is changed.

    `loader` is the program that will load the result: "optimum", "genai" (onnxruntime-genai) or
    "plain" (your own). If it is not given, the recipe says it, or else the bundle's configs do.
    Raises `SelectionError` where a selection names what does not exist, or would empty a stack,
    `LoadError` where the bundle's files do not belong together.
    """
    recipe = recipe.pinned()
    _refuse_gates(bundle, recipe)
    read = _ir_steps(bundle.clone(), recipe.before) if recipe.before else bundle
    loader = loader or recipe.loader or loader_of(bundle)
    files = inspect(read, loader)
    require_set(read, files)
    return Plan(bundle, recipe, files, ask(recipe.passes, files), loader)


def _refuse_gates(bundle: Bundle, recipe: Recipe) -> None:
    """Blocks behind gates stand alone in subgraphs, where their layers and numbers cannot be told."""
    gated = next((file.name for file in bundle.files if read_gates(file.model.metadata_props)), "")
    if gated and recipe.passes:
        raise EditError(
            f"{gated} has gates already (insert_skips): prune the model that it was made from, and name "
            "insert_skips among the passes"
        )


def prune(
    bundle: Bundle,
    *,
    recipe: Recipe | str | Path | None = None,
    loader: Loader | None = None,
    **options: object,
) -> Pruned:
    """Prune by a recipe (an object or a file's path), by passes given as keywords, or by both in this order.

    `prune(bundle, drop_ffn=[3, 5], drop_layers={"layers": "last:1"})`: each keyword is a pass,
    its value the pass's first option or a mapping of options; `loader` is as in `plan`. Raises `RecipeError`,
    `SelectionError` (also where nothing at all would change), `EditError`.
    """
    given = recipes.load(recipe) if isinstance(recipe, (str, Path)) else recipe or recipes.Recipe()
    planned = plan(bundle, given + recipes.from_options(options), loader=loader)
    planned.require_change()
    return Pruned(planned.apply(), planned)


def _what_is_kept(files: Iterable[SurveyedFile], outcomes: Iterable[Outcome]) -> list[configs.Kept]:
    """What runs of every stack of a bundle: of its caches, those that the graphs of `files` have now."""
    edits = [outcome.answer for outcome in outcomes if isinstance(outcome.answer, Edit)]
    bare = [edit for edit in edits if edit.instead is None]
    gone = {id(b) for edit in bare for b in edit.removes} - {id(b) for edit in edits for b in edit.keeps}
    orders = {edit.target: edit.order for edit in edits if edit.order}
    holders: dict[str, list[str]] = {}
    for file in files:
        for stack in file.architecture.stacks:
            holders.setdefault(stack.name, []).append(file.name)
    return [
        configs.what_is_kept(stack, gone, orders.get(stack.name, ()), holders[stack.name])
        for stack in distinct_stacks(files)
    ]


def _configs(bundle: Bundle, kept: Sequence[configs.Kept]) -> dict[str, dict[str, Any]]:
    """The configs of a bundle, with the layers and caches that are left."""
    inputs = {file.name: [value.name or "" for value in file.model.graph.inputs] for file in bundle.files}
    followed: dict[str, Callable[[Mapping[str, Any], Sequence[configs.Kept]], dict[str, Any]]] = {
        "config.json": configs.follow,
        "generation_config.json": configs.follow_generation,
        "genai_config.json": partial(follow_genai, inputs=inputs),
    }
    return {name: followed[name](config, kept) for name, config in bundle.configs.items()}


def _ir_steps(bundle: Bundle, steps: Iterable[IrStep]) -> Bundle:
    """`bundle` after onnx_ir passes over each of its models, which they may change in place."""
    for step in steps:
        one = step.build()
        try:
            files = tuple(replace(file, model=one(file.model).model) for file in bundle.files)
        except Exception as error:  # these passes are other people's, and raise what they like
            raise EditError(f"ir_pass {step.path}: {type(error).__name__}: {error}") from error
        bundle = replace(bundle, files=files)
    return bundle


def sizes_of(bundle: Bundle, files: Iterable[SurveyedFile], edits: Sequence[Edit] = ()) -> Sizes:
    """The sizes of a bundle's files; blocks do the MACs that `edits` leave them, copies of a stack once."""
    gone = {branch for edit in edits for block in edit.removes for branch in block.branches}
    gone |= {branch for edit in edits for branch in edit.parts}
    keeping = {block for edit in edits for block in edit.keeps}
    blocks = [block for stack in distinct_stacks(files) for block in stack.blocks]
    macs = sum((_macs_left(block, gone, caches=block in keeping) for block in blocks), Macs())
    instead = {edit.removes[0]: edit.instead for edit in edits if edit.instead is not None}
    macs = sum((instead[block] for block in blocks if block in instead), macs)
    for spared in (edit.spared for edit in edits if edit.spared is not None):
        macs -= spared
    return sum((measure(file.model) for file in bundle.files), Sizes(macs=macs))


def _macs_left(block: Block, gone: Set[Branch], *, caches: bool) -> Macs:
    """What a block does without the branches that are `gone`, their caches still computed or not."""
    of_gone = (branch.cache_macs if caches else Macs() for branch in block.branches if branch in gone)
    of_others = (branch.macs for branch in block.branches if branch not in gone)
    return sum((*of_gone, *of_others), Macs())
