"""Exits: who leaves where is what numpy says of the streams, and each sample gets what it gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from scipy.special import expit, softmax

import graphprune as gp
from graphprune.errors import EditError, RecipeError, SelectionError
from graphprune.inputs import make_inputs
from graphprune.passes.drop_layers import DropLayers
from graphprune.passes.insert_exits import InsertExits
from graphprune.recover import recover
from graphprune.surgery import gate_blocks
from tests.graphs import ffn, written
from tests.passes.written import answers, pruned
from tools.zoo import NotExportableError, entries

LAYERS, WIDTH, CLASSES = 3, 8, 3
INPUTS = "float[batch, sequence, 8] x, int64[batch, sequence] attention_mask"
CONSTANTS = {"axis": np.array([1], np.int64), "minus": np.float32(-1e4), "one": np.float32(1)}
Arrays = dict[str, np.ndarray]


def layer(stream: str, name: str) -> str:
    """Attention that does not look at padding, and an FFN."""
    return f"""
    {name}_n = LayerNormalization <axis = -1> ({stream}, {name}_g_8, {name}_b_8)
    {name}_q = MatMul ({name}_n, {name}_q_8x8)
    {name}_k = MatMul ({name}_n, {name}_k_8x8)
    {name}_v = MatMul ({name}_n, {name}_v_8x8)
    {name}_t = Transpose <perm = [0, 2, 1]> ({name}_k)
    {name}_raw = MatMul ({name}_q, {name}_t)
    {name}_scores = Add ({name}_raw, bias)
    {name}_p = Softmax <axis = -1> ({name}_scores)
    {name}_c = MatMul ({name}_p, {name}_v)
    {name}_o = MatMul ({name}_c, {name}_o_8x8)
    {name}_h = Add ({stream}, {name}_o)
    {ffn(f"{name}_h", f"{name}_f")}
    {name} = Add ({name}_h, {name}_f)
    """


MASK = """
    seen = Unsqueeze (attention_mask, axis)
    real = Cast <to = 1> (seen)
    off = Sub (one, real)
    bias = Mul (off, minus)
"""
BODY = f"{MASK} {layer('x', 's1')} {layer('s1', 's2')} {layer('s2', 's3')}"
TAIL = "f = LayerNormalization <axis = -1> (s3, g_8, b_8) logits = MatMul (f, out_8x5)"
HEADED = f"{BODY} {TAIL}"
LOGITS = "float[batch, sequence, 5] logits"


def write(path: Path, kind: str, threshold: float, **more: Any) -> str:
    """Random heads for exits after 1 and 2 of 3 layers; `more` are further arrays for each of them."""
    random = np.random.default_rng(3)
    arrays: Arrays = {}
    for k in range(1, LAYERS + 1):
        if k < LAYERS:
            arrays[f"{k}/threshold"] = np.float32(threshold)
            arrays |= {f"{k}/{name}": np.asarray(array) for name, array in more.items()}
        shapes = {
            "classifier": ("weight", "bias", CLASSES),
            "translator": ("translator", "translator_bias", WIDTH),
        }
        if kind in shapes and (kind == "classifier" or k < LAYERS):
            weight, bias, size = shapes[kind]
            arrays[f"{k}/{weight}"] = random.normal(0, 1, (WIDTH, size)).astype(np.float32)
            arrays[f"{k}/{bias}"] = random.normal(0, 0.3, size).astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def feed(batch: int = 32) -> Arrays:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 7, batch)
    mask = (np.arange(6) < lengths[:, None]).astype(np.int64)
    return {"x": random.normal(0, 1, (batch, 6, WIDTH)).astype(np.float32), "attention_mask": mask}


def run(model: ir.Model, feeds: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def at(*thresholds: float) -> Arrays:
    return {"exit_thresholds": np.array(thresholds, np.float32)}


def streams(feeds: Arrays) -> list[np.ndarray]:
    found = run(written(BODY, inputs=INPUTS, outputs="s1, s2, s3", constants=CONSTANTS), feeds)
    return [feeds["x"], *(found[f"s{k}"] for k in (1, 2, 3))]


def mean(stream: np.ndarray, mask: np.ndarray) -> np.ndarray:
    total: np.ndarray = (stream * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]
    return total


def sure(criterion: str, scores: list[np.ndarray], pooled: list[np.ndarray], rule: np.ndarray) -> np.ndarray:
    """How sure exits are: [exits, samples]."""
    if criterion == "saturation":
        norms = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in pooled]
        return np.stack([(norms[k] * norms[k - 1]).sum(1) for k in range(1, LAYERS)])
    if criterion == "patience":
        said = [s.argmax(1) for s in scores]
        return np.stack([np.ones(len(said[0])), 1.0 + (said[0] == said[1])])
    found = []
    for one in scores[: LAYERS - 1]:
        shares = softmax(one / 1.5, axis=1)
        top = np.sort(shares, axis=1)
        margin = top[:, -1] - top[:, -2]
        entropy = 1 + (shares * np.log(shares)).sum(1) / np.log(shares.shape[1])
        learned = expit(np.stack([top[:, -1], margin, entropy], 1) @ rule[:3] + rule[3])
        found.append(
            {"confidence": top[:, -1], "margin": margin, "entropy": entropy, "rule": learned}[criterion]
        )
    return np.stack(found)


@pytest.mark.parametrize("mode", ["per-sample", "all"])
@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy", "rule", "saturation", "patience"])
def test_classifiers_leave_as_numpy_says(criterion: str, mode: str, tmp_path: Path) -> None:
    rule = np.array([2.0, -1.0, 1.5, -1.0], np.float32)
    path = write(tmp_path / "h.npz", "classifier", 0.5, temperature=np.float32(1.5), rule=rule)
    model = pruned(
        BODY.replace("s3 =", "y ="), InsertExits("1,2", path, criterion, mode),  # type: ignore[arg-type]
        inputs=INPUTS, constants=CONSTANTS,
    )  # fmt: skip
    feeds = feed()
    values = np.load(path)
    pooled = [mean(s, feeds["attention_mask"]) for s in streams(feeds)]
    scores = [pooled[k] @ values[f"{k}/weight"] + values[f"{k}/bias"] for k in (1, 2, 3)]
    how = sure(criterion, scores, pooled, rule)
    together = how.min(1, keepdims=True) + np.zeros_like(how) if mode == "all" else how
    mixed = np.median(how, axis=1) if mode == "per-sample" else (2.0, float(how[1].min()) - 1e-3)
    mixed = (2.0, 1.5) if criterion == "patience" else tuple(mixed)
    for thresholds in (mixed, (3.0, 3.0), (-1.0, -1.0), (3.0, -1.0)):
        leaves = together >= np.array(thresholds)[:, None]
        depth = np.where(leaves[0], 1, np.where(leaves[1], 2, 3))
        found = run(model, feeds | at(*thresholds))
        np.testing.assert_array_equal(found["exit_layer"], depth)
        np.testing.assert_allclose(found["logits"], np.stack(scores)[depth - 1, np.arange(32)], atol=2e-5)
    if mode == "per-sample":
        assert len(set(run(model, feeds | at(*mixed))["exit_layer"])) > 1


@pytest.mark.parametrize("mode", ["per-sample", "all"])
@pytest.mark.parametrize("kind", ["own", "translator"])
@pytest.mark.parametrize("criterion", ["confidence", "saturation", "patience"])
def test_the_own_head_reads_the_stream_that_was_left_with(
    kind: str, criterion: str, mode: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "h.npz", kind, 0.5)
    one = InsertExits("1,2", path, criterion, mode)  # type: ignore[arg-type]
    model = pruned(HEADED, one, inputs=INPUTS, outputs=LOGITS, constants=CONSTANTS)
    feeds, values = feed(), np.load(path)
    ends = streams(feeds)
    if kind == "translator":
        mapped = (ends[k] @ values[f"{k}/translator"] + values[f"{k}/translator_bias"] for k in (1, 2))
        ends = [ends[0], *mapped, ends[3]]
    tail = written(TAIL, inputs="float[batch, sequence, 8] s3", outputs=LOGITS)
    dense = written(HEADED, inputs=INPUTS, outputs=LOGITS, constants=CONSTANTS)
    for name, value in tail.graph.initializers.items():
        value.const_value = dense.graph.initializers[name].const_value
    logits = [run(tail, {"s3": end})["logits"] for end in ends]
    for thresholds in ((0.5, 0.5), (3.0, 3.0), (-1.0, -1.0), (3.0, -1.0), (3.0, 0.3)):
        found = run(model, feeds | at(*thresholds))
        depth = found["exit_layer"]
        expected = np.stack(logits)[depth, np.arange(32)]
        np.testing.assert_allclose(found["logits"], expected, atol=2e-5)
    # Told their sizes, ONNX Runtime fuses a sum with the norm of the next layer, but not past an exit.
    never, whole = run(model, feeds | at(3, 3))["logits"], run(dense, feeds)["logits"]
    np.testing.assert_allclose(never, whole, atol=1e-6)
    np.testing.assert_array_equal(never.argmax(-1), whole.argmax(-1))
    assert set(run(model, feeds | at(-1, -1))["exit_layer"]) == {1}


def test_a_threshold_that_is_no_number_keeps_samples_in(tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "classifier", 0.0)
    model = pruned(BODY.replace("s3 =", "y ="), InsertExits("1,2", path), inputs=INPUTS, constants=CONSTANTS)
    assert set(run(model, feed() | at(np.nan, np.nan))["exit_layer"]) == {3}
    assert set(run(model, feed())["exit_layer"]) == {1}


def test_ifs_stand_in_a_row_and_weights_one_subgraph_deep(tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "classifier", 0.5)
    model = pruned(BODY.replace("s3 =", "y ="), InsertExits("1,2", path), inputs=INPUTS, constants=CONSTANTS)
    ifs = [node for node in model.graph if node.op_type == "If"]
    assert len(ifs) == 2
    for node in ifs:
        inner = [one for name in ("then_branch", "else_branch") for one in node.attributes[name].as_graph()]
        nested = [one for one in inner if one.op_type == "If"]
        read = [v for one in nested for g in one.attributes.values() for n in g.as_graph() for v in n.inputs]
        constants = [value.const_value for value in read if value is not None]
        assert all(one is None or one.size <= WIDTH for one in constants)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 6 + 2 + 2  # one layer, and the first head: pooling and scores


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "0"}, "no exit can be after '0'"),
        ({"at": "3"}, "say a number from 1 to 2"),
        ({"at": "encoder.1.ffn"}, "is inside a layer"),
        ({"at": "1", "criterion": "mood"}, "none of confidence"),
        ({"at": "1", "batch_mode": "half"}, "none of all, per-sample"),
        ({"at": "1", "stack": "nose"}, "nose"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "own", 0.5)
    one = InsertExits(heads=path, **options)
    with pytest.raises(SelectionError, match=says):
        answers(BODY, one, inputs=INPUTS, outputs="s3", constants=CONSTANTS)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "no '1/threshold'"),
        ({"1/threshold": np.float32(np.nan)}, "not finite"),
        ({"1/threshold": np.float32(2.5)}, r"from -1 \(always\) to 2 \(never\)"),
        ({"1/threshold": np.float32(-1.5)}, "is -1.5"),
        ({"1/threshold": np.float32(1), "1/temperature": np.float32(0)}, "must be over 0"),
        ({"1/threshold": np.float32(1), "1/pool": np.array("middle")}, "one of mean, first, last"),
        ({"1/threshold": np.float32(1), "1/pool": np.float32(1)}, "is no text"),
        ({"1/threshold": np.float32(1), "1/weight": np.ones((8, 2), np.float32)}, "'1/bias' is missing"),
        (
            {"1/threshold": np.float32(1), "1/weight": np.ones((8, 2), "f"), "1/bias": np.ones(2, "f")},
            "'3/weight' is missing",
        ),
    ],
)  # fmt: skip
def test_bad_heads(arrays: Arrays, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "h.npz", other=np.zeros(1), **arrays)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=says):
        answers(
            BODY, InsertExits("1", str(tmp_path / "h.npz")), inputs=INPUTS, outputs="s3", constants=CONSTANTS
        )


def test_heads_of_two_kinds(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "h.npz", "classifier", 0.5))
    arrays = {name: array for name, array in np.load(path).items() if name not in {"2/weight", "2/bias"}}
    np.savez(path, **arrays)
    with pytest.raises(RecipeError, match="after layer 2 has another kind of head"):
        answers(BODY, InsertExits("1,2", str(path)), inputs=INPUTS, outputs="s3", constants=CONSTANTS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"inputs": INPUTS.replace("batch", "4")}, "its first is 4"),
        ({"opset": 10}, "exits need opset 11"),
    ],
)
def test_declined(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "own", 0.5)
    given = {"inputs": INPUTS, "outputs": "s3", "constants": CONSTANTS} | options
    found = answers(BODY if "opset" not in options else BODY.replace("LayerNormalization <axis = -1>", "Sum"),
                    InsertExits("1", path, "saturation"), **given)  # fmt: skip
    assert says in str(found)


def test_inner_values_that_are_put_out_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "own", 0.5)
    with pytest.raises(EditError, match=r"needs what node '.*' \(.*\) behind an exit computes"):
        pruned(
            BODY, InsertExits("1", path, "saturation"), inputs=INPUTS, outputs="s2, s3", constants=CONSTANTS
        )


def test_no_scores_to_be_sure_by(tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "own", 0.5)
    with pytest.raises(EditError, match="no scores"):
        pruned(BODY, InsertExits("1", path), inputs=INPUTS, outputs="s3", constants=CONSTANTS)


FAST = {"bert-optimum", "llama-optimum"}
FAMILIES = (
    "bert", "llama", "albert", "distilbert", "roberta", "electra", "mpnet", "esm", "roformer", "modernbert",
    "vit", "deit", "beit", "dpt", "wav2vec2_conformer", "gpt2", "gptj", "gpt_neo", "gpt_neox", "gemma",
    "gemma2", "gemma3", "qwen2", "qwen3", "phi3", "bloom", "falcon", "cohere", "mistral", "codegen",
    "stablelm", "granite",
)  # fmt: skip


def cases() -> Any:
    known = {entry.family.name for entry in entries()}
    for entry in entries(*(name for name in FAMILIES if name in known)):
        if entry.main or entry.task.endswith("with-past"):
            fast = f"{entry.family.name}-{entry.exporter}" in FAST and entry.main
            for mode in ("per-sample", "all"):
                marks = () if fast else (pytest.mark.matrix,)
                yield pytest.param(entry, mode, marks=marks, id=f"{entry.id}-{mode}")


@pytest.mark.parametrize(("entry", "mode"), list(cases()))
def test_every_place_of_a_family(entry: Any, mode: str, tmp_path: Path) -> None:
    """Never is dense; always is the static prune, with the keys and values of layers that did not run."""
    try:
        bundle = gp.load(entry.folder())
    except NotExportableError as error:
        pytest.skip(str(error))
    if len(bundle.files) > 1:
        pytest.skip("several files")
    source = bundle.files[0].model
    stack = recover(source).stacks[0]
    count = len(stack.layers)
    np.savez(tmp_path / "h.npz", **{f"{k}/threshold": np.float32(0.9) for k in range(1, count)})
    places = ",".join(map(str, range(1, count)))
    options = {"at": places, "heads": str(tmp_path / "h.npz"), "batch_mode": mode, "criterion": "saturation"}
    model = gp.prune(bundle, insert_exits=options).bundle.files[0].model
    feeds = make_inputs(source, batch=5, sequence=7, past=3, seed=1)
    dense = run(source, feeds)
    _same(run(model, feeds | at(*[2] * (count - 1))), dense, exact=entry.exporter == "optimum")
    static = gp.prune(bundle, drop_layers={"layers": list(range(1, count))}).bundle.files[0].model
    given = {value.name for value in static.graph.inputs}
    always = run(model, feeds | at(*[-1] * (count - 1)))
    _same(always, run(static, {name: array for name, array in feeds.items() if name in given}))
    if any(block.caches for block in stack.blocks):
        _same(always, _gated(source, feeds))
    if mode == "per-sample":
        _alone(model, feeds, count, {v.name: v.shape for v in source.graph.inputs})


def _gated(source: ir.Model, feeds: Arrays) -> Arrays:
    """Outputs, keys and values without all layers but the first, by gates."""
    architecture = recover(source.clone())
    first = {block.id for block in architecture.stacks[0].layers[0].blocks}
    gates = gate_blocks(architecture)
    return run(architecture.model, feeds | {"run_mask": np.array([block in first for block in gates.blocks])})


def _alone(model: ir.Model, feeds: Arrays, count: int, shapes: dict[Any, Any]) -> None:
    thresholds = at(*[0.8] * (count - 1))
    together = run(model, feeds | thresholds)
    for row in range(5):
        some = {n: a if isinstance(shapes[n][0], int) else a[row : row + 1] for n, a in feeds.items()}
        alone = run(model, some | thresholds)
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][row], atol=1e-5)


def _same(found: Arrays, expected: Arrays, *, exact: bool = False) -> None:
    assert {*expected} & {*found}
    for name in found.keys() & expected.keys():
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=0 if exact else 5e-6)


def test_dropping_and_exits_in_one_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "h.npz", "own", 0.5)
    passes = (InsertExits("1,2", path, "saturation"), DropLayers("1"))
    model = pruned(BODY.replace("s3 =", "y ="), *passes, inputs=INPUTS, constants=CONSTANTS)
    dense = pruned(BODY.replace("s3 =", "y ="), DropLayers("1"), inputs=INPUTS, constants=CONSTANTS)
    found = run(model, feed() | at(2, 2))
    np.testing.assert_array_equal(found["y"], run(dense, feed())["y"])
    assert run(model, feed() | at(-1, 2))["exit_layer"].max() == 1
