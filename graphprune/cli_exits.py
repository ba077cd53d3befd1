"""The command `exits`: let samples that are done leave a model early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_data import DataOptions
from graphprune.cli_groups import Runtime, with_groups

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.exits.asked import Exits
    from graphprune.exits.found import Rule, Share

_EXAMPLES = """Examples: graphprune exits minilm out --data train.tsv --text 0 --label 1 --at 2,4

graphprune exits bert-classifier out --data texts.txt --risk 0.01

graphprune exits gpt2-onnx --dry-run --data corpus.txt --at 4,6 --batch-mode all"""
_AT = "Exits after so many layers: 2,4; without it after every layer."
_HEAD = "ridge or logistic (classifiers), own (the model's), or translator (a map to its last stream)."
_CRITERION = "confidence, margin, entropy, saturation, patience, or rule."
_RISK = "Probability of losing a sample, at most, shown at 95% confidence; 0: within one standard error."
_TEST = "Data to judge by, read as --data is; without it a fifth of that."
_MODE = "per-sample: rows leave one by one; all: a batch leaves when all of its rows are sure."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(exits))


def exits(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(help="The file or folder to write; not needed for a dry run.")
    ] = None,
    at: Annotated[str, typer.Option(help=_AT)] = "",
    head: Annotated[str | None, typer.Option(help=_HEAD)] = None,
    criterion: Annotated[str, typer.Option(help=_CRITERION)] = "confidence",
    risk: Annotated[float, typer.Option(help=_RISK)] = 0.0,
    depth: Annotated[float | None, typer.Option(help="So many layers on average, not a risk.")] = None,
    decay: Annotated[float, typer.Option(help="By how much a threshold shrinks from exit to exit.")] = 1.0,
    pool: Annotated[
        str, typer.Option(help="What a classifier reads: the mean, first or last token.")
    ] = "mean",
    batch_mode: Annotated[str, typer.Option(help=_MODE)] = "per-sample",
    data: DataOptions = DataOptions(),
    test: Annotated[Path | None, typer.Option(help=_TEST, rich_help_panel="Data")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn from the data.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and judge, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    runtime: Runtime = Runtime(),
    as_json: Json = False,
) -> None:
    """Give a model early exits: heads, thresholds and all, fitted to data without training.

    Each exit has a head and says how sure it is; samples that are sure enough leave there. With labels, the
    rule is held to the best single layer, else to what the dense model says. Thresholds are found on samples
    that the heads have not seen, and judged on others again.
    """
    from graphprune.exits.asked import fit_exits

    if out is None and not dry_run:
        raise typer.BadParameter("name the file or folder to write, or ask for a --dry-run", param_hint="OUT")
    tested = None if test is None else _replaced(data, test)
    screen = console(stderr=True)
    with screen.status("") as status:
        found = fit_exits(
            model, data.data(seed), test=None if tested is None else tested.data(seed), at=_boundaries(at),
            head=cast(Any, head), criterion=cast(Any, criterion), risk=risk, depth=depth, decay=decay,
            pool=cast(Any, pool), batch_mode=cast(Any, batch_mode), seed=seed, settings=runtime.settings(),
            on_step=status.update,
        )  # fmt: skip
    with working(f"writing {out}"):
        written = None if dry_run or out is None else found.save(out, overwrite=overwrite)
    if as_json:
        from graphprune.exits.exchange import to_json

        emit({"out": str(written) if written else None} | to_json(found))
    else:
        _show(found, written)


def _replaced(data: DataOptions, test: Path) -> DataOptions:
    from dataclasses import replace

    return replace(data, files=test, limit=None)


def _boundaries(text: str) -> tuple[int, ...]:
    """`2,4` as numbers."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    wrong = next((item for item in items if not (item.isdecimal() and len(item) < 10)), None)
    if wrong is not None:
        raise typer.BadParameter(f"{wrong!r} is no number of layers: write 2,4", param_hint="--at")
    return tuple(map(int, items))


def _show(exits: Exits, written: Path | None) -> None:
    rule = exits.rule
    typer.echo(
        f"{rule.head} heads on {rule.fitted:,} samples, thresholds of {rule.criterion} on "
        f"{rule.calibrated:,}, judged on {rule.held.samples:,} others"
    )
    console().print("", _table(rule), "")
    for line in _told(rule):
        typer.echo(line)
    typer.echo(f"wrote and checked {written}" if written else "dry run: nothing was written")


def _table(rule: Rule) -> Table:
    """The exits: their thresholds, how many leave there, and how often they are right."""
    from graphprune.cli_show import plain_table

    table = plain_table("exit", "threshold", "leave", "right of these", "right of all, if all left here")
    for one in rule.held.exits:
        here = "" if one.here is None else _percent(one.here)
        threshold = "the rest" if one.threshold is None else _threshold(one.threshold)
        table.add_row(
            f"after layer {one.layers}",
            threshold,
            f"{one.left / rule.held.samples:.1%}",
            here,
            _percent(one.alone),
        )
    return table


def _threshold(value: float) -> str:
    from graphprune.exits.rules import NEVER

    return "never" if value == NEVER else f"{value:.5g}"


def _percent(share: Share) -> str:
    return f"{share.value:.2%} ± {share.error:.2%}"


def _told(rule: Rule) -> Iterator[str]:
    held, point = rule.held, rule.held.point
    best, alone = held.best
    what = "accuracy" if rule.goal == "accuracy" else "agreement with the dense model"
    yield f"average depth {point.depth:.2f} of {rule.layers} layers ± {point.depth_error:.2f}"
    yield f"{what} {point.right:.2%} ± {point.right_error:.2%}"
    if rule.goal == "accuracy":
        yield (
            f"best single layer {best}: {alone.value:.2%}; the rule gains {point.gained:+.2%} ± "
            f"{point.gained_error:.2%} on it, sample by sample"
        )
        if held.dense is not None:
            yield f"the model itself {_percent(held.dense)}"
        if held.agreement is not None:
            yield f"agreement with the dense model {_percent(held.agreement)}"
    if held.perplexity is not None:
        yield f"perplexity {held.perplexity[0]:.2f}, dense {held.perplexity[1]:.2f}"
    yield f"thresholds: {rule.chosen}"
