"""The command `profile`: kernel time, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_groups import Inputs, Runtime, with_groups
from graphprune.cli_measure import Steps

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.phases import PartTime, Phase
    from graphprune.profiler import Profile

FORMAT = 1
_BAR = 24
_EXAMPLES = """Examples: graphprune profile bert-onnx --batch 8 --sequence 128

graphprune profile gpt2-onnx --steps 16 --parts --trace trace.json"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(profile))


def profile(
    model: Model,
    inputs: Inputs = Inputs(sequence=128),
    steps: Steps = 0,
    runtime: Runtime = Runtime(threads=1),
    rounds: Annotated[int, typer.Option(min=1, help="Times that every call runs.")] = 20,
    parts: Annotated[bool, typer.Option("--parts", help="Show the parts of blocks, too.")] = False,
    kernels: Annotated[int, typer.Option(min=0, help="Show so many of the slowest kernels.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for ui.perfetto.dev to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the kernels of a model, and say which blocks they serve."""
    from graphprune.profiler import profile as profile_model
    from graphprune.tracing import write_trace

    source = inputs.source(model)
    with working(f"profiling {model}"):
        found = profile_model(model, source, rounds=rounds, steps=steps, settings=runtime.settings())
    if trace is not None:
        write_trace(found, trace)
    if as_json:
        emit(to_json(found))
        return
    for phase in found.phases:
        console().print(_title(phase))
        console().print(_table(phase, parts=parts), "")
        if kernels:
            console().print(_kernel_table(phase, kernels), "")
    if trace is not None:
        typer.echo(f"wrote {trace}")


def to_json(found: Profile) -> dict[str, Any]:
    """What `profile --json` prints: one pass over all calls, and every phase, per call, by itself.

    Format 1: scripts read it, so keys may be added, never changed or taken away.
    """
    return {
        "format": FORMAT,
        "level": found.settings.level,
        "threads": found.settings.threads,
        "attributed": found.attributed,
        "total_us": found.total_us,
        "blocks": [_block(part) for part in found.blocks],
        "outside": [_outside(part) for part in found.outside],
        "phases": [_phase(phase) for phase in found.phases],
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "file": phase.file,
        "phase": phase.name,
        "calls": phase.calls,
        "rounds": phase.rounds,
        "attributed": phase.attributed,
        "total_us": phase.kernel_us,
        "between_us": phase.between_us,
        "session_us": phase.session_us,
        "blocks": [_block(part) for part in phase.blocks],
        "outside": [_outside(part) for part in phase.outside],
    }


def _times(part: PartTime) -> dict[str, Any]:
    return {
        "us": part.us,
        "share": part.share,
        "macs": round(part.macs),
        "bytes": round(part.bytes),
        "gflops": part.gflops,
    }


def _block(part: PartTime) -> dict[str, Any]:
    parts = [{"name": one.name} | _times(one) for one in part.parts]
    return {"id": part.name} | _times(part) | {"parts": parts, "kernels": _kernels(part)}


def _outside(part: PartTime) -> dict[str, Any]:
    return {"name": part.name} | _times(part) | {"kernels": _kernels(part)}


def _kernels(part: PartTime) -> list[dict[str, Any]]:
    return [asdict(kernel) for kernel in part.kernels]


def _title(phase: Phase) -> str:
    calls = f", {phase.calls} calls" if phase.calls > 1 else ""
    return (
        f"{phase.file}, {phase.name}{calls}: {phase.kernel_us:,.0f} µs in kernels per call, "
        f"{phase.session_us:,.0f} µs with what is between them; {phase.attributed:.1%} attributed "
        f"({phase.rounds} rounds)"
    )


def _table(phase: Phase, *, parts: bool) -> Table:
    """What is around the blocks, and every layer with its blocks, in the order in which they run."""
    from graphprune.attribution import BEFORE

    shown = _columns(left=("where",), right=("µs", "share", "", "MACs", "MB", "GFLOP/s"))
    for one in phase.outside:
        if one.name in BEFORE:
            shown.add_row(*_row(one.name, [one]))
    for layer, blocks in groupby(phase.blocks, key=lambda block: block.name.rpartition(".")[0]):
        for row in _layer(layer, list(blocks), parts):
            shown.add_row(*row)
    for one in phase.outside:
        if one.name not in BEFORE:
            shown.add_row(*_row(one.name, [one]))
    return shown


def _layer(name: str, blocks: Sequence[PartTime], parts: bool) -> Iterator[list[str]]:
    if len(blocks) > 1:
        yield _row(name, blocks)
    for block in blocks:
        yield _row(f"  {block.name}", [block])
        for part in block.parts if parts else ():
            yield _row(f"    {part.name}", [part])


def _row(name: str, parts: Iterable[PartTime]) -> list[str]:
    listed = list(parts)
    us, share = sum(part.us for part in listed), sum(part.share for part in listed)
    macs, moved = sum(part.macs for part in listed), sum(part.bytes for part in listed)
    speed = f"{2 * macs / us / 1e3:.1f}" if us and macs else ""
    bar = "█" * round(share * _BAR) or ("▏" if share else "")
    return [name, f"{us:,.1f}", f"{share:.1%}", bar, f"{macs:,.0f}", f"{moved / 1e6:,.2f}", speed]


def _kernel_table(phase: Phase, count: int) -> Table:
    shown = _columns(left=("kernel", "op", "where"), right=("µs", "share"))
    pairs = [(k, part) for part in (*phase.blocks, *phase.outside) for k in part.kernels]
    for kernel, part in sorted(pairs, key=lambda pair: -pair[0].us)[:count]:
        share = kernel.us / phase.kernel_us if phase.kernel_us else 0.0
        shown.add_row(kernel.name, kernel.op, part.name, f"{kernel.us:,.1f}", f"{share:.1%}")
    return shown


def _columns(*, left: Iterable[str], right: Iterable[str]) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(left):
        shown.add_column(name, overflow="fold", no_wrap=index == 0)
    for name in right:
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    return shown
