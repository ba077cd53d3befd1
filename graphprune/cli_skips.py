"""The command `skips`: let blocks not run on inputs that do not need them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_data import DataOptions
from graphprune.cli_groups import Runtime, with_groups

if TYPE_CHECKING:
    from graphprune.skipping.asked import Skipping

_EXAMPLES = """Examples: graphprune skips bert-onnx out --data texts.txt --policy router --share 0.3

graphprune skips llama-onnx out --data book.txt --policy cosine --phase decode"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(skips))


def skips(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    policy: Annotated[str, typer.Option(help="cosine, or router.")] = "router",
    share: Annotated[float, typer.Option(help="Of all runs of blocks, those to leave out.")] = 0.25,
    blocks: Annotated[str, typer.Option(help="Layers and blocks that may be left out.")] = "all",
    kinds: Annotated[str, typer.Option(help="Of them: ffn, attention, or all.")] = "ffn",
    phase: Annotated[str, typer.Option(help="When: all, decode (one token), or prefill.")] = "all",
    data: DataOptions = DataOptions(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    runtime: Runtime = Runtime(threads=1),
    as_json: Json = False,
) -> None:
    """Let blocks not run on inputs that do not need them, by rules fitted to data without training.

    A block does not run where its score is over a threshold: the cosine of the streams before it and before
    the block before (cosine), or what a linear map of the mean of the stream says (router). The input
    `skip_thresholds` of the result sets other thresholds, `run_mask` the blocks that may run at all.
    """
    from graphprune.skipping.asked import Kinds, Phase, fit_skips
    from graphprune.skipping.rules import Policy

    for given, kind, hint in ((policy, Policy, "policy"), (kinds, Kinds, "kinds"), (phase, Phase, "phase")):
        if given not in get_args(kind):
            known = ", ".join(get_args(kind))
            raise typer.BadParameter(f"{given!r} is not among {known}", param_hint=f"--{hint}")
    with working(f"fitting rules to {model}"):
        found = fit_skips(
            model, data.data(), policy=cast("Policy", policy), share=share, blocks=blocks,
            kinds=cast("Kinds", kinds), phase=cast("Phase", phase), settings=runtime.settings(),
        )  # fmt: skip
        written = found.save(out, overwrite=overwrite)
    if as_json:
        emit(_to_json(found, written))
    else:
        _show(found, written)


def _show(found: Skipping, written: Path) -> None:
    from graphprune.cli_show import plain_table

    table = plain_table("block", "threshold", "left out", "cosine then", "router R²")
    for rule in found.rules:
        alike = "–" if math.isnan(rule.alike) else f"{rule.alike:.4f}"
        explained = "–" if rule.explained is None else f"{rule.explained:.2f}"
        table.add_row(rule.block, f"{rule.threshold:.4f}", f"{rule.skipped:.0%}", alike, explained)
    console().print(table, "")
    typer.echo(f"{found.skipped:.0%} of the runs of these blocks are left out")
    always = ", ".join(found.always) or "nothing"
    typer.echo(
        f"{found.metric} {found.score:.4f}, dense {found.dense:.4f}, always without {always} "
        f"{found.fixed:.4f}; on {found.examples} examples that nothing was fitted to"
    )
    typer.echo(f"wrote and checked {written}")


def _to_json(found: Skipping, written: Path) -> dict[str, Any]:
    from graphprune.jsonable import finite

    rules = [
        {
            "block": rule.block, "threshold": rule.threshold, "skipped": rule.skipped,
            "alike": rule.alike, "explained": rule.explained,
        }
        for rule in found.rules
    ]  # fmt: skip
    told = {"format": 1, "out": str(written), "rules": rules, "skipped": found.skipped}
    told |= {"metric": found.metric, "score": found.score, "dense": found.dense, "examples": found.examples}
    told |= {"fixed": found.fixed, "always": list(found.always)}
    return dict(finite(told))
