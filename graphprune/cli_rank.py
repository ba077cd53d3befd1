"""The command `rank`: how important every block and layer is, by several criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli_common import Json, Model, console, emit, require_folder
from graphprune.cli_data import DataOptions
from graphprune.cli_groups import Runtime, with_groups

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.importance.results import Measured, Ranked, Ranking, Scale

_EXAMPLES = """Examples: graphprune rank bert-onnx --data pairs.csv --text 0,1 --label 2 --metric spearman

graphprune rank gpt2-onnx --data book.txt --by influence,healed --sort healed --plot rank.svg"""
_STREAM = "stream"
_NAMED = 3  # blocks of which a reason is told


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(rank))


def rank(
    model: Model,
    data: DataOptions = DataOptions(),
    by: Annotated[
        str, typer.Option(help="Criteria, with commas: influence, angular, norm, loss, healed.")
    ] = "influence,angular,norm,loss",
    batch: Annotated[int, typer.Option(min=1, help="Rows that run at once.")] = 32,
    sort: Annotated[str, typer.Option(help="A criterion to sort by, or stream.")] = _STREAM,
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this .svg file.")] = None,
    runtime: Runtime = Runtime(threads=1),
    as_json: Json = False,
) -> None:
    """Rank blocks and layers by what they do to the stream, and by what is lost without them."""
    from graphprune.importance.criteria import require_criteria
    from graphprune.importance.exchange import to_json
    from graphprune.ranking import rank as measure

    names = require_criteria(name.strip() for name in by.split(",") if name.strip())
    if sort not in (_STREAM, *names):
        raise typer.BadParameter(f"{sort!r} is not among {', '.join((_STREAM, *names))}", param_hint="--sort")
    _require_plot(plot)
    with console(stderr=True).status("") as status:
        found = measure(
            model, data.data(), by=names, batch=batch, settings=runtime.settings(), on_step=status.update
        )
    if plot is not None:
        _draw(found, plot)
    if as_json:
        emit(to_json(found))
        return
    _show(found, sort)
    if plot is not None:
        typer.echo(f"wrote {plot}")


def _require_plot(plot: Path | None) -> None:
    """Say before the work why there will be no plot."""
    from graphprune.report.render import require_extra

    require_folder(plot, "--plot")
    if plot is None:
        return
    if plot.suffix.lower() != ".svg":
        raise typer.BadParameter(f"{plot} is no .svg file, and plots are", param_hint="--plot")
    require_extra()


def _draw(found: Ranking, path: Path) -> None:
    from graphprune.report.figures import standalone
    from graphprune.report.plot_importance import importance_plot
    from graphprune.storage import write_text

    write_text(path, standalone(importance_plot(found)))


def _show(found: Ranking, sort: str) -> None:
    out = console()
    out.print(_title(found))
    out.print(_table("block", found, found.blocks, sort), "")
    if any(len(stack) > 1 for stack in _by_stack(found)):
        out.print(_table("layer", found, found.layers, sort), "")
    if found.stretches:
        out.print("angular distance over layers in a row, * the least of each number")
        out.print(_stretches(found), "")
    for line in _reasons(found):
        typer.echo(line)
    out.print(_criteria(found))


def _title(found: Ranking) -> str:
    dense = "".join(
        f"; {one.metric} of the dense model{where}: {one.dense:.4f}" for where, one in _scales(found)
    )
    return f"measured on {found.data}, {found.examples:,} examples{dense}; #1 is the first to spare"


def _scales(found: Ranking) -> Iterator[tuple[str, Scale]]:
    """The dense scores, and of which examples they are."""
    for criterion, scale in found.scales.items():
        yield " on those held out of the fit" if criterion == "healed" else "", scale


def _by_stack(found: Ranking) -> list[list[str]]:
    """The layers of each stack."""
    stacks: dict[str, list[str]] = {}
    for one in found.layers:
        stacks.setdefault(one.id.rpartition(".")[0], []).append(one.id)
    return list(stacks.values())


def _table(name: str, found: Ranking, ranked: Sequence[Ranked], sort: str) -> Table:
    """A row for each; of every criterion the value, the place, and the score where there is one."""
    from graphprune.cli_show import plain_table
    from graphprune.importance.results import ranks_of

    shown = plain_table(name)
    for criterion in found.by:
        scale = found.scales.get(criterion)
        for column in (criterion, "#", *([scale.metric] if scale else [])):
            shown.add_column(column, justify="right", no_wrap=True)
    places = {criterion: ranks_of(ranked, criterion) for criterion in found.by}
    rows = list(ranked)
    if sort != _STREAM:
        rows.sort(key=lambda one: places[sort].get(one.id, len(rows) + 1))
    for one in rows:
        cells = (_cells(found, name, one.found[name], places[name].get(one.id)) for name in found.by)
        shown.add_row(one.id, *(cell for group in cells for cell in group))
    return shown


def _cells(found: Ranking, criterion: str, one: Measured, place: int | None) -> Iterator[str]:
    from graphprune.report.numbers import NONE, percent, significant

    yield percent(one.value) if criterion == "loss" else significant(one.value)
    yield NONE if place is None else str(place)
    if criterion in found.scales:
        yield NONE if one.score is None else f"{one.score:.4f}"


def _stretches(found: Ranking) -> Table:
    """A row for each first layer, a column for each number of layers."""
    from graphprune.cli_show import plain_table
    from graphprune.report.numbers import NONE

    shown = plain_table("from layer")
    best = found.best_stretches
    lengths = sorted({one.length for one in found.stretches})
    for length in lengths:
        shown.add_column(f"{length} ", justify="right", no_wrap=True)
    by_place = {(one.stack, one.start, one.length): one for one in found.stretches}
    for stack, start in dict.fromkeys((one.stack, one.start) for one in found.stretches):
        cells = []
        for length in lengths:
            one = by_place.get((stack, start, length))
            value = NONE if one is None or one.distance is None else f"{one.distance:.4f}"
            cells.append("" if one is None else f"{value}{'*' if one in best else ' '}")
        shown.add_row(f"{stack}.{start}", *cells)
    return shown


def _reasons(found: Ranking) -> Iterator[str]:
    """What could not be measured, each reason once."""
    told: dict[tuple[str, str], list[str]] = {}
    for one in (*found.blocks, *found.layers):
        for criterion, measured in one.found.items():
            if measured.reason:
                told.setdefault((criterion, measured.reason), []).append(one.id)
    for (criterion, reason), ids in told.items():
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        yield f"no {criterion} of {', '.join(ids[:_NAMED])}{more}: {reason}"


def _criteria(found: Ranking) -> Table:
    from graphprune.cli_show import plain_table
    from graphprune.importance.criteria import CRITERIA

    shown = plain_table("criterion", "says", "does not say", "from")
    for one in (CRITERIA[name] for name in found.by):
        shown.add_row(one.name, one.says, one.silent, f"{one.paper}: arXiv:{one.url.rpartition('/')[2]}")
    return shown
