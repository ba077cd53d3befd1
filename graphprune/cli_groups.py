"""Groups of options that several commands share: what a model is run on, and how.

A command takes a group as one parameter, whose default may change the options' defaults:

    def run(model: Model, inputs: Inputs = Inputs(batch=2), runtime: Runtime = Runtime()) -> None: ...

    app.command()(with_groups(run))
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from graphprune.errors import LoadError

if TYPE_CHECKING:
    from graphprune.play import Source
    from graphprune.settings import Level, Memory, Settings

_INPUTS: dict[str, Any] = {"rich_help_panel": "Inputs"}
_RUNTIME: dict[str, Any] = {"rich_help_panel": "Runtime"}
# Of a size; numbers of thousands of digits are not even read.
_DIGITS = 20
_TEXT = "A text, by the model's tokenizer; may be given several times."
_PROVIDER = "Where it runs: cpu, cuda, tensorrt, …, several by commas, or auto."
_SKIP = "Blocks or layers that do not run, of a model with gates: 3,5 or decoder.2.ffn; or none."
_OPTION = "An option of a provider, such as cuda.gpu_mem_limit=2000000000; several times."


@dataclass(frozen=True)
class Given:
    """What a model is run on: texts or arrays; random values where there are none."""

    text: Annotated[list[str] | None, typer.Option(help=_TEXT, **_INPUTS)] = None
    text_file: Annotated[Path | None, typer.Option(help="A file with one text a line.", **_INPUTS)] = None
    npz: Annotated[Path | None, typer.Option(help="Arrays by the names of the inputs.", **_INPUTS)] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of random inputs.", **_INPUTS)] = 0

    @property
    def given(self) -> bool:
        """Whether there are texts or arrays, which have sizes of their own."""
        return bool(self.text or self.text_file or self.npz)

    def own_source(self, model: Path) -> Source:
        """The texts, by the tokenizer of `model`, or the arrays. Raises `LoadError`, `RunError`."""
        from graphprune.play import Source

        if self.npz and (self.text or self.text_file):
            raise typer.BadParameter("give texts or arrays, not both", param_hint="--npz")
        if self.npz:
            return Source.of_npz(self.npz)
        return Source.of_texts(model, [*(self.text or []), *_lines(self.text_file)])


@dataclass(frozen=True)
class Inputs(Given):
    """As `Given`, with the size of random values."""

    batch: Annotated[int, typer.Option(min=1, help="Rows of random inputs.", **_INPUTS)] = 1
    sequence: Annotated[int, typer.Option(min=1, help="Length of random inputs.", **_INPUTS)] = 16

    def source(self, model: Path) -> Source:
        """The inputs, texts by the tokenizer of `model`. Raises `LoadError`, `RunError`."""
        from graphprune.play import Source

        if self.given:
            return self.own_source(model)
        return Source(batch=self.batch, sequence=self.sequence, seed=self.seed)


@dataclass(frozen=True)
class Grid(Given):
    """As `Given`, with one or more sizes of random values."""

    batch: Annotated[str, typer.Option(help="Rows of random inputs, several by commas: 1,8.", **_INPUTS)] = (
        "1"
    )
    sequence: Annotated[
        str, typer.Option(help="Length of random inputs, several by commas: 32,128.", **_INPUTS)
    ] = "128"

    def sources(self, model: Path) -> tuple[Source, ...]:
        """The inputs: every batch with every length, or the texts or arrays that are given."""
        from graphprune.play import Source

        batches, lengths = sizes_of(self.batch, "--batch"), sizes_of(self.sequence, "--sequence")
        if not self.given:
            return tuple(Source(batch=b, sequence=s, seed=self.seed) for b in batches for s in lengths)
        if len(batches) * len(lengths) > 1:
            raise typer.BadParameter("texts and arrays have a size of their own", param_hint="--batch")
        return (self.own_source(model),)


@dataclass(frozen=True)
class Runtime:
    """How a model is run."""

    provider: Annotated[str, typer.Option(help=_PROVIDER, **_RUNTIME)] = "cpu"
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of ONNX Runtime; 0 lets it choose.", **_RUNTIME)
    ] = 0
    level: Annotated[
        str,
        typer.Option(
            help="How far ONNX Runtime optimizes: disabled, basic, extended, layout, all.", **_RUNTIME
        ),
    ] = "all"
    memory: Annotated[str, typer.Option(help="fast; or lean: less memory, and slower.", **_RUNTIME)] = "fast"
    io_binding: Annotated[
        bool, typer.Option("--io-binding", help="Keep inputs and outputs on the device.", **_RUNTIME)
    ] = False
    cache: Annotated[
        Path | None, typer.Option(help="A folder in which optimized models are kept.", **_RUNTIME)
    ] = None
    provider_option: Annotated[list[str] | None, typer.Option(help=_OPTION, **_RUNTIME)] = None

    def settings(self) -> Settings:
        """The settings that the options ask for. Raises `RunError`."""
        from graphprune.settings import Settings

        return Settings(
            tuple(name.strip() for name in self.provider.split(",") if name.strip()),
            self.threads,
            cast("Level", self.level),
            cast("Memory", self.memory),
            self.io_binding,
            self.cache,
            _by_provider(self.provider_option or ()),
        )


@dataclass(frozen=True)
class Depth(Runtime):
    """As `Runtime`, with the blocks that do not run."""

    skip: Annotated[
        str | None, typer.Option(metavar="BLOCKS", help=_SKIP, show_default=False, **_RUNTIME)
    ] = None

    def settings_of(self, *models: Path) -> Settings:
        """The settings that the options ask for; one of `models` has gates for the blocks to skip.

        Raises `RunError`.
        """
        skip = tuple(item.strip() for item in (self.skip or "").split(",") if item.strip())
        if skip:
            _require_gates(models, skip)
        return dataclasses.replace(self.settings(), skip=skip)


def _require_gates(models: Sequence[Path], skip: Sequence[str]) -> None:
    from graphprune.bundle import load
    from graphprune.gates import read_gates, require_gates

    files = [file for model in models for file in load(model).files]
    gates = dict.fromkeys(id for file in files for id in read_gates(file.model.metadata_props))
    require_gates([*gates], skip, str(models[-1]))


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with the options of each group in place of the parameter that takes the group."""
    own = inspect.signature(command, eval_str=True)
    groups = {n: p for n, p in own.parameters.items() if dataclasses.is_dataclass(p.annotation)}
    members = {name: list(_members(parameter)) for name, parameter in groups.items()}

    @wraps(command)
    def wrapper(**given: Any) -> None:
        for name, parameter in groups.items():
            values = {member.name: given.pop(member.name) for member in members[name]}
            given[name] = parameter.annotation(**values)
        command(**given)

    parameters = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.parameters.items()
        for one in members.get(name, [parameter])
    ]
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _members(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters, with the values of the parameter's own default as theirs."""
    group = parameter.annotation
    default = group() if parameter.default is inspect.Parameter.empty else parameter.default
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY,
            default=getattr(default, field.name), annotation=hints[field.name],
        )  # fmt: skip


def _by_provider(options: list[str] | tuple[str, ...]) -> dict[str, dict[str, str]]:
    """`cuda.device_id=1` as `{"cuda": {"device_id": "1"}}`."""
    found: dict[str, dict[str, str]] = {}
    for option in options:
        name, dot, rest = option.partition(".")
        key, equals, value = rest.partition("=")
        if not (dot and equals and name and key):
            raise typer.BadParameter(
                f"{option!r} is not like cuda.device_id=0", param_hint="--provider-option"
            )
        found.setdefault(name, {})[key] = value
    return found


def sizes_of(text: str, option: str) -> tuple[int, ...]:
    """`1,8` as numbers, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < _DIGITS and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not like 1,8,32", param_hint=option)
    return tuple(dict.fromkeys(map(int, parts)))


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path}: cannot be read as text in UTF-8: {error}") from error
