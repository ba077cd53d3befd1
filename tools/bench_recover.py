"""How long recovery takes: BERT- and Llama-like graphs of 1,000 to 100,000 nodes.

    python tools/bench_recover.py [--repeats 7] [--largest 100000]

Every graph is one layer's text repeated, weights included, as a TorchScript export writes it: with the
shape arithmetic of its reshapes, rotary tables, key-value caches and a decomposed norm. Writes
`docs/benchmarks/recover.md`.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphprune.recover import recover

WIDTH, HEADS, HEAD, INNER = 64, 4, 16, 128
TARGET = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "recover.md"


class Writer:
    """Appends nodes to a graph, constants made on the way."""

    def __init__(self, inputs: dict[str, list[str | int]]) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.inputs = {
            name: ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
            for name, dims in inputs.items()
        }

    def __call__(self, op: str, *inputs: ir.Value, **attributes: int | float | list[int]) -> ir.Value:
        """The first output of a new node."""
        node = ir.node(op, inputs, attributes)
        node.name = node.outputs[0].name = f"{op}_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def weight(self, *shape: int) -> ir.Value:
        """A weight of zeros."""
        return self.constant(np.zeros(shape, np.float32))

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer."""
        name = f"constant_{len(self.initializers)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        self.initializers.append(value)
        return value

    def number(self, value: float) -> ir.Value:
        """A float."""
        return self.constant(np.float32(value))

    def index(self, *values: int) -> ir.Value:
        """Integers."""
        return self.constant(np.int64(values))

    def model(self, *outputs: ir.Value) -> ir.Model:
        """What was written, as a model."""
        graph = ir.Graph(
            list(self.inputs.values()), outputs, nodes=self.nodes, initializers=self.initializers,
            opset_imports={"": 17}, name="written",
        )  # fmt: skip
        return ir.Model(graph, ir_version=9)


def _linear(w: Writer, x: ir.Value, columns: int, rows: int = WIDTH, *, bias: bool) -> ir.Value:
    product = w("MatMul", x, w.weight(rows, columns))
    return w("Add", w.weight(columns), product) if bias else product


def _heads(w: Writer, x: ir.Value) -> ir.Value:
    """[batch, sequence, width] → [batch, heads, sequence, head], its shape put together as exporters do."""
    shape = w("Shape", x)
    sizes = [w("Unsqueeze", w("Gather", shape, w.index(i), axis=0), w.index(0)) for i in range(2)]
    target = w("Concat", *sizes, w.index(HEADS), w.index(HEAD), axis=0)
    return w("Transpose", w("Reshape", x, target), perm=[0, 2, 1, 3])


def _attend(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    scores = w("Div", w("MatMul", q, w("Transpose", k, perm=[0, 1, 3, 2])), w.number(HEAD**0.5))
    context = w("MatMul", w("Softmax", w("Add", scores, mask), axis=-1), v)
    merged = w("Transpose", context, perm=[0, 2, 1, 3])
    return w(
        "Reshape",
        merged,
        w("Concat", w("Slice", w("Shape", merged), w.index(0), w.index(2)), w.index(WIDTH), axis=0),
    )


def _layer_norm(w: Writer, x: ir.Value) -> ir.Value:
    centred = w("Sub", x, w("ReduceMean", x, axes=[-1]))
    variance = w("ReduceMean", w("Pow", centred, w.number(2)), axes=[-1])
    normal = w("Div", centred, w("Sqrt", w("Add", variance, w.number(1e-5))))
    return w("Add", w("Mul", normal, w.weight(WIDTH)), w.weight(WIDTH))


def _rms_norm(w: Writer, x: ir.Value) -> ir.Value:
    square = w("ReduceMean", w("Pow", x, w.number(2)), axes=[-1])
    root = w("Sqrt", w("Add", square, w.number(1e-5)))
    return w("Mul", w.weight(WIDTH), w("Mul", x, w("Div", w.number(1), root)))


def bert(layers: int) -> ir.Model:
    """Post-norm layers with biases and a GELU of Erf."""
    w = Writer({"x": ["batch", "sequence", WIDTH], "mask": ["batch", 1, 1, "sequence"]})
    x = w.inputs["x"]
    for _ in range(layers):
        q, k, v = (_heads(w, _linear(w, x, WIDTH, bias=True)) for _ in range(3))
        o = _linear(w, _attend(w, q, k, v, w.inputs["mask"]), WIDTH, bias=True)
        x = _layer_norm(w, w("Add", o, x))
        up = _linear(w, x, INNER, bias=True)
        bell = w("Add", w("Erf", w("Div", up, w.number(2**0.5))), w.number(1))
        down = _linear(w, w("Mul", w("Mul", up, bell), w.number(0.5)), WIDTH, INNER, bias=True)
        x = _layer_norm(w, w("Add", down, x))
    return w.model(x)


def _rotated(w: Writer, x: ir.Value, table: ir.Value) -> ir.Value:
    left = w("Slice", x, w.index(0), w.index(HEAD // 2), w.index(3))
    right = w("Slice", x, w.index(HEAD // 2), w.index(HEAD), w.index(3))
    return w("Add", w("Mul", x, table), w("Mul", w("Concat", w("Neg", right), left, axis=-1), table))


def llama(layers: int) -> ir.Model:
    """Pre-norm layers with RMS norms, rotary positions, caches and SwiGLU."""
    cache: list[str | int] = ["batch", HEADS, "past", HEAD]
    pasts = {f"past.{i}.{part}": cache for i in range(layers) for part in ("key", "value")}
    w = Writer({"x": ["batch", "sequence", WIDTH], "mask": ["batch", 1, 1, "keys"],
                "table": ["batch", 1, "sequence", HEAD], **pasts})  # fmt: skip
    x, presents = w.inputs["x"], []
    for i in range(layers):
        n = _rms_norm(w, x)
        q, k, v = (_heads(w, _linear(w, n, WIDTH, bias=False)) for _ in range(3))
        q, k = (_rotated(w, one, w.inputs["table"]) for one in (q, k))
        k = w("Concat", w.inputs[f"past.{i}.key"], k, axis=2)
        v = w("Concat", w.inputs[f"past.{i}.value"], v, axis=2)
        presents += [k, v]
        x = w("Add", x, _linear(w, _attend(w, q, k, v, w.inputs["mask"]), WIDTH, bias=False))
        n = _rms_norm(w, x)
        gate, up = (_linear(w, n, INNER, bias=False) for _ in range(2))
        hidden = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
        x = w("Add", x, _linear(w, hidden, WIDTH, INNER, bias=False))
    return w.model(x, *presents)


def measure(build: Callable[[int], ir.Model], nodes: int, repeats: int) -> str:
    """One row of the table."""
    layers = max(round(nodes / len(build(1).graph)), 1)
    model = build(layers)
    seconds = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        architecture = recover(model)
        seconds.append(time.perf_counter() - start)
    found = len(list(architecture.blocks))
    assert found == 2 * layers, f"{found} blocks in {layers} layers"
    size = len(model.graph)
    median = statistics.median(seconds)
    return (
        f"| {build.__name__} | {size:,} | {layers:,} | {median * 1e3:,.0f} | {min(seconds) * 1e3:,.0f} to "
        f"{max(seconds) * 1e3:,.0f} | {median * 1e6 / size:.1f} |"
    )


def environment() -> str:
    """The machine and the versions, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnx-ir"))
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"
    return f"{machine}; Python {platform.python_version()}, {libraries}"


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time recovery on graphs of growing size.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--largest", type=int, default=100_000)
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    sizes = [size for size in (1_000, 10_000, 100_000) if size <= options.largest]
    rows = [measure(build, size, options.repeats) for build in (bert, llama) for size in sizes]
    text = [
        "# Recovery time",
        "",
        f"`python tools/bench_recover.py --repeats {options.repeats}` on {environment()}.",
        f"Median and spread of {options.repeats} runs in one process and thread, the model in memory;",
        f"the machine's load average was {load:.1f} when they began.",
        "",
        "| graph | nodes | layers | median, ms | spread, ms | µs a node |",
        "|---|--:|--:|--:|--:|--:|",
        *rows,
        "",
    ]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
