"""The options of `graphprune prune` that come from the passes: a pass file brings its options along."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from graphprune import recipe
from graphprune.recipe import Recipe


def describe_passes() -> list[dict[str, Any]]:
    """Every pass: its name, its summary and text, and its options with types and defaults."""
    return [
        {
            "name": name,
            "summary": _summary(one),
            "help": inspect.getdoc(one) or "",
            "options": [_describe(one, option) for option in recipe.options_of(one)],
        }
        for name, one in recipe.discover().items()
    ]


def with_pass_options(command: Callable[..., None], *, look_up: bool = True) -> Callable[..., None]:
    """`command`, with one CLI option for every pass option in place of its parameter `options`.

    `--drop-ffn` is the first option of `drop_ffn`; its further ones are `--drop-ffn-<option>`.
    Without `look_up` the passes are not imported, and there are none of these options.
    """
    own = inspect.signature(command, eval_str=True)
    flags = _flags() if look_up else {}
    added = [
        inspect.Parameter(
            flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, option)
        )
        for flag, (name, option) in flags.items()
    ]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        values = {flag: given.pop(flag) for flag in flags}
        command(**given, options={flag: value for flag, value in values.items() if value is not None})

    kept = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for n, p in own.parameters.items() if n != "options"
    ]
    wrapper.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *added)}
    return wrapper


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The recipe that the given options of `with_pass_options` ask for. Raises `RecipeError`."""
    flags = _flags()
    steps: dict[str, dict[str, Any]] = {}
    for flag, value in options.items():
        name, option = flags[flag]
        steps.setdefault(name, {})[option.name] = value
    return recipe.from_options(steps)


def _flags() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Names of parameters (`drop_ffn`, `drop_ffn_norm`, …) and the pass and option that they stand for."""
    flags: dict[str, tuple[str, dataclasses.Field[Any]]] = {}
    for name, one in recipe.discover().items():
        for index, option in enumerate(recipe.options_of(one)):
            flags[f"{name}_{option.name}" if index else name] = (name, option)
    return flags


def _annotation(name: str, option: dataclasses.Field[Any]) -> Any:
    """How typer is to take an option: as a flag, or as text that the recipe makes sense of."""
    one = recipe.discover()[name]
    described = _describe(one, option)
    first = option.name == recipe.options_of(one)[0].name
    default = f"; {described['default']} by default" if described["default"] not in (None, "") else ""
    text = _summary(one) if first else f"{described['type']}{default}"
    panel: dict[str, Any] = {"rich_help_panel": "Passes", "show_default": False}
    if described["type"] == "flag":
        flag = f"--{name}-{option.name}".replace("_", "-")
        return Annotated[bool | None, typer.Option(flag, help=f"{option.name} of {name}.", **panel)]
    metavar = option.name.rpartition("_")[2].upper()
    return Annotated[str | None, typer.Option(help=text, metavar=metavar, **panel)]


def _summary(one: type[Any]) -> str:
    return (inspect.getdoc(one) or "").partition("\n\n")[0].replace("\n", " ")


def _describe(one: type[Any], option: dataclasses.Field[Any]) -> dict[str, Any]:
    required = option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
    default = None if option.default is dataclasses.MISSING else option.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    kind = _kind(get_type_hints(one)[option.name])
    return {"name": option.name, "type": kind, "required": required, "default": default}


def _kind(hint: Any) -> str:
    """A type for people: `keep | drop`, `number`, `list of q | k | v`, `list`, `flag`, `text`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is tuple:
        inner = _kind(parts[0])
        return "list" if inner == "text" else f"list of {inner}"
    if any(get_origin(part) is tuple for part in parts):
        return "list"
    return {bool: "flag", int: "number", float: "number"}.get(hint, "text")
