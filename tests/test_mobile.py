"""What accelerators could take: as ONNX Runtime's own check says it, and XNNPACK counted by hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphprune.errors import GraphError
from graphprune.mobile import Partitions, partitions
from graphprune.ortformat import as_library
from tests import small, tiny
from tests.test_ortformat import branches, image
from tools.zoo import entries

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'


def write(path: Path, text: str, **weights: tuple[int, ...]) -> Path:
    """The model in ONNX text, with random weights of these shapes."""
    model = onnx.parser.parse_model(f"{HEAD}\n{text}")
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    onnx.save(model, path)
    return path


@contextmanager
def log_lines() -> Iterator[tuple[logging.Logger, list[str]]]:
    lines: list[str] = []
    logger, handler = logging.Logger("check", logging.INFO), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield logger, lines


def logged(path: Path) -> list[tuple[str, list[tuple[int, ...]], list[str]]]:
    """Oracle: what ONNX Runtime's tool logs: for each provider (partitions, taken, nodes), and verdicts."""
    with as_library(), log_lines() as (logger, lines):
        from onnxruntime.tools.mobile_helpers import usability_checker

        usability_checker.analyze_model(path, logger=logger)
    found: list[tuple[str, list[tuple[int, ...]], list[str]]] = []
    for line in lines:
        if begin := re.fullmatch(r"Checking (NNAPI|CoreML .*)", line):
            found.append((begin[1], [], []))
        elif counts := re.match(r"(\d+) partitions with a total of (\d+)/(\d+) ", line):
            found[-1][1].append(tuple(map(int, counts.groups())))
        elif verdict := re.match(r"Model should perform well with .*: (\w+)$", line):
            found[-1][2].append(verdict[1].lower())
    return found


def as_logged(one: Partitions) -> tuple[str, list[tuple[int, ...]], list[str | None]]:
    stages = [one, one.if_fixed] if one.if_fixed and one.verdict != "yes" else [one]
    counts = [(stage.partitions, stage.supported, stage.nodes) for stage in stages if stage]
    return one.provider, list(counts), [stage.verdict for stage in stages if stage]


@pytest.mark.parametrize("make", [tiny.save, branches, image, small.write])
def test_as_onnxruntimes_tool_logs_it(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "model.onnx")  # type: ignore[operator]
    *others, xnnpack = partitions(path)
    assert [as_logged(one) for one in others] == logged(path)
    assert (xnnpack.provider, xnnpack.verdict, xnnpack.if_fixed) == ("XNNPACK", None, None)
    assert all(sum(one.sizes) == one.supported for one in (*others, xnnpack))


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        *(pytest.param(name, marks=pytest.mark.matrix) for name in ("gpt2", "llama", "t5", "vit", "resnet")),
    ],
)
def test_real_exports_as_the_tool_logs_them(family: str) -> None:
    (entry,) = entries(family, fast=True)
    for file in entry.files():
        assert [as_logged(one) for one in partitions(file)[:3]] == logged(file), file.name


def test_fixed_sizes_are_counted_apart(tmp_path: Path) -> None:
    """By hand: with open shapes nothing is certain, with fixed ones all three nodes are taken."""
    text = "one (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w)  b = Mul (a, c)  y = Relu (b) }"
    nnapi = partitions(write(tmp_path / "open.onnx", text, w=(4, 4), c=(4,)))[0]
    assert (nnapi.supported, nnapi.nodes, nnapi.open_shapes, nnapi.verdict) == (0, 3, 3, "no")
    assert nnapi.if_fixed is not None
    assert (nnapi.if_fixed.supported, nnapi.if_fixed.partitions, nnapi.if_fixed.verdict) == (3, 1, "yes")
    fixed = partitions(write(tmp_path / "fixed.onnx", text.replace("n, 4", "2, 4"), w=(4, 4), c=(4,)))[0]
    assert (fixed.supported, fixed.partitions, fixed.sizes, fixed.verdict) == (3, 1, (3,), "yes")
    assert fixed.if_fixed is None


def test_operators_that_are_lacking_are_named(tmp_path: Path) -> None:
    text = "one (float[2, 4] x) => (float[2, 4] y) { a = Relu (x)  b = Erf (a)  y = Relu (b) }"
    nnapi = partitions(write(tmp_path / "model.onnx", text))[0]
    assert (nnapi.unsupported, nnapi.supported, nnapi.sizes) == (("ai.onnx:Erf",), 2, (1, 1))


def test_what_the_tool_stumbles_over(tmp_path: Path) -> None:
    """A Transpose without its attribute, a model of one node, one that folds away, one without shapes."""
    turned = "one (float[2, 3] x) => (float[3, 2] y) { a = Relu (x)  y = Transpose (a) }"
    assert partitions(write(tmp_path / "turned.onnx", turned))[0].supported == 2
    alone = "one (float[n, 3] x) => (float[m, k] y) { y = Transpose (x) }"
    assert partitions(write(tmp_path / "alone.onnx", alone))[0].nodes == 1
    constant = "one () => (float[1] y) <float[1] c = {2.0}> { y = Add (c, c) }"
    assert partitions(write(tmp_path / "constant.onnx", constant)) == ()
    shapeless = "one (float[a] x, int64[r] s) => (float[b] y) { h = Reshape (x, s)  y = Reshape (h, s) }"
    assert partitions(write(tmp_path / "shapeless.onnx", shapeless))[0].nodes == 2


def test_what_cannot_be_checked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(GraphError, match=r"model\.onnx: the check for mobile devices fails: "):
        partitions(tmp_path / "model.onnx")


CASES = {
    "a constant on the right": ("float[n, 6, 4] x", "y = MatMul (x, w)", 1),
    "one axis too many": ("float[n, 2, 6, 4] x", "y = MatMul (x, w)", 0),
    "no constant": ("float[n, 6, 4] x, float[4, 4] z", "y = MatMul (x, z)", 0),
    "halves": ("float16[n, 4] x, float16[4, 4] z", "y = MatMul (x, z)", 0),
    "a full Gemm": ("float[n, 4] x", "y = Gemm (x, w, b)", 1),
    "a Gemm without bias": ("float[n, 4] x", "y = Gemm (x, w)", 0),
    "a scaled Gemm": ("float[n, 4] x", "y = Gemm <alpha = 0.5> (x, w, b)", 0),
    "a convolution": ("float[n, 3, 8, 8] x", "y = Conv (x, k)", 1),
    "a transposed one": ("float[n, 2, 8, 8] x", "y = ConvTranspose (x, k)", 1),
    "of open size": ("float[n, 3, h, 8] x", "y = Conv (x, k)", 0),
    "along one axis": ("float[n, 3, 8] x", "y = Conv (x, k1)", 0),
    "padded below": ("float[n, 3, 8, 8] x", 'y = Conv <auto_pad = "SAME_LOWER"> (x, k)', 0),
    "its activation": ("float[n, 3, 8, 8] x", "c = Conv (x, k)  y = Relu (c)", 2),
    "its limits": ("float[n, 3, 8, 8] x", "c = Conv (x, k)  y = Clip (c, lo, hi)", 2),
    "limits that are no constants": ("float[n, 3, 8, 8] x, float z", "c = Conv (x, k)  y = Clip (c, z)", 1),
    "an activation alone": ("float[n, 3, 8, 8] x", "y = Relu (x)", 0),
    "after another op": ("float[n, 3, 8, 8] x", "c = Exp (x)  y = Relu (c)", 0),
    "a pool": ("float[n, 3, 8, 8] x", "y = MaxPool <kernel_shape = [2, 2]> (x)", 1),
    "a pool of one": ("float[n, 3, 8, 8] x", "y = MaxPool <kernel_shape = [1, 1]> (x)", 0),
    "rounded up": ("float[n, 3, 8, 8] x", "y = MaxPool <kernel_shape = [2, 2], ceil_mode = 1> (x)", 0),
    "a mean": ("float[n, 3, 8, 8] x", "y = AveragePool <kernel_shape = [2, 2]> (x)", 1),
    "over the padding": (
        "float[n, 3, 8, 8] x",
        "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (x)",
        0,
    ),
    "a softmax": ("float[n, 6] x", "y = Softmax (x)", 1),
    "of open width": ("float[n, m] x", "y = Softmax (x)", 0),
    "of another axis": ("float[n, 6, 4] x", "y = Softmax <axis = 1> (x)", 0),
    "of the last axis": ("float[n, 6, 4] x", "y = Softmax <axis = 2> (x)", 1),
    "bilinear": ("float[n, 3, 8, 8] x", 'y = Resize <mode = "linear"> (x, , scales)', 1),
    "nearest": ("float[n, 3, 8, 8] x", "y = Resize (x, , scales)", 0),
    "to no known size": ("float[n, 3, 8, 8] x, float[4] z", 'y = Resize <mode = "linear"> (x, , z)', 0),
    "of another domain": ("float[n, 4] x", "y = com.microsoft.Gelu (x)", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_what_xnnpack_takes_by_hand(case: str, tmp_path: Path) -> None:
    inputs, nodes, taken = CASES[case]
    opsets = '"" : 17, "com.microsoft" : 1'
    constants = "<float lo = {0.0}, float hi = {6.0}, float[4] scales = {1.0, 1.0, 2.0, 2.0}>"
    kind = inputs.partition("[")[0]
    text = f"one ({inputs}) => ({kind}[] y) {constants} {{ {nodes} }}"
    path = tmp_path / "model.onnx"
    model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{opsets}]>\n{text}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    shapes = {"w": (4, 4), "b": (4,), "k": (2, 3, 3, 3), "k1": (2, 3, 3)}
    used = {name for node in model.graph.node for name in node.input}
    for name in used & set(shapes):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shapes[name], np.float32), name))
    onnx.save(model, path)
    xnnpack = partitions(path)[-1]
    assert (xnnpack.provider, xnnpack.supported) == ("XNNPACK", taken)


def test_xnnpack_takes_weights_that_are_stored_quantized(tmp_path: Path) -> None:
    text = """
one (float[n, 4] x) => (float[n, 4] y)
<int8[4, 4] q = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, float scale = {0.1}, int8 zero = {0}>
{ w = DequantizeLinear (q, scale, zero)  y = MatMul (x, w) }"""
    assert partitions(write(tmp_path / "model.onnx", text))[-1].supported == 1
