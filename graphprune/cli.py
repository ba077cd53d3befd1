"""The command line. Only `cli*.py` print: results to stdout, errors and progress to stderr.

Exit codes: 0 all went well; 1 a threshold or a check failed; 2 bad input (an unreadable model,
a selection or option that does not exist); 130 interrupted; 70 a fault of graphprune itself.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune import (
    cli_bench,
    cli_exits,
    cli_generate,
    cli_heal,
    cli_measure,
    cli_package,
    cli_profile,
    cli_rank,
    cli_report,
    cli_search,
    cli_skips,
)
from graphprune.cli_common import Debug, Json, Model, console, emit, working
from graphprune.cli_options import describe_passes, recipe_of, with_pass_options
from graphprune.errors import CheckError, GraphpruneError

if TYPE_CHECKING:
    from graphprune.pipeline import Pruned

EPILOG = "Exit codes: 0 ok, 1 a threshold or check failed, 2 bad input. Every command has --json and --help."


def main() -> None:
    """Run the command line; never ends in a traceback unless `--debug` is given.

    Graphs are many small objects of which hardly any becomes garbage, and all go with the process:
    looking for cycles among them on the way and at the end is a fifth of a short command's time.
    """
    gc.set_threshold(100_000)
    code = run_line(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run_line(arguments: list[str]) -> int:
    """Run one command line, without the program's name; the exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]  # it may stand anywhere
    try:
        typer.main.get_command(build_app(arguments)).main(arguments, prog_name="graphprune")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    except GraphpruneError as error:
        _complain(error, f"error: {error}", debug)
        return 1 if isinstance(error, CheckError) else 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = f"internal error: {type(error).__name__}: {error}"
        _complain(error, f"{what} (please report this; --debug shows where it happened)", debug)
        return 70
    return 0


def _complain(error: Exception, line: str, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(" ".join(line.split()), file=sys.stderr)


def build_app(arguments: list[str]) -> typer.Typer:
    """The app. The passes are looked up only where their options are needed: it takes a while."""
    app = typer.Typer(
        help="Depth and block surgery for exported ONNX models.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command(epilog="Example: graphprune export ./my-bert bert-onnx --task feature-extraction")(export)
    app.command(epilog="Example: graphprune inspect bert-onnx --json")(inspect)
    app.command(epilog="Example: graphprune passes")(passes)
    look_up = "prune" in arguments or "_GRAPHPRUNE_COMPLETE" in os.environ
    app.command("prune", epilog=_PRUNE_EXAMPLES)(with_pass_options(prune, look_up=look_up))
    cli_measure.add_to(app)
    cli_bench.add_to(app)
    cli_heal.add_to(app)
    cli_exits.add_to(app)
    cli_generate.add_to(app)
    cli_profile.add_to(app)
    cli_rank.add_to(app)
    cli_report.add_to(app)
    cli_package.add_to(app)
    cli_search.add_to(app)
    cli_skips.add_to(app)
    return app


_PRUNE_EXAMPLES = """Examples: graphprune prune bert-onnx out --drop-ffn 3,5 --drop-attention 0

graphprune prune model.onnx out.onnx --drop-layers last:2 --dry-run

graphprune prune model.onnx out.onnx --recipe recipe.yaml"""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("graphprune"))
        raise typer.Exit


def _options(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Depth and block surgery for exported ONNX models."""


def export(
    model: Annotated[str, typer.Argument(help="A local folder, or a model's id on the Hugging Face hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    task: Annotated[str, typer.Option(help="optimum's name of the task.")] = "auto",
    opset: Annotated[int | None, typer.Option(help="The ONNX opset; optimum's choice by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Export a transformers model to ONNX, by optimum (needs the extra `export`)."""
    from graphprune.exporter import export as run_export

    with working(f"exporting {model}"):
        path = run_export(model, out, task=task, opset=opset, dtype=dtype, overwrite=overwrite)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if as_json:
        emit({"out": str(path), "files": files})
    else:
        typer.echo(f"wrote {path}: {', '.join(file for file in files if file.endswith('.onnx'))}")


def inspect(model: Model, as_json: Json = False) -> None:
    """Show the stacks, layers and blocks of a model, and what could not be read as a block."""
    from graphprune.bundle import load
    from graphprune.describe import survey_to_json
    from graphprune.gates import gates_to_json
    from graphprune.survey import inspect as survey
    from graphprune.survey import ungated

    with working(f"reading {model}"):
        bundle = load(model)
        files = survey(ungated(bundle))
    gates = [gates_to_json(file.name, file.model) for file in bundle.files]
    if as_json:
        emit(survey_to_json(files) | {"gates": [one for one in gates if one["blocks"]]})
        return
    from graphprune import cli_show

    for file in files:
        if len(files) > 1:
            console().rule(file.name, align="left")
        for stack in file.architecture.stacks:
            console().print(cli_show.stack_title(stack))
            console().print(cli_show.picture(stack))
            console().print(cli_show.stack_table(stack), "")
        if file.architecture.declined:
            console().print("declined:", cli_show.declined_table(file.architecture.declined), "")
    for one in gates:
        if one["blocks"]:
            console().print(cli_show.gates_table(one), "")


def passes(as_json: Json = False) -> None:
    """List the passes and their options: as options of `prune`, or in a recipe."""
    rows = describe_passes()
    if as_json:
        emit(rows)
        return
    from graphprune.cli_show import passes_table

    console().print(passes_table(rows))


def prune(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="The file or folder to write; not needed for a dry run.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe, YAML or JSON; its passes come first.")
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LOADER",
            help="Who will load the result: optimum, genai or plain; told from MODEL by default.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    no_run: Annotated[bool, typer.Option("--no-run", help="Do not run the result to check it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Take blocks out of a model, check the result, and write it.

    A selection is a list of layers and blocks: `3,5`, `2-4`, `-1`, `last:2`, `all`, `decoder.3`,
    `encoder.3.ffn`. Numbers count the layers of the original model from 0.
    """
    from graphprune.bundle import load
    from graphprune.pipeline import Pruned, plan
    from graphprune.recipe import Recipe, loader_named
    from graphprune.recipe import load as load_recipe

    if out is None and not dry_run:
        raise typer.BadParameter("name the file or folder to write, or ask for a --dry-run", param_hint="OUT")
    with working(f"pruning {model}"):
        steps = (load_recipe(recipe) if recipe else Recipe()) + recipe_of(options)
        asked = None if loader is None else loader_named(loader, "--for")
        planned = plan(load(model), steps, loader=asked)
        if not (dry_run and planned.outcomes):
            planned.require_change()
        pruned = Pruned(planned.apply(), planned)
        written = None if dry_run or out is None else pruned.save(out, run=not no_run, overwrite=overwrite)
    _show_pruned(pruned, written, as_json)


def _show_pruned(pruned: Pruned, written: Path | None, as_json: bool) -> None:
    from graphprune import cli_show

    planned, after = pruned.plan, pruned.after
    if as_json:
        emit(cli_show.pruned_json(pruned, written))
        return
    console().print(cli_show.outcome_table(planned.outcomes, files=len(planned.files) > 1), "")
    console().print(cli_show.sizes_table(planned.before, after), "")
    for note in planned.notes:
        typer.echo(f"note: {note}")
    if any(block.caches for file in planned.files for block in file.architecture.blocks):
        typer.echo(f"caches as {planned.loader} reads them: --for names another loader")
    typer.echo(f"wrote and checked {written}" if written else "dry run: nothing was written")
