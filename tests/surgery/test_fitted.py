"""Blocks as sums of linears: what is read is what the graph adds, in many families; the rest is declined."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphprune as gp
from graphprune.architecture import Block
from graphprune.dataflow import SKIP_NORMS
from graphprune.recover import recover
from graphprune.surgery import output_projections, post_norm, sweep
from graphprune.surgery.fitted import Projections
from graphprune.surgery.operands import read_operand, stored_in
from tests.graphs import attention, ffn, norm, only_block, written
from tests.passes.zeroed import feeds_for
from tools.zoo import Entry, NotExportableError, entries

READ = (
    "bert", "albert", "gpt2", "llama", "gptj", "bart", "t5", "opt", "vit", "mpnet", "falcon", "squeezebert",
    "phi3",
)  # fmt: skip
FAST = READ[:4]
DIALECTS = ("exported", "ort-extended", "onnxslim")


def cases() -> list[object]:
    found = []
    for number, entry in enumerate(entries(*READ, fast=True)):
        for dialect in DIALECTS:
            fast = entry.family.name in FAST and dialect == DIALECTS[number % 2]
            marks = () if fast else (pytest.mark.matrix,)
            found.append(pytest.param(entry, dialect, id=f"{entry.id}-{dialect}", marks=marks))
    return found


def put_out(model: ir.Model, values: list[ir.Value]) -> None:
    """Make values outputs of the model."""
    for value in dict.fromkeys(values):
        value.name = value.name or f"unnamed_{id(value)}"
        if not value.is_graph_output() and not value.is_graph_input():
            model.graph.outputs.append(value)


def added(found: Projections, values: dict[str, np.ndarray], stream: np.ndarray) -> np.ndarray:
    """`stream + Σ input @ weight + bias` in double precision."""
    axis = found.parts[0].axis
    total = np.moveaxis(stream.astype(np.float64), axis, -1)
    for part in found.parts:
        given = np.moveaxis(values[part.input.name or ""].astype(np.float64), part.axis, -1)
        total = total + (given @ part.weight.astype(np.float64)).reshape(total.shape)
    return np.moveaxis(total + found.bias, -1, axis)


@pytest.mark.parametrize(("entry", "dialect"), cases())
def test_a_join_adds_what_is_read(entry: Entry, dialect: str, tmp_path: Path) -> None:
    try:
        file = next(file for file in entry.files() if "encoder" not in file.stem)
        path = entry.dialect(file, dialect)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    model = gp.load(path).files[0].model
    blocks = {block: output_projections(block) for block in recover(model).blocks}
    unread = [found for found in blocks.values() if isinstance(found, str)]
    assert all("(Conv) has group" in reason for reason in unread)  # SqueezeBERT's maps are grouped
    plain = {b: f for b, f in blocks.items() if not isinstance(f, str) and b.join.op_type not in SKIP_NORMS}
    put_out(
        model,
        [v for b, f in plain.items() for v in (b.stream_in, b.join.outputs[0], *(p.input for p in f.parts))],
    )
    ir.save(model, tmp_path / "all.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(tmp_path / "all.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = feeds_for(path)
    names = [value.name for value in session.get_outputs()]
    values = dict(feeds) | dict(zip(names, session.run(None, feeds), strict=True))
    for block, found in plain.items():
        stream, total = (values[v.name or ""] for v in (block.stream_in, block.join.outputs[0]))
        np.testing.assert_allclose(added(found, values, stream), total, atol=1e-5, err_msg=block.id)


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "bart", "wav2vec2"])
@pytest.mark.parametrize("dialect", ["exported", pytest.param("fused", marks=pytest.mark.matrix)])
def test_norms_behind_joins(family: str, dialect: str) -> None:
    (entry,) = entries(family, fast=True)
    try:
        path = entry.dialect(entry.files()[0], dialect)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")
    blocks = [block for block in recover(gp.load(path).files[0].model).blocks if block.placement == "post"]
    assert blocks
    for block in blocks:
        found = post_norm(block)
        assert not isinstance(found, str), found
        assert found.scale.shape == found.shift.shape == (found.gamma.shape[-1],)
        assert math.prod(found.scale.shape) > 1


def block_of(body: str, number: int = 0, **options: object) -> Block:
    return [*recover(written(body, **options)).blocks][number]  # type: ignore[arg-type]


UP = "u = MatMul (x, up_8x24) r = Relu (u)"
FFN = f"{UP} f = MatMul (r, down_24x8)"
NBITS = (
    UP
    + """
f = com.microsoft.MatMulNBits <K = 24, N = 8, bits = 4, block_size = 16> (r, packed, scales)
"""
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{FFN} l = Mul (f, scale_8) y = Add (x, l)", "node '' (Mul) stands between"),
        (f"{FFN} l = Mul (f, half) y = Add (x, l)", "node '' (Mul) stands between"),
        (f"{FFN} {norm('f', 'l')} y = Add (x, l)", "node '' (LayerNormalization) stands between"),
        (f"{FFN} t = Tanh (f) y = Add (x, t)", "node '' (Tanh) stands between"),
        (f"{FFN} b = Add (f, positions_5x8) y = Add (x, b)", "adds is no bias: its shape is [5, 8]"),
        (f"{FFN} b = Add (f, half) y = Add (x, b)", "adds is no bias: its shape is []"),
        (f"{FFN} y = Add (x, f)".replace("down_24", "down_5x24"), "the shape [5, 24, 8], not two axes"),
        (
            f"w = DequantizeLinear (q, tiny) {FFN} y = Add (x, f)".replace("down_24x8", "w"),
            "is not stored as it is read: it is made by node '' (DequantizeLinear)",
        ),
        (
            f"{NBITS} y = Add (x, f)",
            "node '' (MatMulNBits) holds its weight quantized, packed",
        ),
    ],
)  # fmt: skip
def test_what_is_not_such_a_sum(body: str, reason: str) -> None:
    constants = {
        "q": np.ones((24, 8), np.int8), "packed": np.ones((8, 2, 8), np.uint8),
        "scales": np.ones(16, np.float32),
    }  # fmt: skip
    options = {"inputs": "float[1, 5, 8] x", "outputs": "float[1, 5, 8] y"} if "5x" in body else {}
    found = output_projections(block_of(body, constants=constants, **options))
    assert isinstance(found, str) and reason in found, found


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{FFN} y = Add (x, f)", "it has no norm after its join"),
        (f"{norm('x', 'n')} {attention('n', 'a')} y = Add (x, a)", "it has no norm after its join"),
    ],
)
def test_where_there_is_no_norm_to_refit(body: str, reason: str) -> None:
    assert post_norm(only_block(written(body))) == reason


def test_convolutions_over_one_position_are_linears() -> None:
    body = """
    u = Conv (x, up_24x8x1x1) r = Relu (u) f = Conv (r, down_8x24x1x1, b_8) y = Add (x, f)
    """
    image = "float[batch, 8, 6, 6]"
    found = output_projections(block_of(body, inputs=f"{image} x", outputs=f"{image} y"))
    assert not isinstance(found, str)
    (part,) = found.parts
    assert (part.axis, part.inputs, part.width, part.weight.shape) == (1, 24, 8, (24, 8))
    wide = body.replace("Conv (r, down_8x24x1x1", "Conv <pads = [1, 1, 1, 1]> (r, down_8x24x3x3")
    reason = output_projections(block_of(wide, inputs=f"{image} x", outputs=f"{image} y"))
    assert isinstance(reason, str) and "convolves over more than one position" in reason


def test_biases_of_both_branches_and_of_the_fused_sum_add_up() -> None:
    parallel = f"""
    {norm("x", "n")} {attention("n", "a")} {ffn("n", "f")} c = Add (a, one_8) d = Add (f, two_8)
    s = Add (c, d) y = Add (x, s)
    """
    found = output_projections(block_of(parallel))
    assert not isinstance(found, str)
    assert len(found.parts) == len(found.places) == 2
    stored = {p.origin.name: p.read() for p in found.places}
    np.testing.assert_array_equal(found.bias, stored["one_8"] + stored["two_8"])


def test_operands_are_read_through_names_types_and_turns() -> None:
    body = "t = Transpose <perm = [1, 0]> (w) c = Cast <to = 1> (t) i = Identity (c) y = MatMul (x, i)"
    w = np.arange(32, dtype=np.float16).reshape(4, 8)
    model = written(body, constants={"w": w}, outputs="float[batch, sequence, 4] y")
    node = next(node for node in model.graph if node.op_type == "MatMul")
    found = read_operand(node, 1)
    assert not isinstance(found, str)
    assert (found.dtype, found.read_type, found.shape) == (ir.DataType.FLOAT16, ir.DataType.FLOAT, (8, 4))
    np.testing.assert_array_equal(found.read(), w.T.astype(np.float32))
    found.write(w.T.astype(np.float32) + 1, model.graph, "new")
    sweep(model)
    again = read_operand(node, 1)
    assert not isinstance(again, str)
    np.testing.assert_array_equal(again.read(), w.T.astype(np.float32) + 1)
    assert again.origin.name == "new" and set(model.graph.initializers) == {"new"}


@pytest.mark.parametrize(
    ("body", "index", "reason"),
    [
        (
            "y = MatMul (x, w)",
            0,
            "operand 0 of node '' (MatMul) is not stored as it is read: it is made outside",
        ),
        ("y = MatMul (x, w)", 2, "operand 2 of node '' (MatMul) is left out"),
        ("y = Gather (x, i)", 1, "operand 1 of node '' (Gather) is stored as int64: it is quantized"),
    ],
)
def test_operands_that_are_not_stored_floats(body: str, index: int, reason: str) -> None:
    model = written(body, constants={"w": np.eye(8, dtype=np.float32), "i": np.arange(8)})
    found = read_operand(model.graph[0], index)
    assert isinstance(found, str) and reason in found, found


def test_equal_weights_of_one_name_are_stored_once() -> None:
    graph = written("y = Relu (x)").graph
    one = stored_in(graph, "w", np.ones(3), ir.DataType.FLOAT)
    assert stored_in(graph, "w", np.ones(3), ir.DataType.FLOAT) is one
    assert stored_in(graph, "w", np.zeros(3), ir.DataType.FLOAT).name == "w_1"
    assert stored_in(graph, "w", np.ones(3), ir.DataType.FLOAT16).name == "w_2"
    assert stored_in(graph, "x", np.ones(3), ir.DataType.FLOAT).name == "x_1"
