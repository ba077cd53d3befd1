"""Healing a choice of blocks: what it says of the healed model holds for the model that passes write."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import graphprune as gp
from graphprune.data.dataset import Data, read_data
from graphprune.errors import GraphpruneError, RunError, SelectionError
from graphprune.healing import calibration, spool
from graphprune.healing.calibration import Calibration, open_calibration
from graphprune.healing.choice import Action
from graphprune.healing.healed import Healing
from graphprune.healing.repairs import Repairs
from graphprune.inputs import make_inputs
from graphprune.session import open_sessions
from graphprune.settings import Settings
from tests import tiny
from tools.zoo import Entry, families

ONE = Settings(threads=1)
ROWS, TOKENS = 24, 9
# Those that come with a variant of what a block may be: norms before, after and around, rms norms, one join
# for attention and FFN, shared weights, two-dimensional streams, gated FFNs, tied embeddings.
FAMILIES = {
    "feature-extraction": (
        "bert",
        "roberta",
        "distilbert",
        "albert",
        "mpnet",
        "modernbert",
        "deberta_v2",
        "vit",
    ),
    "text-generation-with-past": ("gpt2", "llama", "gemma2", "gptj", "gpt_neox", "opt", "phi"),
}


def random_data(path: Path, folder: Path, rows: int = ROWS, tokens: int = TOKENS) -> Data:
    """Random inputs for a model, some of them padded."""
    arrays = make_inputs(path / "model.onnx" if path.is_dir() else path, batch=rows, sequence=tokens)
    arrays = {name: array for name, array in arrays.items() if not name.startswith(("past", "use_cache"))}
    mask = arrays.get("attention_mask")
    if mask is not None and "position_ids" not in arrays:
        lengths = np.random.default_rng(0).integers(3, tokens + 1, (rows, 1))
        arrays["attention_mask"] = (np.arange(tokens) < lengths).astype(mask.dtype)
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return read_data(folder / "data.npz", metric="cosine")


def written(path: Path, healing: Healing, folder: Path) -> Path:
    np.savez(folder / "values.npz", **healing.values())  # type: ignore[arg-type]
    recipe = healing.recipe(str(folder / "values.npz"))
    out = folder / ("out" if path.is_dir() else "out.onnx")
    gp.prune(gp.load(path), recipe=recipe).save(out)
    return out


def outputs(path: Path, opened: Calibration) -> list[dict[str, NDArray[np.float32]]]:
    (session,) = open_sessions(path, ONE)
    lots = [lot for lot in opened.lots if lot.held]
    names = [name for name in opened.tail.names if name in session.outputs]
    return [{name: session.run(lot.feeds)[name] for name in names} for lot in lots]


def some_of_each(opened: Calibration) -> dict[str, Action]:
    """A choice with every action, and a block that is kept at both ends where there are enough."""
    actions: list[Action] = ["drop", "linear", "drop", "drop", "patch", "mean", "drop"]
    first = 1 if len(opened.blocks) > 2 else 0
    return dict(zip(opened.blocks[first:-1] or opened.blocks, actions, strict=False))


EVERY = pytest.mark.parametrize(
    ("name", "task"), [(name, task) for task, names in FAMILIES.items() for name in names], ids=str
)


@EVERY
def test_the_written_model_is_the_one_that_was_healed(name: str, task: str, tmp_path: Path) -> None:
    path = Entry(families()[name], "optimum", task).folder()
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5)
    choice = some_of_each(opened)
    assert set(choice.values()) >= {"drop", "linear"}
    require_written(path, opened, choice, tmp_path)


@EVERY
def test_ffns_of_some_of_their_neurons_are_written_as_they_were_healed(
    name: str, task: str, tmp_path: Path
) -> None:
    path = Entry(families()[name], "optimum", task).folder()
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5)
    able = [block for block, actions in opened.actions.items() if "quarter" in actions]
    if not able:
        pytest.skip("its FFNs cannot be made narrower: it says why when asked to")
    choice: dict[str, Action] = dict.fromkeys(able, "half") | {able[-1]: "quarter"}
    before = opened.blocks.index(able[-1]) - 1
    require_written(path, opened, choice | {opened.blocks[before]: "drop"}, tmp_path)


def require_written(path: Path, opened: Calibration, choice: Mapping[str, Action], folder: Path) -> None:
    """The written model has to put out what healing says."""
    healing = opened.heal(choice)
    expected = list(opened.outputs(choice))
    found = outputs(written(path, healing, folder), opened)
    for lot, one, other in zip((x for x in opened.lots if x.held), found, expected, strict=True):
        for key, array in one.items():
            mask = lot.feeds.get("attention_mask")
            rows = mask.astype(bool) if mask is not None and array.shape[:2] == mask.shape else ...
            scale = np.abs(other[key][rows]).max()
            np.testing.assert_allclose(array[rows], other[key][rows], atol=2e-4 * scale, rtol=1e-3)


def test_the_error_is_that_of_the_last_stream_on_rows_that_were_not_fitted_to(tmp_path: Path) -> None:
    path = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5)
    healing = opened.heal({opened.blocks[0]: "drop", opened.blocks[1]: "drop"})
    masks = [lot.feeds["attention_mask"].astype(bool) for lot in opened.lots if lot.held]

    def rows(folder: Path) -> NDArray[np.float32]:
        found = zip(outputs(folder, opened), masks, strict=True)
        return np.concatenate([one["last_hidden_state"][mask] for one, mask in found])

    dense, healed = rows(path), rows(written(path, healing, tmp_path))
    expected = ((healed - dense) ** 2).sum() / ((dense - dense.mean(0)) ** 2).sum()
    assert healing.error == pytest.approx(expected, rel=1e-3)
    assert healing.steps[-1].after == pytest.approx(expected, rel=1e-3)
    assert [step.block for step in healing.steps] == list(opened.blocks)
    first = healing.steps[0]
    assert (first.action, first.repair) == ("drop", "norm")
    assert first.after < first.before


def test_a_norm_is_refitted_as_by_a_line_for_each_channel(tmp_path: Path) -> None:
    path = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    tried = Repairs(output=False, check=False)
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5, repairs=tried)
    block = opened.blocks[0]
    values = opened.heal({block: "drop"}).values()
    fitted = [lot for lot in opened.lots if not lot.held]
    before, after = (
        np.concatenate([lot.rows(opened.dense.get((1, place, lot.number))) for lot in fitted])
        for place in (0, 1)
    )
    centred = before.astype(np.float64) - before.mean(1, keepdims=True)
    normalized = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-12)
    for channel in range(0, before.shape[1], 7):
        slope, shift = np.polyfit(normalized[:, channel], after[:, channel].astype(np.float64), 1)
        assert values[f"{block}/scale"][channel] == pytest.approx(slope, rel=1e-2, abs=1e-4)
        assert values[f"{block}/shift"][channel] == pytest.approx(shift, rel=1e-2, abs=1e-4)


@pytest.fixture
def opened(tmp_path: Path) -> Calibration:
    path = tiny.save(tmp_path / "tiny.onnx")
    return open_calibration(path, random_data(path, tmp_path, rows=64), settings=ONE, batch=16)


def test_nothing_chosen_is_the_dense_model(opened: Calibration) -> None:
    healing = opened.heal({})
    assert (healing.error, healing.steps, healing.values()) == (0, (), {})
    assert healing.score == healing.kept == pytest.approx(1)
    for found, expected in zip(opened.outputs({}), outputs(opened.path, opened), strict=True):
        np.testing.assert_allclose(found["y"], expected["y"], atol=1e-5)


def test_a_mean_is_the_mean_of_what_the_branch_added(opened: Calibration) -> None:
    block = "decoder.1.ffn" if "decoder.1.ffn" in opened.blocks else "encoder.1.ffn"
    place = [piece.id for piece in opened.pieces].index(block)
    fitted = [lot for lot in opened.lots if not lot.held]
    added = np.concatenate(
        [
            lot.rows(opened.dense.get((1, place + 1, lot.number)) - opened.dense.get((1, place, lot.number)))
            for lot in fitted
        ]
    )
    values = opened.heal({block: "mean"}).values()
    np.testing.assert_allclose(values[f"{block}/constant"], added.mean(0), rtol=1e-4, atol=1e-5)


def test_a_block_before_dropped_ones_aims_behind_them(opened: Calibration) -> None:
    first, second, third = opened.blocks[:3]
    healing = opened.heal({second: "drop", third: "drop"})
    assert healing.steps[0].block == first
    assert f"{first}/weight.0" in healing.values()


def test_with_norms_behind_blocks_the_last_one_of_those_dropped_stays(tmp_path: Path) -> None:
    path = Entry(families()["bert"], "optimum", "feature-extraction").folder()
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5)
    first, second, third = opened.blocks[:3]
    choice: Mapping[str, Action] = {second: "drop", third: "drop"}
    healing = opened.heal(choice)
    assert f"{first}/weight.0" in healing.values()
    assert f"{third}/scale" in healing.values()
    assert not {f"{first}/scale", f"{second}/scale"} & set(healing.values())
    models = [gp.load(one).files[0].model for one in (path, written(path, healing, tmp_path))]
    before, after = (sum(node.op_type == "LayerNormalization" for node in model.graph) for model in models)
    assert after == before - 2
    expected, found = list(opened.outputs(choice)), outputs(tmp_path / "out", opened)
    key = "last_hidden_state"
    for lot, one, other in zip((x for x in opened.lots if x.held), found, expected, strict=True):
        rows = lot.feeds["attention_mask"].astype(bool)
        np.testing.assert_allclose(one[key][rows], other[key][rows], atol=1e-5)


def test_repairs_that_do_not_help_are_not_kept(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "tiny.onnx")
    data = random_data(path, tmp_path, rows=4, tokens=3)  # far fewer rows than weights
    checked = open_calibration(path, data, settings=ONE)
    blindly = open_calibration(path, data, settings=ONE, repairs=Repairs(check=False, strengths=(1e-6,)))
    choice: Mapping[str, Action] = {checked.blocks[1]: "drop"}
    assert checked.heal(choice).error < blindly.heal(choice).error
    for step in checked.heal(choice).steps:
        assert step.after <= step.before * (1 + 1e-6) or not step.kept
    assert any("regularization" in step.note for step in blindly.heal(choice).steps)


def test_the_same_answer_in_any_order_and_with_a_cache_of_any_size(opened: Calibration) -> None:
    first, second, third = opened.blocks[:3]
    choices: list[dict[str, Action]] = [{first: "drop"}, {first: "drop", third: "linear"}, {second: "mean"}]
    expected = [opened.heal(choice).error for choice in choices]
    small = replace(opened, walked=type(opened.walked)(limit=1))
    again = [small.heal(choice).error for choice in reversed(choices)]
    assert again[::-1] == expected
    assert len(small.walked.ways) == 1


def test_streams_lie_in_files_beyond_what_memory_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(tmp_path / "tiny.onnx")
    data = random_data(path, tmp_path, rows=64)
    here = open_calibration(path, data, settings=ONE, batch=16)
    monkeypatch.setattr(spool, "MEMORY", 1000)
    there = open_calibration(path, data, settings=ONE, batch=16)
    choice: Mapping[str, Action] = {here.blocks[1]: "drop", here.blocks[3]: "linear"}
    assert there.heal(choice).error == here.heal(choice).error
    assert there.dense._there and not here.dense._there


def test_ten_times_the_data_take_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MEMORY", 20_000)
    path = tiny.save(tmp_path / "tiny.onnx")

    def peak(rows: int) -> int:
        opened = open_calibration(path, random_data(path, tmp_path, rows, tokens=40), settings=ONE, batch=64)
        tracemalloc.start()
        try:
            opened.heal({opened.blocks[1]: "drop", opened.blocks[3]: "linear"})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(128)  # what is imported and cached once
    few, many = peak(128), peak(1280)
    streams = 13 * 1280 * 40 * tiny.WIDTH * 4  # what they all would take
    assert many < few + streams / 10


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_linears_of_low_rank(family: str, tmp_path: Path) -> None:
    task = "feature-extraction" if family == "bert" else "text-generation-with-past"
    path = Entry(families()[family], "optimum", task).folder()
    tried = Repairs(rank=3)
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE, batch=5, repairs=tried)
    choice: Mapping[str, Action] = {opened.blocks[1]: "linear"}
    healing = opened.heal(choice)
    width = opened.dense.shape((1, 0, 0))[-1]
    assert healing.values()[f"{opened.blocks[1]}/linear.a"].shape == (width, 3)
    for one, other in zip(
        outputs(written(path, healing, tmp_path), opened), opened.outputs(choice), strict=True
    ):
        for key, array in one.items():
            seen = ~np.isnan(array) & (np.abs(other[key]) < 1e30)
            np.testing.assert_allclose(array[seen], other[key][seen], atol=5e-4, rtol=1e-3)


def test_choices_that_cannot_be_made(opened: Calibration) -> None:
    with pytest.raises(SelectionError, match="there is no such block: choose among"):
        opened.heal({"encoder.99.ffn": "drop"})
    with pytest.raises(SelectionError, match="there is no action 'melt'"):
        opened.heal({opened.blocks[0]: "melt"})  # type: ignore[dict-item]


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "tiny.onnx")
    arrays = {"x": np.full((8, 3, tiny.WIDTH), 1e30, np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(GraphpruneError, match="NaN or infinity"):
        open_calibration(path, read_data(tmp_path / "data.npz"), settings=ONE)


def test_a_bundle_of_several_files_and_stacks_elsewhere(tmp_path: Path) -> None:
    folder = Entry(families()["t5"], "optimum", "text2text-generation-with-past").folder()
    with pytest.raises(RunError, match="holds several models"):
        open_calibration(folder, random_data(folder / "encoder_model.onnx", tmp_path))


def test_a_piece_that_is_not_borne_out_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "tiny.onnx")
    monkeypatch.setattr(calibration, "_TOLERANCE", -1.0)
    opened = open_calibration(path, random_data(path, tmp_path), settings=ONE)
    assert opened.blocks == ()
    assert all("differ by" in reason for reason in opened.declined.values())
