from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import LoadError, RunError
from graphprune.intervals import MIN_LOADS
from graphprune.play import Source
from graphprune.session import Session, open_session
from graphprune.timing import Bench, Timing, bench
from tests import tiny
from tools.zoo import entries

MS = 1_000_000


def ticking() -> Callable[[], int]:
    """A clock by which every call takes a millisecond."""
    ticks = itertools.count()
    return lambda: next(ticks) * MS


def quick(models: list[Path], source: Source | list[Source] | None = None, **options: Any) -> Bench:
    defaults: dict[str, Any] = {"rounds": 4, "loads": 2, "warmup": 1, "footprint": False, "clock": ticking()}
    return bench(models, source, **defaults | options)


def figures(found: Bench) -> list[tuple[str, float]]:
    return [(one.phase, one.median) for one in found.timings]


def fixed(path: Path, batch: int | str, length: int | str) -> Path:
    """Ids of a fixed size, looked up."""
    table = numpy_helper.from_array(np.ones((8, 4), np.float32), "table")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, length])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, length, 4])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["y"])], "g", [ids], [y], [table]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def image(path: Path) -> Path:
    """An image, which has no tokens."""
    weights = numpy_helper.from_array(np.ones((2, 3, 4, 4), np.float32), "w")
    x = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 5, 5])
    graph = helper.make_graph([helper.make_node("Conv", ["pixels", "w"], ["y"])], "g", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def with_cache(family: str) -> Path:
    return next(entry for entry in entries(family) if entry.task.endswith("with-past")).folder()


def test_models_in_turns(tmp_path: Path) -> None:
    paths = [tiny.save(tmp_path / f"{layers}.onnx", layers=layers) for layers in (1, 2)]
    shares: list[float] = []
    found = quick(paths, rounds=7, loads=3, on_progress=lambda what, share: shares.append(share))
    first, second = found.timings
    assert [first.model, second.model] == list(map(str, paths)) and found.baseline == str(paths[0])
    assert (first.rounds, found.loads) == (9, 3)  # 3 rounds of each load make 7 or more
    assert shares == [pytest.approx(n / 12) for n in range(1, 13)]
    assert (first.ratio, first.low, first.high) == (None, None, None)
    assert (second.ratio, second.low, second.high) == (1.0, None, None)
    assert [one.bytes for one in found.models] == [path.stat().st_size for path in paths]


def test_intervals_take_some_loads(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    found = quick([path, path], rounds=MIN_LOADS, loads=MIN_LOADS)
    assert (found.timings[1].ratio, found.timings[1].low, found.timings[1].high) == (1.0, 1.0, 1.0)


def test_ratios_are_to_the_baseline(tmp_path: Path) -> None:
    paths = [tiny.save(tmp_path / f"{layers}.onnx", layers=layers) for layers in (1, 2)]
    found = quick(paths, baseline=1)
    assert found.baseline == str(paths[1])
    assert [one.ratio for one in found.timings] == [1.0, None]


def test_every_model_is_first_as_often_as_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every load and every round, by the order in which sessions are opened and run."""
    paths = [tiny.save(tmp_path / f"{name}.onnx") for name in "ab"]
    loaded: list[str] = []
    ran: list[str] = []
    prepared = Session.prepared

    def spy(session: Session, feeds: object) -> Callable[[], object]:
        run = prepared(session, feeds)  # type: ignore[arg-type]

        def told() -> object:
            ran.append(session.name)
            return run()

        return told

    def opened(path: Path, name: str, settings: object) -> Session:
        loaded.append(name)
        return open_session(path, name, settings)  # type: ignore[arg-type]

    monkeypatch.setattr("graphprune.turns.open_session", opened)
    monkeypatch.setattr(Session, "prepared", spy)
    quick(paths, rounds=12, loads=4, warmup=0)
    for names, pairs in ((loaded, 4), (ran, 12)):
        assert len(names) == 2 * pairs
        assert (
            sorted(names[::2]) == sorted(names[1::2]) == ["a.onnx"] * (pairs // 2) + ["b.onnx"] * (pairs // 2)
        )
    for names, each in ((loaded, 2), (ran, 6)):  # each second load is the mirror of the one before it
        for start in range(0, len(names), 2 * each):
            one, other = names[start : start + each], names[start + each : start + 2 * each]
            assert other == [name for pair in zip(one[1::2], one[::2], strict=True) for name in pair]


def test_every_size_is_timed(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.onnx")
    sources = [Source(batch=b, sequence=s) for b in (1, 2) for s in (3, 5)]
    found = quick([path, path], sources)
    assert [(one.batch, one.sequence) for one in found.timings[::2]] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert not found.left_out


def test_a_size_that_a_model_cannot_take_is_left_out(tmp_path: Path) -> None:
    sizes = [(1, 3), (2, 3), (2, 5)]
    sources = [Source(batch=b, sequence=s) for b, s in sizes]
    found = quick([fixed(tmp_path / "any.onnx", "b", "s"), fixed(tmp_path / "fixed.onnx", 2, 3)], sources)
    timed = [(Path(one.model).name, one.batch, one.sequence) for one in found.timings]
    assert timed == [("any.onnx", 1, 3), ("any.onnx", 2, 3), ("fixed.onnx", 2, 3), ("any.onnx", 2, 5)]
    assert [(one.batch, one.sequence, one.reason) for one in found.left_out] == [
        (1, 3, "fixed.onnx takes batches of 2 only"),
        (2, 5, "fixed.onnx takes sequences of 3 tokens only"),
    ]
    assert found.timings[2].ratio == 1.0


def test_what_makes_no_difference_to_the_inputs_is_timed_once(tmp_path: Path) -> None:
    found = quick([image(tmp_path / "image.onnx")], [Source(sequence=s) for s in (16, 32)])
    assert [one.sequence for one in found.timings] == [16]
    assert [one.reason for one in found.left_out] == ["its inputs are those of batch 1, sequence 16"]


def test_a_model_that_takes_no_size_is_an_error(tmp_path: Path) -> None:
    path = fixed(tmp_path / "fixed.onnx", 2, 3)
    with pytest.raises(RunError, match=r"fixed.onnx cannot be timed at batch 4, sequence 3: .* batches of 2"):
        quick([path], [Source(batch=4, sequence=3)])
    with pytest.raises(RunError, match="inputs of this size cannot be made"):
        quick([tiny.save(tmp_path / "model.onnx")], Source(batch=1 << 60))


def test_a_model_that_dies_on_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "model.onnx")

    def failing(session: Session, feeds: object) -> Callable[[], object]:
        def run() -> None:
            raise RuntimeError("out of luck\nand more")

        return run

    monkeypatch.setattr(Session, "prepared", failing)
    with pytest.raises(RunError, match=r"model.onnx fails at batch 2, sequence 3: out of luck and more$"):
        quick([path], Source(batch=2, sequence=3))


@pytest.mark.parametrize(
    "options", [{"rounds": 1}, {"loads": 0}, {"warmup": -1}, {"steps": -1}, {"baseline": 1}, {"baseline": -1}]
)
def test_what_cannot_be_asked_for(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError):
        quick([tiny.save(tmp_path / "model.onnx")], **options)
    with pytest.raises(LoadError):
        quick([tmp_path / "none.onnx"])


def test_phases_of_a_decoder_and_of_an_encoder_with_one() -> None:
    """By a clock by which every call takes a millisecond: the encoder is prefill, tokens count singly."""
    decoder = with_cache("gpt2")
    assert figures(quick([decoder], steps=3)) == [("prefill", 1.0), ("decode", 1.0)]
    assert figures(quick([decoder])) == [("prefill", 1.0)]
    both = with_cache("t5")
    found = quick([both], Source(batch=2, sequence=8), steps=3)
    assert figures(found) == [("prefill", 2.0), ("decode", 1.0)]
    assert [one.tokens_per_s for one in found.timings] == [8000.0, 2000.0]


def test_rates() -> None:
    one = Timing("m", 2, 8, "run", 5, median=4.0, spread=0.1, macs=12e6)
    assert one.tokens_per_s is None and one.gmacs_per_s == 3.0
    assert Timing("m", 2, 8, "prefill", 5, 4.0, 0.1).gmacs_per_s is None


def test_products_are_counted(tmp_path: Path) -> None:
    """By hand: four projections, two products of the scores, the FFN; each of three layers."""
    path = tiny.save(tmp_path / "model.onnx")
    found = quick([path], Source(batch=2, sequence=5), roofline=True)
    tokens, width = 2 * 5, tiny.WIDTH
    by_hand = 3 * (4 * tokens * width**2 + 2 * tokens * 5 * width + 2 * tokens * width * 3 * width)
    (timing,) = found.timings
    assert timing.macs == by_hand
    assert timing.of_peak is not None and timing.of_peak > 0
    assert not found.notes
