"""What all commands share: common options, the console, progress, JSON output."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Model = Annotated[
    Path, typer.Argument(help="An .onnx file, or a folder with one or more.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide where the output is piped, so that nothing is folded there."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else 200
    )


def emit(result: Any) -> None:
    """Print a result as JSON; what is not a number becomes null."""
    from graphprune.jsonable import finite

    typer.echo(json.dumps(finite(result), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def require_folder(path: Path | None, option: str) -> None:
    """Say before the work that a file that an option asks for has no place."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}", param_hint=option)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns to a file, whole or not at all. Raises `SaveError`."""
    from graphprune.storage import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on stderr that something is going on; silent where stderr is no terminal."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    with screen.status(what):
        yield
