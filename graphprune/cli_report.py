"""The command `report`: one HTML page about a model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli_common import Json, Model, console, emit
from graphprune.cli_groups import Inputs, Runtime, with_groups

_EXAMPLES = """Examples: graphprune report bert-pruned --dense bert-onnx --text-file texts.txt

graphprune report gpt2-onnx --steps 8 --out gpt2.html"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(report))


def report(
    model: Model,
    dense: Annotated[Path | None, typer.Option(help="The model that MODEL was made from.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    steps: Annotated[int, typer.Option(min=0, help="Further tokens, for models that take a cache.")] = 0,
    sizes: Annotated[
        str, typer.Option(help="More sizes to time, batch x length, with commas.")
    ] = "1x32,8x128",
    rounds: Annotated[int, typer.Option(min=2, help="Times that everything timed runs.")] = 12,
    ranking: Annotated[
        Path | None, typer.Option(help="What `graphprune rank --json` printed, to be shown.")
    ] = None,
    inputs: Inputs = Inputs(sequence=128),
    runtime: Runtime = Runtime(threads=1),
    as_json: Json = False,
) -> None:
    """Write one HTML page: the stream by time, parameters and importance, latency, memory, the recipe."""
    from graphprune.importance.exchange import read_ranking
    from graphprune.report.writing import write_report

    ranked = None if ranking is None else read_ranking(ranking)
    screen = console(stderr=True)
    with screen.status("") as status:
        path = write_report(
            model, out,
            dense=dense, source=inputs.source(dense or model), settings=runtime.settings(),
            rounds=rounds, steps=steps, cells=_cells(sizes), ranking=ranked,
            command=_command(), on_step=status.update,
        )  # fmt: skip
    if as_json:
        emit({"out": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(f"wrote {path}")


def _cells(sizes: str) -> list[tuple[int, int]]:
    """`1x32,8x128` as pairs of batch and length."""
    found = []
    for item in sizes.split(","):
        batch, x, length = item.strip().partition("x")
        if not (x and batch.isdecimal() and length.isdecimal() and int(batch) and int(length)):
            raise typer.BadParameter(f"{item!r} is not like 8x128", param_hint="--sizes")
        found.append((int(batch), int(length)))
    return found


def _command() -> str:
    """The command line that is running, to be shown on the page."""
    return shlex.join(["graphprune", *sys.argv[1:]])
