"""Compare with the nearest peers on the same exports: droppable blocks found, time, memory.

    python -m tools.compare_peers

The peers are onnxsim, whose `apply_transformer_block_pruning` drops residual blocks, and OnnxSlim,
which has no such pass and is measured as the optimizer that it is. What they find is asked of their
public dry run (`analyze_pruning_sensitivity`); the calibration that onnxsim wants is one random
batch. Every measurement is a process of its own, forked after the imports; memory is the growth of
its peak resident size. Writes docs/benchmarks/peers.md.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.zoo import Entry, NotExportableError, entries, families
from tools.zoo_export import quiet

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "peers.md"
LIBRARIES = ("onnxsim", "onnxslim", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers", "optimum-onnx")
ROUNDS = 5
FORMS = (("optimum", "exported"), ("optimum", "onnxsim"), ("optimum", "fused"), ("dynamo", "exported"))
SIZED = (  # real sizes for time and memory, random weights
    ("bert", "MiniLM's size (6 layers, 384 wide)", dict(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512,
    )),
    ("vit", "ViT-Base (12 layers, 768 wide)", dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        image_size=32, patch_size=4, num_channels=3,
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one call gave, in seconds and in MiB of peak memory above the start."""

    result: Any
    seconds: float
    mebibytes: float


def measured(call: Callable[..., Any], *arguments: Any) -> Measured | None:
    """`call(*arguments)` in a process of its own; None where it fails."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, call, arguments))
    process.start()
    sender.close()
    try:
        answer: Measured | None = receiver.recv()
    except EOFError:
        answer = None
    process.join()
    return answer


def _measure(sender: Any, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before, start = _resident("VmRSS"), time.perf_counter()
    try:
        with quiet():
            result = call(*arguments)
    except Exception as error:
        sender.send(Measured(f"{type(error).__name__}: {error}"[:300], -1.0, -1.0))
        return
    seconds = time.perf_counter() - start
    sender.send(Measured(result, seconds, (_resident("VmHWM") - before) / 1024))


def _resident(which: str) -> int:
    """A line of the kernel's account of this process, in KiB."""
    found = re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) if found else 0


# -- what is asked of each tool -----------------------------------------------------------------


def found_by_graphprune(path: Path) -> int:
    """Droppable blocks, in all graphs of the file."""
    import graphprune as gp
    from graphprune.recover import recover

    (file,) = gp.load(path).files
    return sum(block.droppable for block in recover(file.model).blocks)


def found_by_onnxsim(path: Path) -> int:
    """Candidates that its dry run reports, in all graphs of the file."""
    import onnxsim

    report = onnxsim.analyze_pruning_sensitivity(
        str(path), onnxsim.apply_transformer_block_pruning, calibration_data=_calibration(path), sparsity=1.0
    )
    return sum(row.total for row in report.layers)


def dropped_by_graphprune(path: Path, out: Path) -> None:
    """One FFN out, written, not checked (as the peer does not check)."""
    import graphprune as gp

    gp.prune(gp.load(path), drop_ffn=[1]).bundle.save(out)


def dropped_and_checked_by_graphprune(path: Path, out: Path) -> None:
    """One FFN out, written, and checked: the checker, shape inference, loaded and run twice."""
    import graphprune as gp

    gp.prune(gp.load(path), drop_ffn=[1]).save(out)


def dropped_by_onnxsim(path: Path, out: Path) -> bool:
    """One block out (the one that it ranks first), written; whether there was one."""
    import onnx
    import onnxsim

    before = len(onnx.load(path, load_external_data=False).graph.node)
    pruned = onnxsim.apply_transformer_block_pruning(
        str(path), calibration_data=_calibration(path), num_blocks_to_drop=1
    )
    onnx.save(pruned, out)
    return len(pruned.graph.node) < before


def optimized_by_onnxslim(path: Path, out: Path) -> None:
    """What OnnxSlim does: the same model, simplified."""
    import onnxslim

    onnxslim.slim(str(path), str(out), verbose=False)


def _calibration(path: Path) -> list[dict[str, Any]]:
    import onnxruntime as ort

    from tools.zoo_feeds import make_feeds

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    past = 3 if any(value.name.startswith("past") for value in session.get_inputs()) else 0
    return [make_feeds(session, past=past)]


# -- the two tables -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """Droppable blocks in one form of one family: how many there are, and how many each tool finds."""

    family: str
    form: str
    truth: int
    graphprune: int
    onnxsim: int


def coverage() -> Iterator[Coverage]:
    """Every form of every family that can be made."""
    for name in families():
        for exporter, dialect in FORMS:
            entry = next(e for e in entries(name) if e.exporter == exporter and e.main)
            try:
                paths = [entry.dialect(file, dialect) for file in entry.files()]
            except NotExportableError:
                continue
            truth = sum(_truth(entry, path.stem) for path in paths)
            found = [
                sum(map(partial(_count, tool), paths)) for tool in (found_by_graphprune, found_by_onnxsim)
            ]
            yield Coverage(name, f"{exporter}, {dialect}", truth, *found)


def _count(tool: Callable[[Path], int], path: Path) -> int:
    answer = measured(tool, path)
    if answer is None or answer.seconds < 0:
        raise RuntimeError(f"{tool.__name__} fails on {path}: {answer.result if answer else 'killed'}")
    return int(answer.result)


def _truth(entry: Entry, file: str) -> int:
    """Droppable blocks in truth; a merged decoder holds each twice."""
    copies = 2 if file.endswith("_merged") else 1
    layers = [layer for stack in entry.stacks(file) for layer in stack.layers]
    return copies * sum(block.droppable for layer in layers for block in layer.blocks)


def costs(folder: Path) -> Iterator[list[str]]:
    """Rows of the second table: model, task, tool, result, seconds, memory."""
    for name, title, options in SIZED:
        family = replace(families()[name], options=options)
        (path,) = Entry(family, "optimum", family.tasks[0]).files()
        size = f"{title}, {path.stat().st_size / 2**20:.0f} MiB"
        out = folder / "out.onnx"
        jobs: list[tuple[str, str, Callable[..., Any], tuple[Any, ...]]] = [
            ("find the blocks", "graphprune", found_by_graphprune, (path,)),
            ("find the blocks", "onnxsim", found_by_onnxsim, (path,)),
            ("drop one, write", "graphprune", dropped_by_graphprune, (path, out)),
            ("drop one, write, check", "graphprune", dropped_and_checked_by_graphprune, (path, out)),
            ("drop one, write", "onnxsim", dropped_by_onnxsim, (path, out)),
            ("simplify, write", "OnnxSlim", optimized_by_onnxslim, (path, out)),
        ]
        for task, tool, call, arguments in jobs:
            yield [size, task, tool, *_cost(call, arguments, out)]


def _cost(call: Callable[..., Any], arguments: tuple[Any, ...], out: Path) -> list[str]:
    answers: list[Measured] = []
    for _ in range(ROUNDS):
        out.unlink(missing_ok=True)
        answer = measured(call, *arguments)
        if answer is None or answer.seconds < 0:
            return [f"failed: {answer.result if answer else 'killed'}", "", ""]
        answers.append(answer)
    result = answers[0].result
    words = {None: "done", True: "done", False: "found none to drop"}
    said = f"{result} found" if type(result) is int else words[result]
    seconds = statistics.median(answer.seconds for answer in answers)
    return [said, f"{seconds:.2f}", f"{max(answer.mebibytes for answer in answers):.0f}"]


def page() -> str:
    """The whole page, as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        costly = [_row(*row) for row in costs(Path(folder))]
    lines = [
        "# Against onnxsim and OnnxSlim",
        "",
        f"Made by `python -m tools.compare_peers` with Python {platform.python_version()} on "
        f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs, {versions}.",
        "",
        "## Droppable blocks found",
        "",
        "On the model zoo's exports (all files of an export together; a merged decoder counts its two",
        "copies). Each cell: how many there are / graphprune finds / onnxsim finds; – where the exporter",
        "or the treatment cannot do the family. onnxsim counts what its `analyze_pruning_sensitivity`",
        "reports for `apply_transformer_block_pruning`, which takes pre-norm blocks that end in a bare",
        "`Add`; OnnxSlim has no pass that drops blocks. “onnxsim” is the export after `onnxsim.simplify`,",
        "“fused” after `onnxruntime.transformers.optimizer`.",
        "",
        _row("family", *(f"{exporter}, {dialect}" for exporter, dialect in FORMS)),
        "|---|" + "---:|" * len(FORMS),
        *_found(list(coverage())),
        "",
        "## Time and memory",
        "",
        f"Median time and highest peak of {ROUNDS} runs. Finding reads the file too.",
        "",
        _row("model", "task", "tool", "result", "s", "peak MiB"),
        "|---|---|---|---|---:|---:|",
        *costly,
    ]
    return "\n".join(lines) + "\n"


def _found(rows: list[Coverage]) -> Iterator[str]:
    """A line a family, a column a form, and the sums."""
    forms = [f"{exporter}, {dialect}" for exporter, dialect in FORMS]
    for name in families():
        cells = {
            row.form: f"{row.truth} / {row.graphprune} / {row.onnxsim}" for row in rows if row.family == name
        }
        yield _row(name, *(cells.get(form, "–") for form in forms))
    sums = [_sums(row for row in rows if row.form == form) for form in forms]
    yield _row("**all**", *(f"**{total}**" for total in sums))


def _sums(rows: Iterable[Coverage]) -> str:
    columns = zip(*((row.truth, row.graphprune, row.onnxsim) for row in rows), strict=True)
    return " / ".join(str(sum(column)) for column in columns)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure, and write the page."""
    import onnxruntime  # noqa: F401
    import onnxsim  # noqa: F401
    import onnxslim  # noqa: F401

    import graphprune.pipeline
    import graphprune.recover  # noqa: F401 (imported before the forks, so that no tool pays for imports)

    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
