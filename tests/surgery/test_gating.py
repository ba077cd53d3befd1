from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphprune as gp
from graphprune.errors import EditError
from graphprune.recover import recover
from graphprune.surgery import drop_block, gate_blocks, sweep
from graphprune.surgery.gating import Gates
from tests import tiny
from tests.graphs import attention, ffn, norm, written
from tools.zoo import Entry, NotExportableError, families
from tools.zoo_feeds import Feeds, make_feeds

LAYERS = 3
TOLERANCE = 1e-5
PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""
POST = f"""
{attention("x", "a")} s = Add (x, a) {norm("s", "h")}
{ffn("h", "f")} t = Add (h, f) {norm("t", "y")}
"""
# The sum at the join and the norm of the next block in one node; its last input is a bias of the branch.
FUSED = f"""
{ffn("x", "f")}
m, u0, u1, h = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (x, f, g_8, b_8, down_bias_8)
{ffn("m", "g")} y = Add (h, g)
"""
PARALLEL = f"""
{norm("x", "n0")} {attention("n0", "a")} {ffn("n0", "f")} b = Add (a, f) h = Add (x, b)
{norm("h", "n1")} {attention("n1", "c")} {ffn("n1", "g")} d = Add (c, g) y = Add (h, d)
"""


def gated(model: ir.Model, *, resumable: bool = False) -> Gates:
    """Gate a model in place; it is a valid one afterwards."""
    gates = gate_blocks(recover(model), resumable=resumable)
    sweep(model)
    return gates


def session(model: ir.Model | Path, level: str = "DISABLE_ALL", optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, by the largest value."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.abs(one - other).max(initial=0) / max(1.0, np.abs(other).max(initial=0)))


def mask(gates: Gates, *off: int) -> np.ndarray:
    return np.array([number not in off for number in range(len(gates.blocks))])


# -- by hand ---------------------------------------------------------------------------------------


def test_every_choice_of_blocks() -> None:
    model = ir.from_proto(tiny.model(LAYERS))
    gates = gated(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert gates.blocks == tuple(
        f"encoder.{i}.{kind}" for i in range(LAYERS) for kind in ("attention", "ffn")
    )
    x = np.random.default_rng(0).standard_normal((2, 5, tiny.WIDTH)).astype(np.float32)
    run = session(model).run
    for chosen in product((True, False), repeat=2 * LAYERS):
        without = dict.fromkeys(range(LAYERS), "")
        for id, on in zip(gates.blocks, chosen, strict=True):
            _, layer, kind = id.split(".")
            without[int(layer)] += "" if on else f" {kind}"
        (got,) = run(None, {"x": x, "run_mask": np.array(chosen)})
        np.testing.assert_allclose(got, tiny.reference(x, LAYERS, without=without), rtol=1e-4, atol=1e-5)


def test_the_model_is_what_it_was_where_nothing_is_said() -> None:
    dense, model = ir.from_proto(tiny.model(LAYERS)), ir.from_proto(tiny.model(LAYERS))
    gated(model)
    x = np.random.default_rng(0).standard_normal((2, 5, tiny.WIDTH)).astype(np.float32)
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        (one,), (other,) = (session(m, level).run(None, {"x": x}) for m in (dense, model))
        assert np.array_equal(one, other)
    assert [v.name for v in session(model).get_inputs()] == ["x"]
    assert [v.name for v in session(model).get_overridable_initializers()] == ["run_mask"]


def test_gates_stand_one_after_another_and_weights_outside() -> None:
    model = ir.from_proto(tiny.model(LAYERS))
    gated(model, resumable=True)
    gates = [node for node in model.graph if node.op_type == "If" and node.name != "head/gate"]
    assert len(gates) == 2 * LAYERS
    assert {name for name, value in model.graph.initializers.items() if "." in name} == set(
        tiny.weights(LAYERS)
    )
    for graph in model.graph.subgraphs():
        assert not graph.initializers
    for gate in gates:  # ONNX Runtime does not repack what is read two subgraphs deep
        for inner in gate.attributes["else_branch"].as_graph().all_nodes():
            assert inner.op_type not in {"MatMul", "Gemm"}


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize(
    ("body", "off", "after"),
    [
        (PRE, 0, f"{norm('x', 'n1')} {ffn('n1', 'f')} y = Add (x, f)"),
        (PRE, 1, f"{norm('x', 'n0')} {attention('n0', 'a')} y = Add (x, a)"),
        (POST, 0, f"{norm('x', 'h')} {ffn('h', 'f')} t = Add (h, f) {norm('t', 'y')}"),
        (POST, 1, f"{attention('x', 'a')} s = Add (x, a) {norm('s', 'h')} {norm('h', 'y')}"),
        (
            FUSED,
            0,
            f"m = LayerNormalization <epsilon = 0.00001> (x, g_8, b_8) {ffn('m', 'g')} y = Add (x, g)",
        ),
        (
            PARALLEL,
            1,
            f"{norm('x', 'n0')} {attention('n0', 'a')} {ffn('n0', 'f')} b = Add (a, f) y = Add (x, b)",
        ),
    ],
)
def test_a_block_that_is_off_is_gone(body: str, off: int, after: str, *, resumable: bool) -> None:
    model, expected = written(body), written(after)
    weights = model.graph.initializers
    for name, value in expected.graph.initializers.items():
        value.const_value = weights[name].const_value
    gates = gated(model, resumable=resumable)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    (got,) = session(model).run(["y"], {"x": x, "run_mask": mask(gates, off)})
    (wanted,) = session(expected).run(None, {"x": x})
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("body", [PRE, POST, FUSED, PARALLEL])
def test_a_run_begins_in_the_middle(body: str) -> None:
    model = written(body)
    gates = gated(model, resumable=True)
    onnx.checker.check_model(ir.to_proto(model))
    (boundary,) = gates.boundaries
    assert boundary.gate == 1 and gates.settled == ("y",)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    run = session(model).run
    for on in (True, False):
        given = {"x": x, "run_mask": np.array([on, True])}
        whole, stream = run(["y", boundary.output], given)
        other = {"x": np.full_like(x, np.nan), "resume": np.array(1), "stream": stream}
        (rest,) = run(["y"], other)
        np.testing.assert_allclose(whole, rest, rtol=1e-5, atol=1e-6)


def test_a_graph_older_than_optional_inputs() -> None:
    proto = tiny.model(LAYERS)
    proto.ir_version, proto.opset_import[0].version = 3, 9
    for weight in proto.graph.initializer:
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    model = ir.from_proto(proto)
    gates = gated(model, resumable=True)
    assert len(gates.blocks) == 2 * LAYERS and not gates.boundaries and gates.settled == ("y",)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 5, tiny.WIDTH)).astype(np.float32)
    (got,) = session(model, "ENABLE_ALL").run(None, {"x": x, "run_mask": mask(gates, 1)})
    np.testing.assert_allclose(got, tiny.reference(x, without={0: "ffn"}), rtol=1e-4, atol=1e-5)


def test_a_graph_is_gated_once() -> None:
    model = written(PRE)
    gated(model)
    with pytest.raises(EditError, match=r"run_mask.*already"):
        gated(model)


def test_sums_that_are_stored_quantized_are_declined() -> None:
    scales = {"s": np.float32(0.1), "z": np.uint8(128)}
    body = f"""
    q = QuantizeLinear (x, s, z) {ffn("x", "f")} fq = QuantizeLinear (f, s, z)
    hq = com.microsoft.QLinearAdd (q, s, z, fq, s, z, s, z) h = DequantizeLinear (hq, s, z)
    {ffn("h", "g")} y = Add (h, g)
    """
    model = written(body, constants=scales)
    declined = gated(model).declined
    assert all("stored by a scale of its own" in reason for reason in declined.values()), declined
    assert declined


# -- real exports ------------------------------------------------------------------------------------

FAST = [
    ("bert", "feature-extraction", "model", "exported"),
    ("gpt2", "text-generation", "model", "exported"),
    ("gpt2", "text-generation-with-past", "model", "exported"),
    ("t5", "text2text-generation", "encoder_model", "exported"),
    ("vit", "feature-extraction", "model", "exported"),
    ("bert", "feature-extraction", "model", "fused"),
    ("bert", "feature-extraction", "model", "qdq"),
]
SLOW = [
    ("llama", "text-generation", "model", "exported"),
    ("llama", "text-generation-with-past", "model", "exported"),
    ("modernbert", "feature-extraction", "model", "exported"),
    ("t5", "text2text-generation-with-past", "decoder_with_past_model", "exported"),
    ("gpt_neox", "text-generation-with-past", "model", "exported"),
    ("gemma2", "text-generation-with-past", "model", "exported"),
    ("deberta", "feature-extraction", "model", "exported"),
    ("swin", "feature-extraction", "model", "exported"),
    ("clip", "zero-shot-image-classification", "model", "exported"),
    ("squeezebert", "feature-extraction", "model", "exported"),
    ("opt", "text-generation-with-past", "model", "exported"),
    *(
        ("bert", "feature-extraction", "model", dialect)
        for dialect in ("int8", "int4", "qoperator", "ort-all")
    ),
    *(("vit", "feature-extraction", "model", dialect) for dialect in ("qdq", "fused")),
    ("llama", "text-generation", "model", "qdq"),
    ("gpt2", "text-generation", "model", "fused"),
]
CONVOLUTIONS_FIRST = {"vit", "swin", "clip"}
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.matrix) for case in SLOW)]


def exported(family: str, task: str, file: str, dialect: str) -> Path:
    entry = Entry(families()[family], "optimum", task)
    try:
        return entry.dialect(next(path for path in entry.files() if path.stem == file), dialect)
    except NotExportableError as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")


def load(path: Path) -> ir.Model:
    (file,) = gp.load(path).files
    return file.model


def feeds_of(dense: Any) -> Feeds:
    cached = any(value.name.startswith("past") for value in dense.get_inputs())
    return make_feeds(dense, past=3 if cached else 0)


def pruned(path: Path, block: str, feeds: Feeds) -> dict[str, np.ndarray]:
    """What the model without one block puts out; keys and values are put out all the same."""
    (found,) = (one for one in recover(load(path)).blocks if one.id == block)
    drops: dict[str, dict[str, object]] = {
        "ffn": {"drop_ffn": block},
        "attention": {"drop_attention": block},
        "parallel": {"drop_ffn": block, "drop_attention": block},
    }
    if found.caches:
        model = load(path)
        architecture = recover(model)
        (found,) = (one for one in architecture.blocks if one.id == block)
        drop_block(found, architecture, keep_caches=True)
        sweep(model)
    else:
        model = gp.prune(gp.load(path), loader="plain", **drops[found.kind]).bundle.files[0].model
    run = session(model)
    names, taken = ([value.name for value in values] for values in (run.get_outputs(), run.get_inputs()))
    return dict(zip(names, run.run(names, {name: feeds[name] for name in taken}), strict=True))


@pytest.mark.parametrize(("family", "task", "file", "dialect"), CASES)
def test_a_gate_does_what_pruning_does(family: str, task: str, file: str, dialect: str) -> None:
    path = exported(family, task, file, dialect)
    dense, model = session(path), load(path)
    blocks = {block.id: block for block in recover(load(path)).blocks}
    gates = gated(model, resumable=True)
    assert set(gates.blocks) == {id for id, block in blocks.items() if block.droppable}
    onnx.checker.check_model(ir.to_proto(model))
    run, feeds = session(model).run, feeds_of(dense)
    names = [value.name for value in dense.get_outputs()]
    for one, other in zip(run(names, feeds), dense.run(names, feeds), strict=True):
        assert np.array_equal(one, other)
    for number in {0, len(gates.blocks) // 2, len(gates.blocks) - 1}:
        if blocks[gates.blocks[number]].kind not in {"ffn", "attention", "cross_attention", "parallel"}:
            continue
        wanted = pruned(path, gates.blocks[number], feeds)
        chosen = feeds | {"run_mask": mask(gates, number)}
        for name, value in zip(wanted, run([*wanted], chosen), strict=True):
            assert apart(value, wanted[name]) < TOLERANCE, (gates.blocks[number], name)
        places = [boundary for boundary in gates.boundaries if boundary.gate <= number][-1:]
        for place in places:
            (stream,) = run([place.output], feeds)
            settled = [name for name in gates.settled if name in wanted]
            assert settled
            later = chosen | {"resume": np.array(place.gate), "stream": stream}
            for name, value in zip(settled, run(settled, later), strict=True):
                assert apart(value, wanted[name]) < TOLERANCE, (gates.blocks[number], place, name)


def fused_ops(path: Path) -> Counter[str]:
    """The ops of ONNX Runtime's own domain, and norms, in all graphs of a file."""
    nodes = load(path).graph.all_nodes()
    return Counter(n.op_type for n in nodes if n.domain == "com.microsoft" or "Normalization" in n.op_type)


@pytest.mark.parametrize(("family", "task", "file", "dialect"), CASES)
def test_what_runs_inside_a_gate_is_fused_as_outside(
    family: str, task: str, file: str, dialect: str, tmp_path: Path
) -> None:
    path = exported(family, task, file, dialect)
    dense = session(path, "ENABLE_ALL", tmp_path / "dense.onnx")
    wanted, feeds = fused_ops(tmp_path / "dense.onnx"), feeds_of(dense)
    names = [value.name for value in dense.get_outputs()]
    for resumable in (False, True):
        model = load(path)
        gated(model, resumable=resumable)
        run = session(model, "ENABLE_ALL", tmp_path / "gated.onnx").run
        assert not wanted - fused_ops(tmp_path / "gated.onnx")
        for one, other in zip(run(names, feeds), dense.run(names, feeds), strict=True):
            if resumable and family in CONVOLUTIONS_FIRST:  # in another layout
                assert apart(one, other) < TOLERANCE
            else:
                assert np.array_equal(one, other)
