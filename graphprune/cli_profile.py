"""The command `profile`: kernel time, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli_common import Json, Model, console, emit, require_folder, working, write_csv
from graphprune.cli_groups import Inputs, Runtime, with_groups
from graphprune.cli_measure import Steps
from graphprune.cli_profile_json import to_json, to_rows

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.cli_profile_json import Limits
    from graphprune.phases import PartTime, Phase
    from graphprune.profiler import Profile
    from graphprune.roofline import Peak
    from graphprune.settings import Settings

_BAR = 24
_EXAMPLES = """Examples: graphprune profile bert-onnx --batch 8 --sequence 128 --roofline

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
    roofline: Annotated[
        bool,
        typer.Option("--roofline", help="Measure the machine's limits, and say how near each block is."),
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for ui.perfetto.dev to this file.")
    ] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Write all figures to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Time the kernels of a model, and say which blocks they serve."""
    from graphprune.profiler import profile as profile_model
    from graphprune.tracing import write_trace

    require_folder(trace, "--trace")
    require_folder(table, "--csv")
    source, settings = inputs.source(model), runtime.settings()
    with working(f"profiling {model}"):
        found = profile_model(model, source, rounds=rounds, steps=steps, settings=settings)
        limit_of, peaks = _limits(found, settings) if roofline else (None, {})
    if trace is not None:
        write_trace(found, trace)
    if table is not None:
        write_csv(table, to_rows(found, limit_of))
    if as_json:
        emit(to_json(found, limit_of, peaks))
        return
    for phase in found.phases:
        console().print(_title(phase))
        console().print(_table(phase, limit_of, parts=parts), "")
        if kernels:
            console().print(_kernel_table(phase, kernels), "")
    for line in _speeds(peaks):
        typer.echo(line)
    for path in filter(None, (trace, table)):
        typer.echo(f"wrote {path}")


def _limits(found: Profile, settings: Settings) -> tuple[Limits, dict[str, Peak]]:
    """What tells the limit of a part, and the speeds of the machine by element type."""
    from graphprune.roofline import element_of, limit_of, peak

    kernels = [kernel for part in (*found.blocks, *found.outside) for kernel in part.kernels]
    if any(kernel.provider != "cpu" for kernel in kernels):
        typer.echo("no limits: they are known of kernels on the CPU, and some ran elsewhere", err=True)
    elements = dict.fromkeys(element_of(kernel) for kernel in kernels if kernel.provider == "cpu")
    return partial(limit_of, settings=settings), {one: peak(settings, one) for one in elements}


def _speeds(peaks: dict[str, Peak]) -> Iterator[str]:
    for element, one in peaks.items():
        memory, cache = one.bytes_per_s / 1e9, one.cache_bytes_per_s / 1e9
        yield (
            f"limits, measured here: {one.macs_per_s / 1e9:,.1f} GMAC/s in {element}, "
            f"{memory:,.1f} GB/s from memory, {cache:,.1f} GB/s from caches"
        )


def _title(phase: Phase) -> str:
    calls = f", {phase.calls} calls" if phase.calls > 1 else ""
    whole = f"{phase.session_us:,.0f} µs with what is between them"
    if phase.agreement is not None:
        whole = f"in all {phase.agreement:.1%} of what the calls take without the profiler"
    return (
        f"{phase.file}, {phase.name}{calls}: {phase.kernel_us:,.0f} µs in kernels per call, {whole}; "
        f"{phase.attributed:.1%} attributed ({phase.rounds} rounds)"
    )


def _table(phase: Phase, limit_of: Limits | None, *, parts: bool) -> Table:
    """What is around the blocks, and every layer with its blocks, in the order in which they run."""
    from graphprune.attribution import BEFORE

    columns = ("µs", "share", "", "MACs", "MB", "GFLOP/s", *(("of limit", "bound by") if limit_of else ()))
    shown = _columns(left=("where",), right=columns)
    before = [one for one in phase.outside if one.name in BEFORE]
    after = [one for one in phase.outside if one.name not in BEFORE]
    for name, part in (*_named(before), *_inside(phase, parts), *_named(after)):
        shown.add_row(*_row(name, part), *(_limit(part, limit_of) if limit_of else ()))
    return shown


def _named(outside: Iterable[PartTime]) -> Iterator[tuple[str, PartTime]]:
    return ((one.name, one) for one in outside)


def _inside(phase: Phase, parts: bool) -> Iterator[tuple[str, PartTime]]:
    """The layers of more than one block, the blocks, and their parts where these are asked for."""
    for layer in phase.layers:
        if len(layer.parts) > 1:
            yield layer.name, layer
        for block in layer.parts:
            yield f"  {block.name}", block
            for part in block.parts if parts else ():
                yield f"    {part.name}", part


def _row(name: str, part: PartTime) -> list[str]:
    speed = f"{part.gflops:.1f}" if part.gflops else ""
    bar = "█" * round(part.share * _BAR) or ("▏" if part.share else "")
    macs, moved = f"{part.macs:,.0f}", f"{part.bytes / 1e6:,.2f}"
    return [name, f"{part.us:,.1f}", f"{part.share:.1%}", bar, macs, moved, speed]


def _limit(part: PartTime, limit_of: Limits) -> list[str]:
    limit = limit_of(part)
    return [f"{limit.share:.0%}", limit.bound] if limit is not None and limit.bound else ["", ""]


def _kernel_table(phase: Phase, count: int) -> Table:
    shown = _columns(left=("kernel", "op", "where"), right=("µs", "share"))
    pairs = [(k, part) for part in (*phase.blocks, *phase.outside) for k in part.kernels]
    for kernel, part in sorted(pairs, key=lambda pair: -pair[0].us)[:count]:
        share = kernel.us / phase.kernel_us if phase.kernel_us else 0.0
        shown.add_row(kernel.name, kernel.op, part.name, f"{kernel.us:,.1f}", f"{share:.1%}")
    return shown


def _columns(*, left: Iterable[str], right: Iterable[str]) -> Table:
    from graphprune.cli_show import plain_table

    shown = plain_table()
    for index, name in enumerate(left):
        shown.add_column(name, overflow="fold", no_wrap=index == 0)
    for name in right:
        shown.add_column(name, justify="left" if name in ("", "bound by") else "right", no_wrap=True)
    return shown
