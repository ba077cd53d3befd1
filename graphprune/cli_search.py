"""The command `search`: the best model that reaches a target, found, healed and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli_common import Json, Model, console, emit
from graphprune.cli_data import DataOptions
from graphprune.cli_groups import Runtime, sizes_of, with_groups
from graphprune.cli_measure import Steps

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.play import Source
    from graphprune.searching.evaluating import Quality
    from graphprune.searching.found import Search

_EXAMPLES = """Examples: graphprune search bert-onnx out --target speedup=1.5

graphprune search minilm out --data pairs.csv --text 0,1 --label 2 --metric spearman --target quality=0.995

graphprune search minilm out --target speedup=2 --target quality=0.99 --jobs 2 --resume"""
_TARGET = "speedup=1.5, latency=3.2ms, parameters=0.7, macs=1.2G, size=50MB or quality=0.995; several times."
_OUT = "The file or folder to write; not needed for a dry run."
_ACTIONS = (
    "What may become of a block: drop, mean (a constant), linear (one linear map), half, quarter, eighth "
    "(an FFN of so many of its neurons)."
)
_STORAGE = "The file that keeps all trials; .<OUT>.search beside OUT by default."
_TRIALS = "Choices that are evaluated, at most."
_BUDGET = "Seconds, at most; then the answer depends on the machine's speed."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(search))


def search(
    model: Model,
    out: Annotated[Path | None, typer.Argument(help=_OUT)] = None,
    target: Annotated[list[str] | None, typer.Option(help=_TARGET)] = None,
    actions: Annotated[str, typer.Option(help=_ACTIONS)] = "drop,linear,half,quarter,eighth",
    blocks: Annotated[str, typer.Option(help="The blocks to search among: a selection.")] = "all",
    data: DataOptions = DataOptions(),
    trials: Annotated[int, typer.Option(min=1, help=_TRIALS)] = 80,
    budget: Annotated[float | None, typer.Option(min=1, help=_BUDGET)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is drawn.")] = 0,
    batch: Annotated[str, typer.Option(help="Rows of the inputs that are timed, several by commas.")] = "1",
    sequence: Annotated[str, typer.Option(help="Their length, several by commas.")] = "32",
    steps: Steps = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that evaluate choices.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler: its workers evaluate choices.")
    ] = None,
    storage: Annotated[Path | None, typer.Option(help=_STORAGE)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was broken off.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search, and write no model.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    runtime: Runtime = Runtime(threads=1),
    as_json: Json = False,
) -> None:
    """Find the best model that reaches a target by removing blocks and healing the rest.

    Blocks are dropped, or replaced by a linear map, FFNs lose neurons; what is left is fitted to the dense
    model on one part of the data and judged on another. Latency is that of ONNX Runtime on this machine.
    """
    from graphprune.searching.flow import search as run_search

    if out is None and not dry_run:
        raise typer.BadParameter("name the file or folder to write, or ask for a --dry-run", param_hint="OUT")
    if not target:
        raise typer.BadParameter(f"say what is to be reached: {_TARGET}", param_hint="--target")
    screen = console(stderr=True)
    with screen.status("") as status:
        found = run_search(
            model, None if dry_run else out, data.data(seed),
            targets=target, actions=[one.strip() for one in actions.split(",")], blocks=blocks,
            source=_sources(batch, sequence, seed), settings=runtime.settings(), steps=steps,
            trials=trials, budget=budget, jobs=jobs, scheduler=scheduler, seed=seed,
            storage=storage, resume=resume, overwrite=overwrite, on_step=status.update,
        )  # fmt: skip
    if as_json:
        emit(found.to_json())
    else:
        _show(found)
    for note in found.notes:
        typer.echo(note, err=True)


def _sources(batch: str, sequence: str, seed: int) -> list[Source]:
    from graphprune.play import Source

    batches, lengths = sizes_of(batch, "--batch"), sizes_of(sequence, "--sequence")
    return [Source(batch=b, sequence=s, seed=seed) for b in batches for s in lengths]


def _show(found: Search) -> None:
    """The way, what healing did, the Pareto set, what it comes to."""
    screen = console()
    tables = {
        "steps": _steps(found),
        "what healing did to the choice": _repairs(found) if found.repairs else None,
        "Pareto set": _pareto(found),
        "what one change more would do": _reasons(found),
    }
    for title, table in tables.items():
        if table is not None:
            screen.print(title)
            screen.print(table, "")
    for line in _sums(found):
        typer.echo(line)


def _steps(found: Search) -> Table:
    rows = [
        [one.phase, _said(one.changed), str(one.tried), *_figures(found, one.price, one.quality)]
        for one in found.steps
    ]
    return _table([("step", ""), ("what", ""), ("of", "r"), *_columns(found)], rows)


def _repairs(found: Search) -> Table:
    rows = [
        [one.block, one.action, one.repair, f"{one.before:.4f}", f"{one.after:.4f}", one.note]
        for one in found.repairs
    ]
    columns = [("block", ""), ("action", ""), ("repair", ""), ("error", "r"), ("healed", "r"), ("", "")]
    return _table(columns, rows)


def _pareto(found: Search) -> Table:
    """With the choice that was made, which more data may have put before those of the set."""
    chosen = found.best.choice
    shown = sorted(
        (one for one in found.choices if one.front or one.choice == chosen),
        key=lambda one: one.price[found.cost],
    )
    rows = [
        [
            *_figures(found, one.price, one.quality),
            "chosen" if one.choice == chosen else "",
            _said(one.choice) or "dense",
        ]
        for one in shown
    ]
    return _table([*_columns(found), ("", ""), ("choice", "")], rows)


def _reasons(found: Search) -> Table:
    rows = [
        [one.block, one.action, one.instead, f"{one.kept:+.2%}", f"{one.cost:+.2%}"] for one in found.reasons
    ]
    rows += [[block, "keep", why, "", ""] for block, why in found.declined.items()]
    columns = [("block", ""), ("is", ""), ("instead", ""), ("quality", "r"), (found.cost, "r")]
    return _table(columns, rows)


def _columns(found: Search) -> list[tuple[str, str]]:
    faster = [("speedup", "r")] if found.cost == "latency" else []
    return [(found.cost, "r"), *faster, (found.judged.metric, "r"), ("of dense", "r")]


def _figures(found: Search, price: Mapping[str, float], quality: Quality) -> list[str]:
    share = price[found.cost] / found.dense[found.cost]
    faster = [f"{1 / share:.2f}"] if found.cost == "latency" else []
    return [f"{share:.1%}", *faster, f"{quality.score:.4f}", f"{quality.kept:.2%}"]


def _said(changed: Mapping[str, str]) -> str:
    """Blocks by what became of them: `drop encoder.2.attention, encoder.4.ffn; linear encoder.1.ffn`."""
    groups: dict[str, list[str]] = {}
    for block, action in changed.items():
        groups.setdefault(action, []).append(block)
    return "; ".join(f"{action} {', '.join(blocks)}" for action, blocks in groups.items())


def _sums(found: Search) -> list[str]:
    """What it comes to, in lines."""
    best, judged = found.best, found.judged
    healed = f"; healed on {judged.fitted} others" if judged.healed else ""
    lines = [
        _said(best.choice),
        f"quality: {judged.metric} {best.quality.score:.4f}, dense {judged.dense:.4f}: "
        f"{best.quality.kept:.2%} of it, on {judged.judged} examples{healed}",
    ]
    for one in found.timed.sizes if found.timed else ():
        known = "" if one.low is None else f" (ratio {one.ratio:.3f}, {one.low:.3f} to {one.high:.3f})"
        where = f"batch {one.batch}, sequence {one.sequence}, {one.phase}"
        times = f"{one.dense_ms:.3f} ms to {one.ms:.3f} ms"
        lines.append(f"{where}: {times}, {one.speedup:.2f} times as fast{known}")
    count = ", ".join(f"{number} {level}" for level, number in found.trials.items() if number)
    lines.append(f"evaluated: {count}")
    lines.append(f"wrote and checked {found.out}" if found.out else "dry run: no model was written")
    return lines


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> Table:
    from graphprune.cli_show import plain_table

    table = plain_table()
    for name, side in columns:
        table.add_column(name, justify="right" if side else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
