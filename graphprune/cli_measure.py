"""The commands that run models: `run`, `verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_groups import Depth, Inputs, with_groups
from graphprune.errors import RunError

if TYPE_CHECKING:
    from graphprune.play import Call

Steps = Annotated[int, typer.Option(min=0, help="Further tokens, for models that take a cache.")]
_Limit = Annotated[float | None, typer.Option(help="A limit; beyond it the exit code is 1.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog='Example: graphprune run bert-onnx --text "Hello world"')(with_groups(run))
    app.command(epilog="Example: graphprune verify bert-onnx out --min-cosine 0.95")(with_groups(verify))


def run(
    model: Model,
    inputs: Inputs = Inputs(),
    steps: Steps = 0,
    runtime: Depth = Depth(),
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    as_json: Json = False,
) -> None:
    """Run a model on texts, on arrays or on random inputs, and show what comes out."""
    from graphprune import cli_show
    from graphprune.play import run as run_model

    source = inputs.source(model)
    with working(f"running {model}"):
        calls = run_model(model, source, steps=steps, settings=runtime.settings_of(model))
    if save is not None:
        _save_outputs(save, calls)
    if as_json:
        emit({"calls": cli_show.calls_json(calls)})
    else:
        console().print(cli_show.run_table(calls))


def verify(
    a: Model,
    b: Model,
    inputs: Inputs = Inputs(batch=2),
    steps: Steps = 2,
    runtime: Depth = Depth(),
    logits: Annotated[str, typer.Option(help="How an output is called that holds logits.")] = "logits",
    max_abs: _Limit = None,
    max_mean_abs: _Limit = None,
    max_kl: _Limit = None,
    min_cosine: _Limit = None,
    min_top1: _Limit = None,
    as_json: Json = False,
) -> None:
    """Compare the outputs of two models on the same inputs; limits set the exit code."""
    from graphprune.cli_show import difference_table
    from graphprune.compare import Limits
    from graphprune.compare import verify as compare

    source = inputs.source(a)
    limits = Limits(max_abs, max_mean_abs, max_kl, min_cosine, min_top1)
    with working(f"comparing {a} and {b}"):
        result = compare(a, b, source, steps=steps, logits=logits, settings=runtime.settings_of(a, b))
    broken = limits.broken(result.differences)
    if as_json:
        emit({**asdict(result), "broken": broken, "passed": not broken})
    else:
        console().print(difference_table(result.differences))
        for names, model in ((result.only_in_a, a), (result.only_in_b, b)):
            if names:
                typer.echo(f"only in {model}: {', '.join(names)}")
    for line in broken:
        typer.echo(f"limit broken: {line}", err=True)
    if broken:
        raise typer.Exit(1)


def _save_outputs(path: Path, calls: list[Call]) -> None:
    """Outputs by name; with the file before and the step after it, where there are several."""
    import numpy as np

    files = {call.session.name for call in calls}
    arrays = {
        (f"{call.session.name}:" if len(files) > 1 else "")
        + name
        + (f"@{call.step}" if call.step else ""): array
        for call in calls
        for name, array in call.outputs.items()
    }
    try:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
