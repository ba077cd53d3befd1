"""The commands that run models: `run`, `bench`, `verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.errors import LoadError, RunError

if TYPE_CHECKING:
    from graphprune.play import Call, Source

Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A text, by the model's tokenizer; may be given several times."),
]
TextFile = Annotated[Path | None, typer.Option("--text-file", help="A file with one text a line.")]
Npz = Annotated[Path | None, typer.Option("--npz", help="Arrays by the names of the inputs.")]
Batch = Annotated[int, typer.Option(min=1, help="Rows of random inputs.")]
Length = Annotated[int, typer.Option(min=1, help="Length of random inputs.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random inputs.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of ONNX Runtime; 0 lets it choose.")]
Steps = Annotated[int, typer.Option(min=0, help="Further tokens, for models that take a cache.")]
_Limit = Annotated[float | None, typer.Option(help="A limit; beyond it the exit code is 1.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog='Example: graphprune run bert-onnx --text "Hello world"')(run)
    app.command(epilog="Example: graphprune bench bert-onnx out --batch 8 --sequence 128")(bench)
    app.command(epilog="Example: graphprune verify bert-onnx out --min-cosine 0.95")(verify)


def run(
    model: Model,
    text: Texts = None,
    text_file: TextFile = None,
    npz: Npz = None,
    batch: Batch = 1,
    sequence: Length = 16,
    seed: Seed = 0,
    steps: Steps = 0,
    threads: Threads = 0,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    as_json: Json = False,
) -> None:
    """Run a model on texts, on arrays or on random inputs, and show what comes out."""
    from graphprune import cli_show
    from graphprune.play import run as run_model

    source = source_of(model, text, text_file, npz, batch, sequence, seed)
    with working(f"running {model}"):
        calls = run_model(model, source, steps=steps, threads=threads)
    if save is not None:
        _save_outputs(save, calls)
    if as_json:
        emit({"calls": cli_show.calls_json(calls)})
    else:
        console().print(cli_show.run_table(calls))


def bench(
    models: Annotated[list[Path], typer.Argument(help="Models; ratios are to the first.")],
    text: Texts = None,
    text_file: TextFile = None,
    npz: Npz = None,
    batch: Batch = 1,
    sequence: Length = 128,
    seed: Seed = 0,
    steps: Steps = 0,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds; each runs every model once.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before these.")] = 5,
    as_json: Json = False,
) -> None:
    """Time models against each other, in turns: medians, spreads, ratios with 95% intervals."""
    from rich.progress import Progress

    from graphprune.cli_show import timing_table
    from graphprune.timing import bench as time_models

    source = source_of(models[0], text, text_file, npz, batch, sequence, seed)
    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("timing", total=rounds + warmup)
        timings = time_models(
            models,
            source,
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            steps=steps,
            on_round=lambda: progress.advance(task),
        )
    if as_json:
        emit({"threads": threads, "timings": [asdict(one) for one in timings]})
    else:
        console().print(timing_table(timings))


def verify(
    a: Model,
    b: Model,
    text: Texts = None,
    text_file: TextFile = None,
    npz: Npz = None,
    batch: Batch = 2,
    sequence: Length = 16,
    seed: Seed = 0,
    steps: Steps = 2,
    threads: Threads = 0,
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

    source = source_of(a, text, text_file, npz, batch, sequence, seed)
    limits = Limits(max_abs, max_mean_abs, max_kl, min_cosine, min_top1)
    with working(f"comparing {a} and {b}"):
        result = compare(a, b, source, steps=steps, logits=logits, threads=threads)
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


def source_of(
    model: Path,
    texts: list[str] | None,
    text_file: Path | None,
    npz: Path | None,
    batch: int,
    sequence: int,
    seed: int,
) -> Source:
    """The inputs that the options ask for: texts, arrays, or random ones."""
    from graphprune.play import Source

    if npz and (texts or text_file):
        raise typer.BadParameter("give texts or arrays, not both", param_hint="--npz")
    if texts or text_file:
        return Source.of_texts(model, [*(texts or []), *_lines(text_file)])
    return Source.of_npz(npz) if npz else Source(batch=batch, sequence=sequence, seed=seed)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path}: cannot be read as text in UTF-8: {error}") from error


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
