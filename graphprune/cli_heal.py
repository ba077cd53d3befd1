"""The command `heal`: take blocks out and repair in closed form what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_data import DataOptions
from graphprune.cli_groups import Runtime, with_groups

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.healing.asked import Healed
    from graphprune.healing.mending import HealStep
    from graphprune.sizes import Sizes

_EXAMPLES = """Examples: graphprune heal bert-onnx out --drop attention:2-4 --linear ffn:1-3

graphprune heal gpt2-onnx out --drop 9-11 --data corpus.txt

graphprune heal minilm out --drop 2 --data pairs.csv --text 0,1 --label 2 --metric spearman"""
_DROP = "Blocks to drop: layers (2-4), blocks (encoder.1.ffn), or blocks of a kind (ffn:1-3); several times."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(heal))


def heal(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="The file or folder to write; not needed for a dry run.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help=_DROP)] = None,
    linear: Annotated[
        list[str] | None, typer.Option(help="Blocks that get one linear map in their place.")
    ] = None,
    mean: Annotated[list[str] | None, typer.Option(help="Blocks that get a constant in their place.")] = None,
    half: Annotated[list[str] | None, typer.Option(help="FFNs that keep half of their neurons.")] = None,
    quarter: Annotated[list[str] | None, typer.Option(help="FFNs that keep a quarter of them.")] = None,
    eighth: Annotated[list[str] | None, typer.Option(help="FFNs that keep an eighth of them.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="The rank of the linear maps; 0: full.")] = 0,
    data: DataOptions = DataOptions(),
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn from the data.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Heal, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    runtime: Runtime = Runtime(),
    as_json: Json = False,
) -> None:
    """Take blocks out of a model, and fit what is left to the dense model, without training.

    Block after block, in running order: the norm behind a block, its output projection, or the linear map in
    its place is fitted by least squares to what the dense model computes there, on what the pruned model
    reads. A repair is kept only where it lowers the error on data that it was not fitted to.
    """
    from graphprune.healing.asked import heal as run_heal
    from graphprune.healing.repairs import Repairs

    if out is None and not dry_run:
        raise typer.BadParameter("name the file or folder to write, or ask for a --dry-run", param_hint="OUT")
    with working(f"healing {model}"):
        healed = run_heal(
            model, data.data(seed), drop=drop or (), linear=linear or (), mean=mean or (),
            half=half or (), quarter=quarter or (), eighth=eighth or (),
            repairs=Repairs(rank=rank), settings=runtime.settings(),
        )  # fmt: skip
        written = None if dry_run or out is None else healed.save(out, overwrite=overwrite)
    if as_json:
        emit(_to_json(healed, written))
    else:
        _show(healed, written)


def _show(healed: Healed, written: Path | None) -> None:
    from graphprune import cli_show

    console().print(_steps(healed.healing.steps), "")
    console().print(cli_show.sizes_table(healed.pruned.plan.before, healed.pruned.after), "")
    healing = healed.healing
    typer.echo(f"{healed.metric} {healing.score:.4f}, dense {healed.dense:.4f}: {healing.kept:.2%} of it")
    typer.echo(f"error of the last stream: {healing.error:.2%} of its variance")
    typer.echo(f"wrote and checked {written}" if written else "dry run: nothing was written")


def _steps(steps: Sequence[HealStep]) -> Table:
    """What became of each block, and the error behind it without and with its repair."""
    from graphprune.cli_show import plain_table

    table = plain_table("block", "action", "repair", "error", "healed", "")
    for step in steps:
        table.add_row(
            step.block, step.action, step.repair, f"{step.before:.2%}", f"{step.after:.2%}", step.note
        )
    return table


def _to_json(healed: Healed, written: Path | None) -> dict[str, Any]:
    healing = healed.healing
    return {
        "format": 1,
        "out": str(written) if written else None,
        "choice": dict(healing.choice),
        "steps": [asdict(step) | {"kept": step.kept} for step in healing.steps],
        "error": healing.error,
        "metric": healed.metric,
        "score": healing.score,
        "dense": healed.dense,
        "kept": healing.kept,
        "before": _sizes(healed.pruned.plan.before),
        "after": _sizes(healed.pruned.after),
    }


def _sizes(sizes: Sizes) -> dict[str, Any]:
    return asdict(sizes) | {"macs": str(sizes.macs)}
