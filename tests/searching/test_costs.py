"""What blocks cost: by counting, against really pruned models, and by times that a fake clock tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import RunError, SelectionError
from graphprune.healing.building import plain_recipe, save_values
from graphprune.healing.choice import SHARES, Choice
from graphprune.searching.costs import Costs
from graphprune.searching.counting import count_costs
from graphprune.searching.latency import measure_costs
from graphprune.searching.probes import groups_of
from graphprune.sizes import measure
from tools.zoo import Entry, families

ONE = gp.Settings(threads=1)
SOURCES = (gp.Source(batch=1, sequence=4), gp.Source(batch=3, sequence=6))
CHOICES: tuple[Choice, ...] = (
    {"encoder.0.ffn": "drop"},
    {"encoder.0.attention": "drop", "encoder.2.attention": "drop", "encoder.1.ffn": "drop"},
    {"encoder.1.attention": "linear"},
    {"encoder.1.ffn": "linear", "encoder.2.ffn": "linear", "encoder.2.attention": "mean"},
    {"encoder.0.ffn": "quarter", "encoder.1.ffn": "half", "encoder.2.ffn": "linear"},
    {"encoder.3.ffn": "eighth", "encoder.1.attention": "drop"},
    {"encoder.0.attention": "mean", "encoder.0.ffn": "drop", "encoder.1.attention": "linear"},
)


@pytest.fixture(scope="module")
def bert() -> Path:
    return Entry(families()["bert"], "optimum", "feature-extraction").folder()


def pruned(path: Path, choice: Choice, values: Path) -> gp.Pruned:
    """The model of a choice, with ones to stand in for blocks."""
    bundle = gp.load(path)
    drops = {block: action for block, action in choice.items() if action == "drop"}
    recipe = plain_recipe(bundle, drops)
    neurons = {group.members: group.neurons for group in groups_of(bundle) if group.neurons}
    width = next(size for group in groups_of(bundle) for size in group.stood_in.values())
    found = {f"{block}/linear": np.eye(width, dtype=np.float32) for block in choice}
    found |= {f"{block}/constant": np.ones(width, np.float32) for block in choice}
    found |= {
        f"{block}/neurons": np.arange(int(count * SHARES[choice[block]]))
        for members, count in neurons.items()
        for block in members
        if choice.get(block) in SHARES
    }
    save_values(values, found)
    options: dict[str, object] = {
        f"replace_{action}": {"blocks": ids, "values": str(values)}
        for action in ("linear", "mean")
        if (ids := [block for block, one in choice.items() if one == action])
    }
    if any(action in SHARES for action in choice.values()):
        options["narrow_ffn"] = {"values": str(values)}
    return gp.prune(bundle, recipe=recipe, **options)


def test_costs_add_up() -> None:
    costs = Costs(10.0, {"drop": {"a": 4.0, "b": 2.0}, "linear": {"a": 3.0, "b": 0.5}, "mean": {"a": 3.75}})
    assert costs.of({}) == costs.of({"a": "keep", "c": "keep"}) == 10.0
    assert costs.of({"a": "drop"}) == 6.0
    assert costs.of({"a": "linear", "b": "drop"}) == 5.0
    assert costs.of({"a": "mean"}) == 6.25
    assert costs.scaled(2.0).of({"a": "linear", "b": "drop"}) == 10.0
    assert Costs.of_json(costs.to_json()) == costs
    for choice in ({"b": "mean"}, {"c": "drop"}):
        with pytest.raises(SelectionError, match=r"what . costs .* was not measured"):
            costs.of(choice)  # type: ignore[arg-type]


def test_half_of_those_that_are_alike_go(bert: Path) -> None:
    attention, ffn = groups_of(gp.load(bert))
    assert attention.members == tuple(f"encoder.{layer}.attention" for layer in range(4))
    assert attention.gone == ("encoder.1.attention", "encoder.3.attention")
    assert ffn.gone == ("encoder.1.ffn", "encoder.3.ffn")
    assert set(attention.stood_in) == {*attention.members, *ffn.members} and not ffn.stood_in


@pytest.mark.parametrize("choice", CHOICES)
def test_counted_as_pruned(bert: Path, choice: Choice, tmp_path: Path) -> None:
    costs = count_costs(bert, SOURCES)
    one = pruned(bert, choice, tmp_path / "values.npz")
    before, after = one.plan.before, one.after
    assert costs["parameters"].total == before.parameters
    assert costs["parameters"].of(choice) == pytest.approx(after.parameters)
    saved = costs["size"].total - costs["size"].of(choice)
    assert saved == pytest.approx(before.bytes - after.bytes, rel=0.02)  # shapes and indices go with some
    macs = [
        [sizes.macs.at(batch_size=source.batch, sequence_length=source.sequence) for source in SOURCES]
        for sizes in (before, after)
    ]
    assert costs["macs"].total == pytest.approx(np.mean(macs[0]))
    share = np.mean(np.array(macs[1]) / np.array(macs[0]))
    assert costs["macs"].of(choice) / costs["macs"].total == pytest.approx(share)


def test_shared_weights_are_not_saved() -> None:
    folder = Entry(families()["albert"], "optimum", "feature-extraction").folder()
    costs = count_costs(folder, SOURCES[:1])
    assert all(
        saved < 0.01 * costs["parameters"].total for saved in costs["parameters"].saves["drop"].values()
    )
    assert min(costs["macs"].saves["drop"].values()) > 0


class Clock:
    """Stands for `bench`: times are so much and so much for each parameter, in every cell."""

    CELLS = ((1, 4, 5.0, 1e-3), (3, 6, 1.0, 4e-2))

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def __call__(self, models: Sequence[Path], *, rounds: int, **options: Any) -> gp.Bench:
        self.rounds.append(rounds)
        timings = []
        for batch, sequence, base, each in self.CELLS:
            times = [base + each * self.parameters(model) for model in models]
            for model, ms in zip(models, times, strict=True):
                ratio = None if model is models[0] else ms / times[0]
                timings.append(gp.Timing(str(model), batch, sequence, "run", rounds, ms, 0.0, ratio))
        return gp.Bench(str(models[0]), tuple(timings), (), (), ONE, 1, 1, 0)

    @staticmethod
    def parameters(path: Path) -> int:
        return measure(gp.load(path).files[0].model).parameters


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("graphprune.timing.bench", found)
    return found


def test_seconds_of_choices(bert: Path, clock: Clock, tmp_path: Path) -> None:
    costs = measure_costs(bert, SOURCES, ONE)
    dense = clock([bert], rounds=2)
    assert costs.total == pytest.approx(np.mean([one.median for one in dense.timings]) / 1e3)
    for number, choice in enumerate(CHOICES):
        path = pruned(bert, choice, tmp_path / "values.npz").save(tmp_path / str(number), run=False)
        ratios = [one.ratio for one in clock([bert, path], rounds=2).timings if one.ratio is not None]
        assert costs.of(choice) / costs.total == pytest.approx(np.mean(ratios))


def test_rounds_by_the_time_that_there_is(bert: Path, clock: Clock) -> None:
    dense = clock([bert], rounds=2)
    each = (
        sum(one.median for one in dense.timings) / 1e3 * 7
    )  # three and four models, the dense one among them
    clock.rounds.clear()
    measure_costs(bert, SOURCES, ONE, seconds=24 * each)
    assert clock.rounds == [2, 20, 20]
    measure_costs(bert, SOURCES, ONE, seconds=0)
    assert clock.rounds[-2:] == [8, 8]


def test_a_file_alone_and_files_together(bert: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((bert / "model.onnx").read_bytes())
    costs = measure_costs(alone, SOURCES[:1], seconds=0)
    saves = costs.saves
    assert costs.total > 0 and set(saves["drop"]) == set(saves["linear"]) == set(saves["mean"])
    assert set(saves["half"]) == {f"encoder.{layer}.ffn" for layer in range(4)}
    assert all(0 <= saves["half"][ffn] <= saves["eighth"][ffn] <= saves["drop"][ffn] for ffn in saves["half"])
    assert [*tmp_path.iterdir()] == [alone]
    folder = Entry(families()["t5"], "optimum", "text2text-generation").folder()
    both = measure_costs(folder, SOURCES[:1], seconds=0)
    kinds = {"encoder.0.attention", "encoder.0.ffn", "decoder.0.cross_attention", "decoder.1.ffn"}
    assert kinds <= set(both.saves["drop"])


def test_blocks_that_only_convolutions_have() -> None:
    folder = Entry(families()["resnet"], "optimum", "feature-extraction").folder()
    found = count_costs(folder, [gp.Source(batch=1)])
    assert "linear" not in found["macs"].saves and found["macs"].total > 0


def test_a_model_that_takes_none_of_the_sources(bert: Path, tmp_path: Path) -> None:
    wrong = gp.Source({"input_ids": np.full((1, 4), 10**6)}, 1, 4)
    with pytest.raises(RunError, match="cannot be timed at batch 1, sequence 4"):
        measure_costs(bert, [wrong], ONE)
