"""The command `package`: what another program needs to run a model, in a folder of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_groups import Inputs, with_groups

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.mobile import Partitions
    from graphprune.ortformat import Platform, Style
    from graphprune.packaging_ort import Package
    from graphprune.settings import Level

_TARGETS = ("ort",)
_EXAMPLES = """Examples: graphprune package bert-onnx bert-ort --target ort

graphprune package bert-onnx bert-phone --target ort --fix batch_size=1,sequence_length=128 --platform arm"""
_FIX = "Sizes of open axes, batch_size=1,sequence_length=128, or an input's shape, pixel_values:1x3x224x224."
_STYLE = "fixed: the optimized graph; or runtime, for NNAPI and CoreML: fusions come when it is loaded."
_PLATFORM = "any; or arm: int8 stays int8; or native: for processors like this one only."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(package))


def package(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The file (.ort) or folder to write.", show_default=False)],
    target: Annotated[str, typer.Option(help="What for: ort, ONNX Runtime's own format.")],
    fix: Annotated[list[str] | None, typer.Option(help=_FIX)] = None,
    level: Annotated[
        str, typer.Option(help="How far it is optimized: disabled, basic, extended, layout, all.")
    ] = "all",
    style: Annotated[str, typer.Option(help=_STYLE)] = "fixed",
    platform: Annotated[str, typer.Option(help=_PLATFORM)] = "any",
    types: Annotated[bool, typer.Option("--types", help="List the types of each operator, too.")] = False,
    inputs: Inputs = Inputs(),
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not measure what it takes to load and run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Package a model for the edge: in ONNX Runtime's own format, with the operators that it needs.

    Configs and tokenizers go along. The package is run, and must put out what MODEL does.
    """
    if target not in _TARGETS:
        raise typer.BadParameter(
            f"there is no target {target!r}; there is {', '.join(_TARGETS)}", param_hint="--target"
        )
    from graphprune.ortformat import Conversion
    from graphprune.packaging_ort import package_ort

    how = Conversion(cast("Level", level), cast("Style", style), cast("Platform", platform))
    with working(f"packaging {model}"):
        made = package_ort(
            model,
            out,
            conversion=how,
            fix=fix or (),
            types=types,
            source=inputs.source(model) if inputs != Inputs() else None,
            measure=not no_measure,
            overwrite=overwrite,
        )
    if as_json:
        emit({"target": target, **asdict(how), **asdict(made), "bytes_after": made.bytes_after})
    else:
        _show(made)


def _show(made: Package) -> None:
    console().print(_size_table(made), "")
    console().print(_device_table(made), "")
    for file in made.files:
        if file.unchecked:
            typer.echo(f"note: {file.unchecked}")
    if made.open_axes:
        typer.echo(f"open: {', '.join(made.open_axes)} (--fix gives them sizes)")
    typer.echo(f"needs {made.operators} operators: {made.config}")
    if made.gap is None:
        typer.echo(f"wrote {made.out}, not checked: {made.uncompared}")
    else:
        typer.echo(
            f"wrote and checked {made.out}: its outputs differ by {made.gap:.1g} of the largest at most"
        )


def _size_table(made: Package) -> Table:
    from graphprune.cli_show import plain_table

    table = plain_table("", "before", "after", "after / before")
    rows = [("bytes on the disk", float(made.bytes_before), float(made.bytes_after), ",.0f")]
    if made.before and made.after:
        rows.append(("ms to load", made.before.load_ms, made.after.load_ms, ".1f"))
        memory = (
            ("MB when loaded", made.before.loaded_mb, made.after.loaded_mb),
            ("MB at most, to load and run", made.before.peak_mb, made.after.peak_mb),
        )
        rows += [(name, a, b, ".1f") for name, a, b in memory if a is not None and b is not None]
    for name, before, after, form in rows:
        table.add_row(name, f"{before:{form}}", f"{after:{form}}", f"{after / before:.1%}" if before else "")
    return table


def _device_table(made: Package) -> Table:
    """What accelerators could take: now, and if shapes were fixed."""
    from graphprune.cli_show import plain_table

    several = len(made.files) > 1
    head = ["file"] if several else []
    table = plain_table(*head, "accelerator", "takes", "worth a try", "with fixed sizes")
    for file in made.files:
        for one in file.partitions:
            fixed = one.if_fixed
            verdict = "" if one.verdict is None else one.verdict
            later = f"{_taken(fixed)}: {fixed.verdict}" if fixed else ""
            table.add_row(*([file.name] if several else []), one.provider, _taken(one), verdict, later)
    return table


def _taken(one: Partitions) -> str:
    return f"{one.supported} of {one.nodes} nodes, in {one.partitions} parts"
