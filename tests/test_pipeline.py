from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune import pipeline
from graphprune.errors import CheckError, GraphpruneError, RecipeError, SaveError, SelectionError
from graphprune.prunepass import Edit, Skipped
from graphprune.recipe import IrStep, Recipe, discover, from_options
from tests import tiny
from tools.zoo import entries

LAYERS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "model.onnx", layers=LAYERS)


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def inputs() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)


BLOCKS = st.sets(st.tuples(st.integers(0, LAYERS - 1), st.sampled_from(["attention", "ffn"])), min_size=1)


@given(blocks=BLOCKS, whole=st.sets(st.integers(0, LAYERS - 1), max_size=2))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_blocks_and_layers_go_as_in_numpy(
    source: Path, tmp_path: Path, blocks: set[tuple[int, str]], whole: set[int]
) -> None:
    wanted = {f"drop_{kind}": sorted(i for i, k in blocks if k == kind) for kind in ("attention", "ffn")}
    options = {name: layers for name, layers in wanted.items() if layers}
    options |= {"drop_layers": sorted(whole)} if whole else {}
    gone = blocks | {(i, kind) for i in whole for kind in ("attention", "ffn")}
    model = gp.load(source)
    if len(gone) == 2 * LAYERS:
        with pytest.raises(SelectionError, match="leave at least one"):
            gp.prune(model, **options)
        return
    pruned = gp.prune(model, **options)
    assert len(pruned.plan.removed) == len(gone)
    out = pruned.save(tmp_path / "out.onnx", overwrite=True)
    without = {i: " ".join(kind for j, kind in gone if j == i) for i in range(LAYERS)}
    expected = tiny.reference(inputs(), layers=LAYERS, without=without)
    np.testing.assert_allclose(outputs(out, inputs()), expected, atol=1e-5)


def test_sizes_shrink_by_what_was_promised(source: Path, tmp_path: Path) -> None:
    model = gp.load(source)
    pruned = gp.prune(model, drop_ffn=[1, 3], drop_layers="0")
    before, after = pruned.plan.before, pruned.after
    out = pruned.save(tmp_path / "out.onnx")
    parameters = sum(block.parameters for block in pruned.plan.removed)
    assert before.parameters - after.parameters == parameters
    assert before.bytes - after.bytes == 4 * parameters
    assert before.macs.at(batch=1, sequence=7) > after.macs.at(batch=1, sequence=7)
    written = onnx.load(out)
    assert (len(written.graph.node), len(written.graph.initializer)) == (after.nodes, after.initializers)
    assert before == gp.plan(gp.load(source), Recipe()).before  # nothing was changed in place
    assert source.stat().st_size - out.stat().st_size >= 4 * parameters


def test_planning_changes_nothing(source: Path) -> None:
    model = gp.load(source)
    text = ir.to_proto(model.files[0].model).SerializeToString()
    planned = gp.plan(model, from_options({"drop_ffn": "1", "drop_layers": "last:1"}))
    planned.apply()
    assert ir.to_proto(model.files[0].model).SerializeToString() == text
    assert all(isinstance(one.answer, Edit) for one in planned.outcomes)


def test_a_later_pass_sees_the_numbers_of_the_original(source: Path) -> None:
    planned = gp.plan(gp.load(source), from_options({"drop_layers": "0", "drop_ffn": "0-1"}))
    assert [
        (one.answer.target.split(".", 1)[1], isinstance(one.answer, Edit)) for one in planned.outcomes
    ] == [
        ("0", True),
        ("0.ffn", False),
        ("1.ffn", True),
    ]
    skipped = planned.outcomes[1].answer
    assert isinstance(skipped, Skipped) and skipped.reason == "removed by drop_layers"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("options", "without", "order"),
    [
        ({"reorder_layers": "1,0,2,3", "drop_ffn": [0]}, {0: "ffn"}, [1, 0, 2, 3]),
        ({"reorder_layers": "3,2,1,0", "drop_layers": "0"}, {}, [3, 2, 1]),
        ({"repeat_layers": "1", "drop_ffn": "1"}, {1: "ffn"}, [0, 1, 1, 2, 3]),
        ({"repeat_layers": "1", "drop_layers": "2", "drop_attention": "0"}, {0: "attention"}, [0, 1, 1, 3]),
    ],
)
def test_passes_meet_in_any_order(
    source: Path,
    tmp_path: Path,
    options: dict[str, object],
    without: dict[int, str],
    order: list[int],
    reverse: bool,
) -> None:
    options = dict(reversed(options.items())) if reverse else options
    out = gp.prune(gp.load(source), **options).save(tmp_path / "out.onnx")
    expected = tiny.reference(inputs(), layers=LAYERS, without=without, order=order)
    np.testing.assert_allclose(outputs(out, inputs()), expected, rtol=1e-4, atol=1e-4)


def test_macs_of_repeated_layers_count_each_run(source: Path) -> None:
    pruned = gp.prune(gp.load(source), repeat_layers="1")
    before, after = (sizes.macs.at(batch=1, sequence=5) for sizes in (pruned.plan.before, pruned.after))
    assert after * LAYERS == before * (LAYERS + 1)


def test_nothing_to_do_is_an_error(source: Path) -> None:
    with pytest.raises(SelectionError, match="nothing would change: no pass was asked for"):
        gp.prune(gp.load(source))
    with pytest.raises(SelectionError, match="layer 9 does not exist: the model has layers 0-3"):
        gp.prune(gp.load(source), drop_ffn=9)
    with pytest.raises(RecipeError, match="there is no pass 'drop_it'"):
        gp.prune(gp.load(source), drop_it=3)


def test_the_written_file_says_what_was_done(source: Path, tmp_path: Path) -> None:
    out = gp.prune(gp.load(source), drop_ffn=[1]).save(tmp_path / "out.onnx")
    notes = {one.key: one.value for one in onnx.load(out).metadata_props}
    recipe = json.loads(notes["graphprune.recipe"])
    assert recipe["passes"][0]["drop_ffn"]["blocks"] == [1]
    assert recipe["for"] == "plain"


def test_onnx_ir_passes_before_and_after(source: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        before=(IrStep("onnx_ir.passes.common.NameFixPass"),),
        after=(IrStep("onnx_ir.passes.common.IdentityEliminationPass"),),
    )
    pruned = gp.prune(gp.load(source), recipe=recipe, drop_ffn=[0])
    out = pruned.save(tmp_path / "out.onnx")
    expected = tiny.reference(inputs(), layers=LAYERS, without={0: "ffn"})
    np.testing.assert_allclose(outputs(out, inputs()), expected, atol=1e-5)


def test_a_pruning_pass_among_onnx_ir_passes(source: Path, tmp_path: Path) -> None:
    model = gp.load(source).files[0].model
    drop = discover()["drop_ffn"](blocks=(0, 2))  # type: ignore[call-arg]
    steps = ir.passes.Sequential(gp.IrPass(drop), ir.passes.common.IdentityEliminationPass())
    result = steps(model)
    assert result.modified
    ir.save(result.model, tmp_path / "out.onnx")
    expected = tiny.reference(inputs(), layers=LAYERS, without={0: "ffn", 2: "ffn"})
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", inputs()), expected, atol=1e-5)


def test_a_failed_check_writes_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise CheckError("it does not hold")

    monkeypatch.setattr("graphprune.check.check_model", refuse)
    with pytest.raises(CheckError):
        gp.prune(gp.load(source), drop_ffn=[1]).save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_never_overwritten(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(SaveError):
        gp.prune(gp.load(source), drop_ffn=[1]).save(source, overwrite=True)
    assert source.read_bytes() == before


def test_all_files_of_a_bundle_change_together(tmp_path: Path) -> None:
    entry = next(entry for entry in entries("t5") if entry.task.endswith("-with-past"))
    bundle = gp.load(entry.folder())
    pruned = gp.prune(bundle, drop_ffn="decoder.1", drop_layers="encoder.0")
    changed = {outcome.file for outcome in pruned.plan.edits if outcome.name == "drop_ffn"}
    assert changed == {file.name for file in bundle.files} - {"encoder_model.onnx"}
    out = pruned.save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["num_layers"] == json.loads((entry.folder() / "config.json").read_text())["num_layers"] - 1
    layers = {
        (stack.name, len(stack.layers))
        for file in gp.inspect(gp.load(out))
        for stack in file.architecture.stacks
    }
    assert layers == {("encoder", 2), ("decoder", 3)}


SELECTIONS = st.one_of(
    st.integers(-6, 6),
    st.text("0123456789-,.:all", max_size=8),
    st.sampled_from(["all", "last:1", "random:2", "encoder.1", "every:2", "all-but:0"]),
    st.lists(st.integers(-5, 5), max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(discover()) or ["none"]), SELECTIONS, min_size=1, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_recipe_gives_a_valid_model_or_an_error(
    source: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    try:
        out = gp.prune(gp.load(source), **options).save(tmp_path / "out.onnx", overwrite=True)
    except GraphpruneError as error:
        assert not isinstance(error, CheckError), error
        assert "\n" not in str(error)
    else:
        onnx.checker.check_model(out, full_check=True)


def test_prune_and_plan_agree(source: Path) -> None:
    given = from_options({"drop_attention": "2"})
    assert [one.answer.target for one in pipeline.plan(gp.load(source), given).outcomes] == [
        one.answer.target for one in pipeline.prune(gp.load(source), recipe=given).plan.outcomes
    ]
