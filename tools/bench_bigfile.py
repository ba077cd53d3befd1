"""Benchmark on a model too large for one protobuf message: inspect it, prune it, against `cp`.

    python -m tools.bench_bigfile [--folder DIR] [--rounds N]

It makes a decoder of 24 layers and 2.49 GB of random weights in external data, in a folder
that is removed afterwards (10 GB free are needed), and writes docs/benchmarks/bigfile.md.
Every run is a process of its own; its peak memory is what the kernel reports.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tools.measuring import GRAPHPRUNE, Run, command_line, environment, measure, spread, write_page

LAYERS, WIDTH, HEADS, FFN, VOCABULARY = 24, 1536, 12, 3456, 4096
IMPORTS = (
    "import onnxruntime, graphprune.cli, graphprune.pipeline, graphprune.check, graphprune.recover, pydantic"
)


def make_model(path: Path) -> None:
    """Write the model; its weights are made one by one while they are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = ir.Input("input_ids", ir.Shape(["batch", "sequence"]), ir.TensorType(ir.DataType.INT64))
    writer = _Writer()
    stream = writer.op("Gather", writer.weight(VOCABULARY, WIDTH), ids)
    for _ in range(LAYERS):
        stream = writer.op("Add", stream, writer.attention(writer.norm(stream)))
        stream = writer.op("Add", stream, writer.ffn(writer.norm(stream)))
    logits = writer.linear(writer.norm(stream), VOCABULARY)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(["batch", "sequence", VOCABULARY])
    graph = ir.Graph(
        [ids],
        [logits],
        nodes=writer.tape.nodes,
        initializers=writer.initializers,
        opset_imports={"": 17},
        name="big",
    )
    ir.save(ir.Model(graph, ir_version=9), path, external_data=f"{path.name}_data")


class _Writer:
    """Writes the nodes of a decoder with RMS norms and gated FFNs onto a tape."""

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self.initializers: list[ir.Value] = []

    def op(
        self, op_type: str, *inputs: ir.Value, **attributes: ir.convenience.SupportedAttrTypes
    ) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes)

    def weight(self, *shape: int) -> ir.Value:
        """Random weights, seeded by their number."""
        seed = len(self.initializers)

        def make() -> ir.Tensor:
            numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
            return ir.tensor(numbers * np.float32(0.02))

        return self._initializer(ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape)))

    def constant(self, value: float | list[int]) -> ir.Value:
        dtype = np.int64 if isinstance(value, list) else np.float32
        return self._initializer(ir.tensor(np.array(value, dtype)))

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        tensor.name = f"weight_{len(self.initializers)}"
        value = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers.append(value)
        return value

    def linear(self, x: ir.Value, width: int, *, of: int = WIDTH) -> ir.Value:
        return self.op("MatMul", x, self.weight(of, width))

    def norm(self, x: ir.Value) -> ir.Value:
        mean = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1])
        root = self.op("Sqrt", self.op("Add", mean, self.constant(1e-5)))
        return self.op("Mul", self.op("Div", x, root), self.weight(WIDTH))

    def attention(self, x: ir.Value) -> ir.Value:
        size = WIDTH // HEADS

        def heads(permutation: list[int]) -> ir.Value:
            split = self.op("Reshape", self.linear(x, WIDTH), self.constant([0, 0, HEADS, size]))
            return self.op("Transpose", split, perm=permutation)

        scores = self.op("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
        shares = self.op("Softmax", self.op("Mul", scores, self.constant(size**-0.5)), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", shares, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.constant([0, 0, WIDTH])), WIDTH)

    def ffn(self, x: ir.Value) -> ir.Value:
        gate, up = self.linear(x, FFN), self.linear(x, FFN)
        swish = self.op("Mul", gate, self.op("Sigmoid", gate))
        return self.linear(self.op("Mul", swish, up), WIDTH, of=FFN)


def commands(model: Path, out: Path) -> dict[str, list[str | Path]]:
    """What is compared; `out` is the folder to write."""
    prune: list[str | Path] = [GRAPHPRUNE, "prune", model, out / "model.onnx", "--no-run"]
    return {
        "cp": ["cp", "-r", model.parent, out],
        "cp, flushed": ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', model.parent, out],
        "prune --drop-layers 3,20 --no-run": [*prune, "--drop-layers", "3,20"],
        "inspect --json": [GRAPHPRUNE, "inspect", model, "--json"],
        "imports only": [sys.executable, "-c", IMPORTS],
    }


def compare(folder: Path, rounds: int, *, cold: bool) -> dict[str, list[Run]]:
    """All commands, in turns, `rounds` times, after a first round that does not count.

    Before each everything is flushed to the disk, and with `cold` the model taken out of the page cache.
    """
    model, out = folder / "in" / "model.onnx", folder / "out"
    runs: dict[str, list[Run]] = {name: [] for name in commands(model, out)}
    for number in range(rounds + 1):
        for name, command in commands(model, out).items():
            shutil.copytree(model.parent, out)  # every command finds memory and cache in the same state
            shutil.rmtree(out)
            os.sync()
            if cold:
                forget(model.parent)
            run = measure(command, folder / "bytecode")
            shutil.rmtree(out, ignore_errors=True)
            if number:
                runs[name].append(run)
    return runs


def forget(folder: Path) -> None:
    """Take the files of a folder, flushed before, out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(runs: dict[str, list[Run]]) -> list[str]:
    """A row for each command."""
    copies = statistics.median(run.seconds for run in runs["cp"])
    flushed = statistics.median(run.seconds for run in runs["cp, flushed"])
    lines = [
        "| | seconds | ratio to cp | ratio to cp, flushed | CPU seconds | peak memory, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, measured in runs.items():
        median = statistics.median(run.seconds for run in measured)
        lines.append(
            f"| {name} | {spread(run.seconds for run in measured)} | {median / copies:.2f} "
            f"| {median / flushed:.2f} | {spread(run.cpu for run in measured)} "
            f"| {max(run.megabytes for run in measured):.0f} |"
        )
    return [*lines, ""]


def report(folder: Path, rounds: int) -> list[str]:
    """The page, as Markdown."""
    about = environment("onnx", "onnx-ir", "onnxruntime", "numpy")
    size = sum(path.stat().st_size for path in (folder / "in").iterdir())
    return [
        f"# A model of {size / 1e9:.2f} GB in external data",
        "",
        f"`python -m tools.bench_bigfile --rounds {rounds}` on {about}.",
        f"It makes the model itself: {LAYERS} decoder layers. Medians of {rounds} runs in turns, lowest and",
        "highest in brackets; Python's start and imports are in them, and `imports only` is these alone.",
        "",
        "What graphprune writes has been checked and flushed to the disk when it ends, so that no crash and",
        "no power cut leaves half a file. `cp` leaves flushing to the kernel; `cp, flushed` keeps the same",
        "promise.",
        "",
        "## The model in the page cache",
        "",
        *table(compare(folder, rounds, cold=False)),
        "## The model on the disk only",
        "",
        *table(compare(folder, rounds, cold=True)),
    ]


def main() -> None:
    """Make the model, measure, write the page."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to make the model"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bigfile.") as name:
        folder = Path(name)
        maker = multiprocessing.get_context("spawn").Process(
            target=make_model, args=(folder / "in" / "model.onnx",)
        )
        maker.start()  # apart: a process inherits the peak memory of the one that starts it
        maker.join()
        write_page("bigfile.md", report(folder, options.rounds))


if __name__ == "__main__":
    main()
