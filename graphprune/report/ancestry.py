"""Where a model comes from: what its files say of it, whether that is true, and what was removed on the way.

What a file says is taken for what a stranger says: recipes are planned, never run, and steps that
would import code are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune import recipe as recipes
from graphprune.bundle import fingerprint
from graphprune.errors import GraphpruneError

if TYPE_CHECKING:
    from graphprune.bundle import Bundle, ModelFile
    from graphprune.pipeline import Plan

_KEY = "graphprune."
_DEEPEST = 32  # levels of a recipe in JSON: ours have four


@dataclass(frozen=True)
class FileOrigin:
    """One file: its own SHA-256, and what it says of its source; "" where it says nothing."""

    name: str
    sha256: str
    source: str = ""
    source_sha256: str = ""
    version: str = ""


@dataclass(frozen=True)
class Origin:
    """The files of a model, the recipe that it was made by, as the files hold it, and earlier ones.

    `recipe` is None where there is none or it cannot be read; `notes` say so.
    """

    files: tuple[FileOrigin, ...]
    recipe: Mapping[str, Any] | None = None
    earlier: int = 0
    notes: tuple[str, ...] = ()


def origin_of(bundle: Bundle) -> Origin:
    """What the files of `bundle` say of where they come from. Raises `OSError` where one cannot be read."""
    files = tuple(_file(file) for file in bundle.files)
    said = [_said(file) for file in bundle.files]
    texts = dict.fromkeys(one["recipe"] for one in said if one.get("recipe"))
    earlier = max((_earlier(one.get("history", "")) for one in said), default=0)
    if not texts:
        return Origin(files, earlier=earlier)
    recipe = _object(next(iter(texts)))
    notes = ["the recipe in the file cannot be read: it is no JSON object"] if recipe is None else []
    if len(texts) > 1:
        notes.append("the files were made by different recipes: the first is shown")
    return Origin(files, recipe, earlier, tuple(notes))


def not_the_source(model: Origin, dense: Origin) -> str:
    """Why `dense` is not what `model` was made from; "" if it is. Files go together by name."""
    known = {file.name: file.sha256 for file in dense.files}
    alone = len(model.files) == len(dense.files) == 1
    for file in model.files:
        if not file.source_sha256:
            return f"{file.name} does not say what it was made from"
        sha256 = dense.files[0].sha256 if alone else known.get(file.name)
        if sha256 != file.source_sha256:
            found = f"has SHA-256 {sha256[:12]}…" if sha256 else "is not there"
            wanted = f"{file.source} of SHA-256 {file.source_sha256[:12]}…"
            return f"{file.name} was made from {wanted}, which {found}"
    return ""


def plan_again(dense: Bundle, origin: Origin) -> tuple[Plan | None, tuple[str, ...]]:
    """What the recipe of `origin` does to `dense`, and notes: why not, or what was left out.

    Passes of onnx_ir are left out: a recipe in a model's file comes from a stranger, and must import nothing.
    """
    from graphprune.pipeline import plan

    steps = (origin.recipe or {}).get("passes")
    if origin.recipe is None or not isinstance(steps, list):
        return None, ()
    foreign = [step for step in steps if isinstance(step, Mapping) and recipes.IR_PASS in step]
    own = [step for step in steps if step not in foreign]
    notes = [f"left out of the plan: {one[recipes.IR_PASS]}" for one in foreign]
    if not own:
        return None, tuple(notes)
    try:
        return plan(dense, recipes.parse({**origin.recipe, "passes": own}, source="the recipe")), tuple(notes)
    except GraphpruneError as error:
        return None, (*notes, f"what was removed cannot be told: {error}")


def _file(file: ModelFile) -> FileOrigin:
    said = _said(file)
    own = fingerprint(file)["source_sha256"]
    return FileOrigin(file.name, own, *(said.get(key, "") for key in ("source", "source_sha256", "version")))


def _said(file: ModelFile) -> dict[str, str]:
    props = file.model.metadata_props
    return {key.removeprefix(_KEY): value for key, value in props.items() if key.startswith(_KEY)}


def _earlier(text: str) -> int:
    """How many runs before the last one a file's history tells of."""
    found = _parsed(text)
    return len(found) if isinstance(found, list) else 0


def _object(text: str) -> dict[str, Any] | None:
    found = _parsed(text)
    return found if isinstance(found, dict) else None


def _parsed(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if _depth([found]) else None


def _depth(values: Iterable[Any], level: int = 0) -> bool:
    """Whether nothing is nested too deep to be handled."""
    if level > _DEEPEST:
        return False
    return all(
        _depth(value.values() if isinstance(value, dict) else value, level + 1)
        for value in values
        if isinstance(value, (dict, list))
    )
