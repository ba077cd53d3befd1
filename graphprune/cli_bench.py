"""The command `bench`: models against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli_common import Json, console, emit, require_folder, write_csv
from graphprune.cli_groups import Depth, Grid, with_groups
from graphprune.cli_measure import Steps

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.timing import Bench, ModelCost, Timing

FORMAT = 1
_EXAMPLES = """Examples: graphprune bench bert-onnx out --batch 1,8 --sequence 32,128

graphprune bench gpt2-onnx gpt2-half --steps 16 --csv times.csv"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(bench))


def bench(
    models: Annotated[list[Path], typer.Argument(help="Models; ratios are to the first.")],
    inputs: Grid = Grid(),
    steps: Steps = 0,
    runtime: Depth = Depth(threads=1),
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds; each runs every model once.")] = 50,
    loads: Annotated[int, typer.Option(min=1, help="Times that models are loaded for these rounds.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before the timed ones of each load.")] = 2,
    baseline: Annotated[
        str, typer.Option(metavar="MODEL", help="The model that ratios are to, or its number.")
    ] = "1",
    footprint: Annotated[bool, typer.Option(help="Measure memory and the time to load.")] = True,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Show the share of the machine's peak, measured first.")
    ] = False,
    table: Annotated[Path | None, typer.Option("--csv", help="Write all figures to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Time models against each other, in turns: medians, spreads, ratios with 95% intervals, memory."""
    from rich.progress import Progress

    from graphprune.timing import bench as time_models

    require_folder(table, "--csv")
    sources = inputs.sources(models[0])
    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("loading", total=1.0)
        found = time_models(
            models,
            sources,
            rounds=rounds,
            loads=loads,
            warmup=warmup,
            steps=steps,
            baseline=_place(baseline, models),
            settings=runtime.settings_of(*models),
            footprint=footprint,
            roofline=roofline,
            on_progress=lambda what, share: progress.update(task, description=what, completed=share),
        )
    if as_json:
        emit(to_json(found))
    else:
        _show(found)
    for note in found.notes:
        typer.echo(note, err=True)
    if table is not None:
        write_csv(table, _rows(found))


def _place(baseline: str, models: Sequence[Path]) -> int:
    """Which of the models is meant, counted from 0: by its path, or by its number from 1."""
    for place, model in enumerate(models):
        if Path(baseline) == model:
            return place
    if baseline.isdecimal() and 1 <= int(baseline) <= len(models):
        return int(baseline) - 1
    raise typer.BadParameter(
        f"{baseline!r} is none of the models, nor a number from 1 to {len(models)}", param_hint="--baseline"
    )


def to_json(found: Bench) -> dict[str, Any]:
    """What `bench --json` prints.

    Format 1: scripts read it, so keys may be added, never changed or taken away.
    """
    from graphprune.footprint import plain

    return {
        "format": FORMAT,
        "baseline": found.baseline,
        "settings": plain(found.settings),
        "loads": found.loads,
        "warmup": found.warmup,
        "steps": found.steps,
        "models": [asdict(one) for one in found.models],
        "timings": [_flat(one) for one in found.timings],
        "left_out": [asdict(one) for one in found.left_out],
        "notes": list(found.notes),
    }


def _flat(one: Timing) -> dict[str, Any]:
    return asdict(one) | {"tokens_per_s": one.tokens_per_s, "gmacs_per_s": one.gmacs_per_s}


def _rows(found: Bench) -> list[dict[str, Any]]:
    """A row for every timing, with what is known of its model."""
    costs = {one.model: one for one in found.models}
    return [_flat(one) | _of_model(costs[one.model]) for one in found.timings]


def _of_model(one: ModelCost) -> dict[str, Any]:
    return {
        "bytes": one.bytes,
        "load_ms": one.load_ms,
        "load_spread": one.spread,
        "loaded_mb": one.loaded_mb,
    }


def _show(found: Bench) -> None:
    """A table for every size and phase, one for what does not depend on these, and what was left out."""
    for (batch, sequence, phase), timings in groupby(
        found.timings, key=lambda one: (one.batch, one.sequence, one.phase)
    ):
        what = "" if phase == "run" else f", {phase}"
        console().print(f"batch {batch}, sequence {sequence}{what}")
        console().print(_timing_table(list(timings)), "")
    console().print(_cost_table(found.models))
    for one in found.left_out:
        typer.echo(f"left out: {one.model} at batch {one.batch}, sequence {one.sequence}: {one.reason}")


def _timing_table(timings: Sequence[Timing]) -> Table:
    """Columns that are empty throughout stay out."""
    columns = {
        "median ms": [f"{one.median:.3f}" for one in timings],
        "± ms": [f"{one.spread:.3f}" for one in timings],
        "ratio": [_number(one.ratio, 3) for one in timings],
        "95% interval": [_interval(one) for one in timings],
        "tokens/s": [_number(one.tokens_per_s, 0) for one in timings],
        "GMAC/s": [_number(one.gmacs_per_s, 1) for one in timings],
        "of peak": ["" if one.of_peak is None else f"{one.of_peak:.1%}" for one in timings],
        "peak MB": [_number(one.peak_mb, 1) for one in timings],
    }
    return _table([one.model for one in timings], columns)


def _cost_table(costs: Sequence[ModelCost]) -> Table:
    columns = {
        "MB on disk": [_number(one.bytes / 1e6, 1) for one in costs],
        "load ms": [_number(one.load_ms, 1) for one in costs],
        "± ms": [_number(one.spread, 1) for one in costs],
        "loaded MB": [_number(one.loaded_mb, 1) for one in costs],
    }
    return _table([one.model for one in costs], columns)


def _interval(one: Timing) -> str:
    from graphprune.intervals import MIN_LOADS

    if one.ratio is None:
        return ""
    return f"takes {MIN_LOADS} loads" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _table(models: Iterable[str], columns: dict[str, list[str]]) -> Table:
    from graphprune.cli_show import plain_table

    filled = {name: cells for name, cells in columns.items() if any(cells)}
    table = plain_table()
    table.add_column("model", overflow="fold", no_wrap=True)
    for name in filled:
        table.add_column(name, justify="right", no_wrap=True)
    for model, *cells in zip(models, *filled.values(), strict=True):
        table.add_row(model, *cells)
    return table
