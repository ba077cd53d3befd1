"""What the commands show in a terminal: tables, and pictures of the residual stream.

Everything here builds things to print; `cli.py` prints them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from graphprune.describe import node_name
from graphprune.prunepass import Edit

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from graphprune.architecture import Block, Declined, Layer, Stack
    from graphprune.compare import Difference
    from graphprune.outcomes import Outcome
    from graphprune.pipeline import Pruned
    from graphprune.play import Call
    from graphprune.sizes import Sizes


def stack_title(stack: Stack) -> Text:
    """`encoder: 6 layers, 10,646,016 parameters`, with the subgraph that it lies in."""
    parameters = sum(block.parameters for block in stack.blocks)
    where = f" in {stack.path}" if stack.path else ""
    number = len(stack.layers)
    return Text.assemble(
        (stack.name, "bold"), f"{where}: {number} layer{'s' * (number != 1)}, {parameters:,} parameters"
    )


def picture(stack: Stack) -> Text:
    """The stream of a stack from left to right, layers that look alike drawn once."""
    lines = []
    for _, run in itertools.groupby(stack.layers, key=_look):
        layers = list(run)
        top, bottom = _draw(layers[0].blocks)
        first, last = layers[0].index, layers[-1].index
        label = f"layer {first}" if first == last else f"layers {first}-{last}"
        lines += [f"  {label:<13} ──{top}─▶", f"  {'':<13}   {bottom}"]
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def _look(layer: Layer) -> tuple[tuple[str, str, bool], ...]:
    return tuple((block.kind, block.placement, block.droppable) for block in layer.blocks)


def _draw(blocks: Iterable[Block]) -> tuple[str, str]:
    """Two lines: the stream with its joins, and the branches below it."""
    tops, bottoms = [], []
    for block in blocks:
        branch = f"{block.kind}{'' if block.droppable else ' (fixed)'}".replace("_", " ")
        before = "norm ─ " if block.placement in ("pre", "sandwich") else ""
        after = " ─ norm" if block.placement == "sandwich" else ""
        outside = " norm ─" if block.placement == "post" else ""
        below = f"└─ {before}{branch}{after} ─┘"
        tops.append(f"┬{'─' * (len(below) - 2)}⊕─{outside}")
        bottoms.append(below + " " * (1 + len(outside)))
    return "─".join(tops), " ".join(bottoms).rstrip()


def stack_table(stack: Stack) -> Table:
    """All blocks of a stack, a row each."""
    table = plain_table("block", "norm", "parameters", "MACs", "nodes", "join", "droppable")
    for block in stack.blocks:
        table.add_row(
            block.id,
            block.placement,
            f"{block.parameters:,}",
            str(block.macs).replace(" + ", "\n+ "),
            str(len(block.nodes)),
            node_name(block.join),
            "yes" if block.droppable else f"no: {block.reason}",
        )
    return table


def gates_table(gates: Mapping[str, Any]) -> Table:
    """The places of a model's `run_mask`: their blocks, what runs by default, and what rules say of them."""
    table = plain_table("run_mask", "block", "by default", *gates["rules"])
    for place, (block, runs) in enumerate(zip(gates["blocks"], gates["runs"], strict=True)):
        told = (values[place] for values in gates["rules"].values())
        rules = (
            ("runs" if one else "does not run") if isinstance(one, bool) else f"{one:.4g}" for one in told
        )
        table.add_row(str(place), block, "runs" if runs else "does not run", *rules)
    return table


def declined_table(declined: Iterable[Declined]) -> Table:
    """Regions that were not read as blocks, and why."""
    table = plain_table("nodes", "reason")
    for region in declined:
        names = [node_name(node) for node in region.nodes]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        table.add_row(", ".join(names[:3]) + more, region.reason)
    return table


def outcome_table(outcomes: Iterable[Outcome], *, files: bool) -> Table:
    """What a plan does to every target, or why it does nothing. `files` adds the file's name."""
    table = plain_table(*(["file"] if files else []), "target", "pass", "what happens")
    for outcome in outcomes:
        changes, what = _what(outcome)
        text = Text(what) if changes else Text(f"nothing: {what}", "yellow")
        table.add_row(*([outcome.file] if files else []), outcome.answer.target, outcome.name, text)
    return table


def _what(outcome: Outcome) -> tuple[bool, str]:
    """Whether an outcome changes something, and the line that says what, or why not."""
    answer = outcome.answer
    return (True, answer.summary) if isinstance(answer, Edit) else (False, answer.reason)


def sizes_table(before: Sizes, after: Sizes) -> Table:
    """Sizes before and after, and the share that is left."""
    table = plain_table("", "before", "after", "left")
    for what in ("nodes", "initializers", "parameters", "bytes"):
        one, two = getattr(before, what), getattr(after, what)
        table.add_row(what, f"{one:,}", f"{two:,}", f"{two / one:.1%}" if one else "")
    table.add_row(
        "MACs of blocks", *(str(sizes.macs).replace(" + ", "\n+ ") for sizes in (before, after)), ""
    )
    return table


def pruned_json(pruned: Pruned, written: Path | None) -> dict[str, Any]:
    """What `prune --json` prints: every outcome, notes, and the sizes before and after."""
    outcomes = [
        {"file": one.file, "pass": one.name, "target": one.answer.target}
        | dict(zip(("changes", "what"), _what(one), strict=True))
        for one in pruned.plan.outcomes
    ]
    before, after = (
        asdict(sizes) | {"macs": str(sizes.macs)} for sizes in (pruned.plan.before, pruned.after)
    )
    out = None if written is None else str(written)
    return {
        "format": 1, "out": out, "for": pruned.plan.loader, "outcomes": outcomes,
        "notes": list(pruned.plan.notes), "before": before, "after": after,
    }  # fmt: skip


def calls_json(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """What `run --json` prints of every call: shapes, types and ranges of the outputs."""
    return [
        {
            "file": call.session.name,
            "step": call.step,
            "outputs": [_array(n, a) for n, a in call.outputs.items()],
        }
        for call in calls
    ]


def _array(name: str, array: NDArray[Any]) -> dict[str, Any]:
    import numpy as np

    numbers = array.astype(np.float64) if array.size and array.dtype.kind in "fiub" else None
    values = [None] * 3 if numbers is None else [float(f(numbers)) for f in (np.min, np.mean, np.max)]
    known = {"output": name, "shape": list(array.shape), "type": str(array.dtype)}
    return known | dict(zip(("min", "mean", "max"), values, strict=True))


def passes_table(rows: Iterable[dict[str, Any]]) -> Table:
    """The passes, with their options."""
    table = plain_table("pass", "what it does", "options")
    for row in rows:
        options = [f"{o['name']}: {o['type']}" + _default(o) for o in row["options"]]
        table.add_row(row["name"], row["summary"], "\n".join(options))
    return table


def _default(option: dict[str, Any]) -> str:
    return "" if option["default"] in (None, "", False) else f" = {option['default']}"


def run_table(calls: Sequence[Call]) -> Table:
    """All outputs of a run, with their shapes and ranges."""
    table = plain_table("file", "step", "output", "shape", "type", "min", "mean", "max")
    for call in calls_json(calls):
        for one in call["outputs"]:
            values = ["" if one[key] is None else f"{one[key]:.4g}" for key in ("min", "mean", "max")]
            row = [call["file"], str(call["step"]), one["output"], str(one["shape"]), one["type"]]
            table.add_row(*row, *values)
    return table


def difference_table(differences: Iterable[Difference]) -> Table:
    """How far every output of B is from A's."""
    table = plain_table("file", "step", "output", "max |Δ|", "mean |Δ|", "cosine", "KL", "top-1")
    for one in differences:
        table.add_row(
            one.file,
            str(one.step),
            one.output,
            f"{one.max_abs:.3g}",
            f"{one.mean_abs:.3g}",
            f"{one.cosine:.6f}",
            "" if one.kl is None else f"{one.kl:.3g}",
            "" if one.top1 is None else f"{one.top1:.1%}",
        )
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table
