from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphprune as gp
from graphprune.errors import EditError, GraphpruneError, RecipeError, RunError, SelectionError
from graphprune.gates import GATES, MASK, THRESHOLDS, read_gates
from graphprune.recover import recover
from graphprune.surgery import drop_block, remove_gates, sweep
from tests import tiny
from tests.graphs import attention, ffn, norm, proto
from tools.zoo import Entry, NotExportableError, families
from tools.zoo_feeds import Feeds, make_feeds

LAYERS = 3
TOLERANCE = 1e-5
IDS = [f"encoder.{layer}.{kind}" for layer in range(LAYERS) for kind in ("attention", "ffn")]
PRE = f"""
{norm("x", "n0")} {attention("n0", "a")} h = Add (x, a)
{norm("h", "n1")} {ffn("n1", "f")} y = Add (h, f)
"""


def session(model: ir.Model | Path, level: str = "ENABLE_ALL") -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def gated(path: Path, options: dict[str, object] | None = None) -> ir.Model:
    pruned = gp.prune(gp.load(path), loader="plain", insert_skips=options or {})
    return pruned.bundle.files[0].model


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, by the largest value."""
    assert one.shape == other.shape
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.abs(one - other).max(initial=0) / max(1.0, np.abs(other).max(initial=0)))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny.onnx", LAYERS)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 5, tiny.WIDTH)).astype(np.float32)


def without(ids: list[str]) -> dict[int, str]:
    left: dict[int, str] = {}
    for id in ids:
        _, layer, kind = id.split(".")
        left[int(layer)] = f"{left.get(int(layer), '')} {kind}"
    return left


# -- the mask ----------------------------------------------------------------------------------------


def test_the_smallest_model(tmp_path: Path) -> None:
    onnx.save(proto(PRE), tmp_path / "pre.onnx")
    model = gated(tmp_path / "pre.onnx")
    assert [node.op_type for node in model.graph] == ["Constant", "Gather", "Constant", "Gather", "If", "If"]
    first, second = (node for node in model.graph if node.op_type == "If")
    (outputs,) = {len(gate.outputs) for gate in (first, second)}
    assert outputs == 1 and second.attributes["else_branch"].as_graph()[0].inputs[0] is first.outputs[0]
    assert [node.op_type for node in first.attributes["else_branch"].as_graph()] == ["Identity"]
    assert not any(node.op_type == "If" for gate in (first, second) for node in _inside(gate))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def _inside(gate: ir.Node) -> list[ir.Node]:
    return [*gate.attributes["then_branch"].as_graph(), *gate.attributes["else_branch"].as_graph()]


def test_every_choice_of_blocks(small: Path, x: np.ndarray) -> None:
    model = gated(small)
    assert json.loads(model.metadata_props[GATES]) == IDS
    run = session(model).run
    for chosen in product((True, False), repeat=2 * LAYERS):
        off = [id for id, on in zip(IDS, chosen, strict=True) if not on]
        (got,) = run(None, {"x": x, MASK: np.array(chosen)})
        np.testing.assert_allclose(got, tiny.reference(x, LAYERS, without=without(off)), rtol=1e-4, atol=1e-5)


def test_nothing_said_is_the_dense_model(small: Path, x: np.ndarray) -> None:
    run = session(gated(small))
    (one,), (other,) = run.run(None, {"x": x}), session(small).run(None, {"x": x})
    assert np.array_equal(one, other)
    assert [value.name for value in run.get_inputs()] == ["x"]
    assert [value.name for value in run.get_overridable_initializers()] == [MASK]


@pytest.mark.parametrize(
    ("options", "off"),
    [
        ({"skip": "every:2"}, [2, 3]),
        ({"skip": "first:1"}, [0, 1]),
        ({"skip": "middle:1", "kinds": "ffn"}, [3]),
        ({"skip": "all-but:even:2"}, [2, 3]),
        ({"skip": "random:1:5"}, None),
        ({"skip": ["encoder.2.ffn", 0], "blocks": "all"}, [0, 1, 5]),
    ],
)
def test_blocks_that_do_not_run_by_default(
    options: dict[str, object], off: list[int] | None, small: Path, x: np.ndarray
) -> None:
    model = gated(small, options)
    ids = read_gates(model.metadata_props)
    default = model.graph.initializers[MASK].const_value
    assert default is not None
    skipped = [id for id, on in zip(ids, default.numpy(), strict=True) if not on]
    assert skipped == [IDS[place] for place in off] if off is not None else len(skipped) == 2
    (got,) = session(model).run(None, {"x": x})
    np.testing.assert_allclose(got, tiny.reference(x, LAYERS, without=without(skipped)), rtol=1e-4, atol=1e-5)
    (whole,) = session(model).run(None, {"x": x, MASK: np.ones(len(ids), np.bool_)})
    np.testing.assert_allclose(whole, tiny.reference(x, LAYERS), rtol=1e-4, atol=1e-5)


def test_gates_for_some_blocks(small: Path) -> None:
    assert read_gates(gated(small, {"blocks": "1-2", "kinds": "ffn"}).metadata_props) == (IDS[3], IDS[5])


def test_with_other_passes_in_one_recipe(small: Path, x: np.ndarray) -> None:
    bundle = gp.load(small)
    pruned = gp.prune(bundle, loader="plain", insert_skips="all", drop_ffn=[1])
    model = pruned.bundle.files[0].model
    ids = read_gates(model.metadata_props)
    assert ids == (*IDS[:3], *IDS[4:])
    mask = np.array([id != IDS[2] for id in ids])
    (got,) = session(model).run(None, {"x": x, MASK: mask})
    wanted = tiny.reference(x, LAYERS, without={1: "attention ffn"})
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_layers_in_another_order(small: Path, x: np.ndarray) -> None:
    pruned = gp.prune(gp.load(small), loader="plain", reorder_layers={"order": [2, 0, 1]}, insert_skips="all")
    model = pruned.bundle.files[0].model
    ids = read_gates(model.metadata_props)
    for off in IDS:
        (got,) = session(model).run(None, {"x": x, MASK: np.array([id != off for id in ids])})
        wanted = tiny.reference(x, LAYERS, without=without([off]), order=[2, 0, 1])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_saved_model_says_its_gates_and_keeps_them_when_it_is_written_again(
    small: Path, tmp_path: Path
) -> None:
    one = gp.prune(gp.load(small), loader="plain", insert_skips="all").save(tmp_path / "one.onnx")
    model = gp.load(one).files[0].model
    assert read_gates(model.metadata_props) == tuple(IDS)
    again = gp.load(one).save(tmp_path / "two.onnx")
    assert read_gates(gp.load(again).files[0].model.metadata_props) == tuple(IDS)


# -- rules -------------------------------------------------------------------------------------------


def cosines(one: np.ndarray, other: np.ndarray) -> float:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(-1) / lengths).mean())


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_the_cosine_of_streams(opset: int, tmp_path: Path, x: np.ndarray) -> None:
    model = tiny.model(LAYERS)
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "tiny.onnx")
    skips = gated(tmp_path / "tiny.onnx", {"kinds": "ffn", "policy": "cosine"})
    onnx.checker.check_model(ir.to_proto(skips), full_check=True)
    run = session(skips).run
    (dense,) = run(None, {"x": x})
    np.testing.assert_allclose(dense, tiny.reference(x, LAYERS), rtol=1e-4, atol=1e-5)
    nearness = cosines(x, tiny.reference(x, 1, without={0: "ffn"}))
    for threshold, off in ((nearness - 1e-3, {0: "ffn"}), (nearness + 1e-3, {})):
        thresholds = np.array([threshold, 9, 9], np.float32)
        (got,) = run(None, {"x": x, THRESHOLDS: thresholds})
        np.testing.assert_allclose(got, tiny.reference(x, LAYERS, without=off), rtol=1e-4, atol=1e-5)


def test_a_router(small: Path, tmp_path: Path, x: np.ndarray) -> None:
    weight = np.random.default_rng(1).standard_normal(tiny.WIDTH).astype(np.float32)
    values = {"encoder.0.ffn/router": weight, "encoder.0.ffn/router_bias": np.float32(0.25)}
    stream = tiny.reference(x, 1, without={0: "ffn"})
    score = float(stream.reshape(-1, tiny.WIDTH).mean(0) @ weight + 0.25)
    for threshold, off in ((score - 1e-3, {0: "ffn"}), (score + 1e-3, {})):
        np.savez(tmp_path / "v.npz", **values, **{"encoder.0.ffn/threshold": np.float32(threshold)})
        options = {"kinds": "ffn", "policy": "router", "values": str(tmp_path / "v.npz")}
        model = gated(small, options)
        assert read_gates(model.metadata_props) == ("encoder.0.ffn",)
        (got,) = session(model).run(None, {"x": x})
        np.testing.assert_allclose(got, tiny.reference(x, LAYERS, without=off), rtol=1e-4, atol=1e-5)
        (whole,) = session(model).run(None, {"x": x, THRESHOLDS: np.array([99], np.float32)})
        np.testing.assert_allclose(whole, tiny.reference(x, LAYERS), rtol=1e-4, atol=1e-5)


# -- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": "7"}, SelectionError, "7"),
        ({"skip": "encoder.7.ffn"}, SelectionError, r"encoder\.7"),
        ({"policy": "cosine", "threshold": float("nan")}, RecipeError, "threshold nan"),
        ({"policy": "cosine", "threshold": 3.0}, RecipeError, "threshold 3.0"),
        ({"threshold": 0.5}, RecipeError, "policies cosine and router"),
        ({"policy": "router"}, RecipeError, "needs values"),
        ({"policy": "router", "values": "nowhere.npz"}, RecipeError, r"nowhere\.npz"),
        ({"phase": "decode"}, SelectionError, "no decode of its own"),
        ({"policy": "cosine", "blocks": "encoder.0.attention"}, SelectionError, "no block before it"),
    ],
)
def test_bad_options(
    options: dict[str, object], error: type[GraphpruneError], message: str, small: Path
) -> None:
    with pytest.raises(error, match=message):
        gated(small, options)


def test_a_model_is_gated_once(small: Path, tmp_path: Path) -> None:
    one = gp.prune(gp.load(small), loader="plain", insert_skips="all").save(tmp_path / "one.onnx")
    for options in ({"insert_skips": "all"}, {"drop_ffn": 1}):
        with pytest.raises(EditError, match=r"one\.onnx has gates already"):
            gp.prune(gp.load(one), **options)


def test_an_input_of_that_name(small: Path, tmp_path: Path) -> None:
    model = tiny.model(LAYERS)
    model.graph.input.append(onnx.helper.make_tensor_value_info(MASK, onnx.TensorProto.BOOL, [2]))
    onnx.save(model, tmp_path / "taken.onnx")
    with pytest.raises(SelectionError, match=r"'run_mask' already"):
        gated(tmp_path / "taken.onnx")


def test_gates_are_taken_away_again(small: Path, x: np.ndarray) -> None:
    model = gated(small, {"kinds": "ffn", "policy": "cosine", "skip": 1})
    remove_gates(model)
    sweep(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert not [node for node in model.graph if node.op_type == "If"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [block.id for block in recover(model).blocks] == IDS
    (one,), (other,) = (session(m).run(None, {"x": x}) for m in (model, small))
    assert np.array_equal(one, other)


def test_a_mask_of_the_wrong_length(small: Path, tmp_path: Path, x: np.ndarray) -> None:
    one = gp.prune(gp.load(small), loader="plain", insert_skips="all").save(tmp_path / "one.onnx")
    source = gp.Source({"x": x, MASK: np.ones(4, np.bool_)}, batch=2)
    with pytest.raises(RunError, match=r"run_mask takes \[6\] values, and \[4\] were given"):
        gp.run(one, source)
    given = gp.Source({"x": x, MASK: np.array([True, False] * LAYERS)}, batch=2)
    wanted = tiny.reference(x, LAYERS, without=dict.fromkeys(range(LAYERS), "ffn"))
    np.testing.assert_allclose(gp.run(one, given)[0].outputs["y"], wanted, rtol=1e-4, atol=1e-5)


def test_settings_name_blocks_that_do_not_run(small: Path, tmp_path: Path, x: np.ndarray) -> None:
    one = gp.prune(gp.load(small), loader="plain", insert_skips="all").save(tmp_path / "one.onnx")
    settings = gp.Settings(skip=("1", "encoder.2.ffn"))
    (call,) = gp.run(one, gp.Source({"x": x}, batch=2), settings=settings)
    wanted = tiny.reference(x, LAYERS, without={1: "attention ffn", 2: "ffn"})
    np.testing.assert_allclose(call.outputs["y"], wanted, rtol=1e-4, atol=1e-5)


# -- real exports ------------------------------------------------------------------------------------

FAST = [
    ("bert", "feature-extraction", "model", "exported"),
    ("gpt2", "text-generation-with-past", "model", "exported"),
    ("t5", "text2text-generation-with-past", "decoder_model_merged", "exported"),
]
DECODERS = (
    "llama", "gpt_neox", "falcon", "phi", "gptj", "bloom", "opt", "gemma2", "mpt", "gpt_bigcode", "qwen3",
)  # fmt: skip
SLOW = [
    *((family, "text-generation-with-past", "model", "exported") for family in DECODERS),
    *(("gpt2", "text-generation-with-past", "model", one) for one in ("fused", "int8", "qdq", "ort-all")),
    ("bart", "text2text-generation-with-past", "decoder_model_merged", "exported"),
    ("bart", "text2text-generation-with-past", "decoder_with_past_model", "exported"),
    ("vit", "feature-extraction", "model", "exported"),
    ("bert", "feature-extraction", "model", "fused"),
]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.matrix) for case in SLOW)]


def exported(family: str, task: str, file: str, dialect: str) -> Path:
    entry = Entry(families()[family], "optimum", task)
    try:
        return entry.dialect(next(path for path in entry.files() if path.stem == file), dialect)
    except (NotExportableError, StopIteration) as refusal:
        pytest.skip(f"not made: {str(refusal)[:200]}")


def feeds_of(dense: Any, past: int) -> Feeds:
    feeds = make_feeds(dense, past=past)
    if "use_cache_branch" in feeds:
        feeds["use_cache_branch"] = np.array([past > 0])
    return feeds


def dropped(path: Path, id: str) -> ir.Model:
    """The model without one block; the keys and values of it are put out all the same."""
    model = gp.load(path).files[0].model
    architecture = recover(model)
    for block in architecture.blocks:  # both copies in a merged decoder
        if block.id == id:
            drop_block(block, architecture, keep_caches=True)
    sweep(model)
    return model


@pytest.mark.parametrize(("family", "task", "file", "dialect"), CASES)
def test_every_gate_of_real_models(family: str, task: str, file: str, dialect: str) -> None:
    """All run: the dense model; one does not: the model without it, caches in shape and order."""
    path = exported(family, task, file, dialect)
    dense, model = session(path), gated(path)
    ids = read_gates(model.metadata_props)
    assert set(ids) == {block.id for block in recover(gp.load(path).files[0].model).blocks if block.droppable}
    run = session(model)
    names = [value.name for value in dense.get_outputs()]
    assert [value.name for value in run.get_outputs()] == names
    cached = any("past" in value.name for value in dense.get_inputs())
    for feeds in [feeds_of(dense, past) for past in ((0, 3) if cached else (0,))]:
        for one, other in zip(run.run(names, feeds), dense.run(names, feeds), strict=True):
            assert np.array_equal(one, other)
        for id in {ids[0], ids[len(ids) // 2], ids[-1]}:
            alone = session(dropped(path, id))
            wanted = alone.run(names, {value.name: feeds[value.name] for value in alone.get_inputs()})
            mask = np.array([one != id for one in ids])
            for one, other in zip(run.run(names, feeds | {MASK: mask}), wanted, strict=True):
                assert apart(one, other) < TOLERANCE, id


@pytest.mark.parametrize("family", ["gpt2", *(pytest.param(f, marks=pytest.mark.matrix) for f in DECODERS)])
def test_caches_go_on_under_another_mask(family: str) -> None:
    """A cache made with some blocks is continued with all, and the other way round.

    The oracle: the model from which the blocks were dropped makes the one cache, the dense model the other.
    """
    path = exported(family, "text-generation-with-past", "model", "exported")
    dense, model = session(path), gated(path)
    ids, run = read_gates(model.metadata_props), session(model).run
    alone = session(dropped(path, ids[1]))
    some = {MASK: np.array([one != ids[1] for one in ids])}
    first, step = feeds_of(dense, 0), feeds_of(dense, first_length(dense))
    for one, other, begins, ends in ((alone, dense, some, {}), (dense, alone, {}, some)):
        wanted = _continued(
            lambda f, s=one: s.run(None, f), lambda f, s=other: s.run(None, f), first, step, dense
        )
        got = _continued(
            lambda f, m=begins: run(None, f | m), lambda f, m=ends: run(None, f | m), first, step, dense
        )
        for a, b in zip(got, wanted, strict=True):
            assert apart(a, b) < TOLERANCE


def first_length(dense: Any) -> int:
    return int(next(iter(feeds_of(dense, 0).values())).shape[1])


def _continued(begin: Any, end: Any, first: Feeds, step: Feeds, dense: Any) -> list[np.ndarray]:
    """A prompt by one, then further tokens on its cache by the other."""
    names = [value.name for value in dense.get_outputs()]
    made = dict(zip(names, begin(first), strict=True))
    pasts = [name for name in step if "past" in name]
    presents = [name for name in names if "present" in name]
    cache = {past: made[present] for past, present in zip(pasts, presents, strict=True)}
    values: list[np.ndarray] = end(step | cache)
    return values


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_one_phase_alone(phase: str) -> None:
    path = exported("gpt2", "text-generation-with-past", "model", "exported")
    dense = session(path)
    model = gated(path, {"skip": "decoder.1.ffn", "phase": phase})
    run, alone = session(model), session(dropped(path, "decoder.1.ffn"))
    single = feeds_of(dense, 3)
    single = {n: a[:, -1:] if n in ("input_ids", "position_ids") else a for n, a in single.items()}
    if "attention_mask" in single:
        single["attention_mask"] = np.ones((len(single["input_ids"]), 4), np.int64)
    for feeds, decodes in ((feeds_of(dense, 0), False), (single, True)):
        wanted = alone if decodes == (phase == "decode") else dense
        for one, other in zip(run.run(None, feeds), wanted.run(None, feeds), strict=True):
            assert apart(one, other) < TOLERANCE


@pytest.mark.matrix
def test_one_phase_of_a_bundle(tmp_path: Path) -> None:
    """What takes no cache never decodes; both branches of the merged decoder share the mask."""
    folder = exported("t5", "text2text-generation-with-past", "encoder_model", "exported").parent
    options = {"blocks": "decoder", "skip": "decoder.1.ffn", "phase": "decode"}
    pruned = gp.prune(gp.load(folder), insert_skips=options)
    gates = {file.name: read_gates(file.model.metadata_props) for file in pruned.bundle.files}
    assert gates.pop("encoder_model.onnx") == gates.pop("decoder_model.onnx") == ()
    assert len(set(gates.values())) == 1 and len(next(iter(gates.values()))) == 9
    out = pruned.save(tmp_path / "out")
    assert gp.generate(out, [[3, 4, 5]], max_new_tokens=4).completions[0].tokens


@pytest.mark.matrix
def test_optimum_loads_it(tmp_path: Path) -> None:
    runtime = pytest.importorskip("optimum.onnxruntime")
    torch = pytest.importorskip("torch")
    path = exported("gpt2", "text-generation-with-past", "model", "exported")
    out = gp.prune(gp.load(path.parent), insert_skips="all").save(tmp_path / "out")
    ids = torch.tensor([[3, 4, 5, 6]])
    made = [
        runtime.ORTModelForCausalLM.from_pretrained(one).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        for one in (path.parent, out)
    ]
    assert torch.equal(*made)
