"""Recipes: ordered lists of passes with their options, written as YAML, JSON or keyword arguments.

```yaml
for: optimum                        # who will load the result; may be left out
passes:
  - drop_ffn: [3, 5]                # a value alone is the pass's first option
  - drop_attention:
      blocks: decoder.2-4
  - ir_pass: onnx_ir.passes.common.IdentityEliminationPass
```

Passes are found by looking into the folder `graphprune.passes`: a file is a pass. A step may
also be any `onnx_ir` pass, by its import path (`options:` beside it are its keyword arguments);
such steps stand before or after all pruning passes, because these name blocks of one graph.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard, cast, get_args, get_type_hints

from graphprune.architecture import Loader
from graphprune.errors import GraphpruneError, RecipeError
from graphprune.recipefile import Lines, read_json, read_yaml

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.prunepass import PrunePass

IR_PASS = "ir_pass"
FOR = "for"


@dataclass(frozen=True)
class IrStep:
    """An `onnx_ir` pass as a step of a recipe: its import path and its keyword arguments."""

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> ir.passes.PassBase:
        """The pass itself. Raises `RecipeError` where there is no such pass or it refuses the options."""
        import onnx_ir

        module, _, name = self.path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise RecipeError(f"{IR_PASS} {self.path!r} cannot be imported: {error}") from error
        if not (isinstance(found, type) and issubclass(found, onnx_ir.passes.PassBase)):
            raise RecipeError(f"{IR_PASS} {self.path!r} is not an onnx_ir pass")
        try:
            return found(**self.options)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{IR_PASS} {self.path!r} does not take these options: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """What to do to a model: `before` and `after` are onnx_ir passes, `passes` the pruning between them.

    `loader` is the program that will load the result (`for` in a file); None leaves it open.
    """

    passes: tuple[PrunePass, ...] = ()
    before: tuple[IrStep, ...] = ()
    after: tuple[IrStep, ...] = ()
    loader: Loader | None = None

    @property
    def steps(self) -> tuple[PrunePass | IrStep, ...]:
        """All steps in order."""
        return (*self.before, *self.passes, *self.after)

    def to_json(self) -> dict[str, Any]:
        """The recipe as a file would hold it; `parse` of it gives an equal recipe."""
        known = {FOR: self.loader} if self.loader else {}
        return known | {"passes": [_step_json(step) for step in self.steps]}

    def pinned(self) -> Recipe:
        """The recipe with the hashes of the files that its passes read: such passes have a `pinned()`.

        Raises `RecipeError` where such a file cannot be read, or is not the one that was hashed.
        """
        return replace(
            self, passes=tuple(getattr(one, "pinned", lambda one=one: one)() for one in self.passes)
        )

    def __add__(self, other: Recipe) -> Recipe:
        """Both recipes as one: what stood before, between and after stays there."""
        loader = other.loader or self.loader
        return Recipe(
            self.passes + other.passes, self.before + other.before, self.after + other.after, loader
        )


@cache
def discover() -> Mapping[str, type[PrunePass]]:
    """The passes in `graphprune.passes`, by their names: one file each, files with a `_` before left out."""
    folder = importlib.import_module("graphprune.passes")
    found: dict[str, type[PrunePass]] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        if not module.name.startswith("_"):
            for one in _passes_of(importlib.import_module(f"graphprune.passes.{module.name}")):
                found[one.name] = one
    return dict(sorted(found.items()))


def _passes_of(module: ModuleType) -> Iterator[type[PrunePass]]:
    for item in vars(module).values():
        own = isinstance(item, type) and item.__module__ == module.__name__
        if own and dataclasses.is_dataclass(item) and hasattr(item, "plan") and hasattr(item, "name"):
            yield cast("type[PrunePass]", item)


def options_of(one: type[PrunePass]) -> tuple[dataclasses.Field[Any], ...]:
    """The options of a pass: its dataclass fields, the first being the one that may stand alone."""
    return dataclasses.fields(one)  # type: ignore[arg-type]


def load(path: str | Path) -> Recipe:
    """Read a recipe file: JSON where the name ends in `.json`, else YAML.

    Raises `RecipeError`, one line with the file, the line and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text in UTF-8 (byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    data, lines = read_json(path, text) if path.suffix == ".json" else read_yaml(path, text)
    return parse(data, source=str(path), lines=lines)


def parse(data: object, *, source: str = "recipe", lines: Lines | None = None) -> Recipe:
    """A recipe from what a file holds: `{"for": "plain", "passes": [{"drop_ffn": {"blocks": "3,5"}}, …]}`.

    `lines` maps key paths to line numbers for messages. Raises `RecipeError`.
    """
    where = _Where(source, lines or {})
    if not _is_recipe(data):
        raise RecipeError(
            f"{where()}: a recipe is a mapping with the key 'passes' and a list under it, and maybe '{FOR}'"
        )
    if not data["passes"]:
        raise RecipeError(f"{where('passes')}: the list of passes is empty")
    steps = [_step(item, where, index) for index, item in enumerate(data["passes"])]
    recipe = _order(steps, [where("passes", index) for index in range(len(steps))])
    return replace(recipe, loader=loader_named(data[FOR], where(FOR))) if FOR in data else recipe


def _is_recipe(data: object) -> TypeGuard[Mapping[str, Any]]:
    keys = set(data) if isinstance(data, Mapping) else set()
    return keys - {FOR} == {"passes"} and isinstance(cast("Any", data)["passes"], list)


def loader_named(name: object, where: str) -> Loader:
    """The loader of this name. Raises `RecipeError` with `where` it was asked for."""
    known: tuple[Loader, ...] = get_args(Loader)
    for one in known:
        if name == one:
            return one
    raise RecipeError(f"{where}: there is no loader {name!r}: it is one of {', '.join(known)}")


def from_options(options: Mapping[str, object]) -> Recipe:
    """A recipe from keyword arguments: `{"drop_ffn": [3, 5], "drop_layers": {"layers": "2-4"}}`."""
    where = _Where("options", {})
    return Recipe(passes=tuple(_pass(name, value, where, ()) for name, value in options.items()))


@dataclass(frozen=True)
class _Where:
    """Names a place in a recipe: file, line (of the nearest key whose line is known), keys."""

    source: str
    lines: Lines

    def __call__(self, *keys: object) -> str:
        known = next((keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in self.lines), None)
        line = "" if known is None else f":{self.lines[known]}"
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        return f"{self.source}{line}{': ' if path else ''}{path}"


def _step(item: object, where: _Where, index: int) -> PrunePass | IrStep:
    at = ("passes", index)
    if isinstance(item, Mapping) and IR_PASS in item:
        return _ir_step(item, where, at)
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise RecipeError(f"{where(*at)}: a step is one pass with its options, such as `drop_ffn: [3, 5]`")
    ((name, value),) = item.items()
    return _pass(name, value, where, at)


def _ir_step(item: Mapping[Any, object], where: _Where, at: tuple[Any, ...]) -> IrStep:
    path, options = item[IR_PASS], item.get("options") or {}
    unknown = [key for key in item if key not in (IR_PASS, "options")]
    if unknown or not isinstance(path, str) or not isinstance(options, Mapping):
        raise RecipeError(f"{where(*at)}: {IR_PASS} takes an import path, and a mapping under 'options'")
    step = IrStep(path, {str(key): value for key, value in options.items()})
    try:
        step.build()
    except RecipeError as error:
        raise RecipeError(f"{where(*at)}: {error}") from error
    return step


def _pass(name: object, value: object, where: _Where, at: tuple[Any, ...]) -> PrunePass:
    passes = discover()
    if name not in passes:
        known = ", ".join((*passes, IR_PASS))
        raise RecipeError(f"{where(*at)}: there is no pass {name!r}: the passes are {known}")
    one = passes[str(name)]
    fields = {option.name: option for option in options_of(one)}
    if not isinstance(value, Mapping):
        value = {next(iter(fields)): value} if fields and value is not None else {}
    for key in value:
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise RecipeError(f"{where(*at, name, key)}: no such option: {name} has {known}")
    needs = [f.name for f in fields.values() if f.name not in value and _required(f)]
    if needs:
        raise RecipeError(f"{where(*at, name)}: {name} needs {' and '.join(needs)}")
    types = get_type_hints(one)
    taken = {key: _value(types[key], given, where(*at, name, key)) for key, given in value.items()}
    try:
        return one(**taken)
    except (GraphpruneError, ValueError, TypeError) as error:
        raise RecipeError(f"{where(*at, name)}: {error}") from error


def _required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


def _value(kind: Any, given: object, where: str) -> Any:
    """`given` as `kind`: as it stands, as the one item of a sequence, or as a text with commas."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    readings: list[object] = [given, (given,)]
    if isinstance(given, str):
        readings.append(tuple(part.strip() for part in given.split(",")))
    problem = ""
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            problem = problem or "; ".join(dict.fromkeys(e["msg"].lower() for e in error.errors()))
    raise RecipeError(f"{where}: {given!r} does not fit: {problem}")


def _order(steps: Sequence[PrunePass | IrStep], where: Sequence[str]) -> Recipe:
    """Steps as a recipe; onnx_ir passes may not stand between pruning passes."""
    pruning = [index for index, step in enumerate(steps) if not isinstance(step, IrStep)]
    first, last = (pruning[0], pruning[-1]) if pruning else (len(steps), len(steps))
    for index, step in enumerate(steps):
        if first < index < last and isinstance(step, IrStep):
            raise RecipeError(f"{where[index]}: an {IR_PASS} stands before or after all pruning passes")
    return Recipe(
        passes=tuple(step for step in steps if not isinstance(step, IrStep)),
        before=tuple(step for step in steps[:first] if isinstance(step, IrStep)),
        after=tuple(step for step in steps[last + 1 :] if isinstance(step, IrStep)),
    )


def _step_json(step: PrunePass | IrStep) -> dict[str, Any]:
    if isinstance(step, IrStep):
        return {IR_PASS: step.path, "options": dict(step.options)} if step.options else {IR_PASS: step.path}
    values = {option.name: getattr(step, option.name) for option in options_of(type(step))}
    return {step.name: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}
