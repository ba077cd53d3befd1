"""From the choice that won to a model: its recipe, with the fitted values in a file beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graphprune.errors import RunError
from graphprune.storage import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.architecture import Architecture, Layer
    from graphprune.bundle import Bundle
    from graphprune.healing.choice import Choice
    from graphprune.healing.healed import Healing
    from graphprune.pipeline import Pruned
    from graphprune.recipe import Recipe

VALUES, REPORT = "healed.npz", "search.json"


@dataclass(frozen=True, eq=False)
class Built:
    """A pruned bundle, not written yet, and the file of values that its recipe reads, if any.

    `called` is what that file is called beside the model.
    """

    pruned: Pruned
    values: Path | None
    called: str = VALUES

    def write(
        self,
        out: Path,
        *,
        run: bool = True,
        overwrite: bool = False,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> Path:
        """Write the model, its values and further `texts` (by file name) beside it, all or nothing.

        What is written says that its recipe reads the values where they are then. Raises as `Pruned.save`.
        """
        with replacing(out, overwrite=overwrite) as folder:
            alone = self.pruned.bundle.folder is None
            pruned = self._named(beside(out, self.called))
            pruned.save(folder / out.name if alone else folder, run=run, overwrite=True)
            if self.values is not None:
                shutil.copyfile(self.values, beside(folder / out.name if alone else folder, self.called))
            for name, text in texts.items():
                beside(folder / out.name if alone else folder, name).write_text(text, encoding="utf-8")
        return out

    def _named(self, values: Path) -> Pruned:
        """The same, its recipe reading `values`."""
        plan = self.pruned.plan
        steps = (_reading(one, str(values)) for one in plan.recipe.passes)
        return replace(self.pruned, plan=replace(plan, recipe=replace(plan.recipe, passes=tuple(steps))))


def build(bundle: Bundle, choice: Choice, healing: Healing | None, folder: Path) -> Built:
    """The model of a choice, healed or as it is; `folder` takes the values for as long as it is made.

    Raises `SelectionError`, `EditError`.
    """
    from graphprune.pipeline import prune

    if healing is None:
        return Built(prune(bundle, recipe=plain_recipe(bundle, choice)), None)
    path = folder / VALUES
    save_values(path, healing.values())
    return Built(prune(bundle, recipe=healing.recipe(str(path))), path)


def beside(out: Path, name: str) -> Path:
    """A file that belongs to what is written at `out`: in the folder, or beside the file, called after it."""
    return out.with_name(f"{out.stem}.{name}") if out.suffix == ".onnx" else out / name


def save_values(path: Path, values: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a file of just this name."""
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **values)  # type: ignore[arg-type]


def plain_recipe(bundle: Bundle, choice: Choice) -> Recipe:
    """The recipe that drops blocks as they are. Raises `RunError` where no pass drops one of them alone."""
    from graphprune.recipe import from_options
    from graphprune.survey import inspect

    gone = [block for block, action in choice.items() if action != "keep"]
    options: dict[str, list[str]] = {}
    for file in inspect(bundle):
        for name, target in _drops(file.architecture, set(gone)):
            options.setdefault(name, []).append(target)
    which = {"which": "both"}
    return from_options(
        {
            name: {"blocks": tuple(dict.fromkeys(ids)), **(which if name == "drop_attention" else {})}
            if name != "drop_layers"
            else {"layers": tuple(dict.fromkeys(ids))}
            for name, ids in options.items()
        }
    )


def droppable(architecture: Architecture) -> set[str]:
    """The blocks that `plain_recipe` can drop."""
    found: set[str] = set()
    for stack in architecture.stacks:
        for layer in stack.layers:
            for block in layer.blocks:
                if block.kind in _PASSES or _alone(layer):
                    found.add(block.id)
    return found


_PASSES = {"attention": "drop_attention", "cross_attention": "drop_attention", "ffn": "drop_ffn"}


def _drops(architecture: Architecture, gone: set[str]) -> list[tuple[str, str]]:
    """The passes, each with a block or layer, that drop blocks."""
    found = []
    for stack in architecture.stacks:
        for layer in stack.layers:
            for block in (one for one in layer.blocks if one.id in gone):
                if block.kind in _PASSES:
                    found.append((_PASSES[block.kind], block.id))
                elif _alone(layer):
                    found.append(("drop_layers", f"{stack.name}.{layer.index}"))
                else:
                    raise RunError(f"{block.id}: no pass drops a {block.kind} block alone")
    return found


def _alone(layer: Layer) -> bool:
    return len(layer.blocks) == 1


def _reading(step: Any, values: str) -> Any:
    """A pass that reads values, or heads, reading them at another place."""
    name = next((name for name in ("values", "heads") if hasattr(step, name)), None)
    return replace(step, **{name: values}) if name else step


def to_text(report: Mapping[str, Any]) -> str:
    """JSON as it is written beside a model."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
