"""Rankings: every criterion against torch or numpy, in batches of any size, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

import graphprune as gp
from graphprune.data.dataset import Data
from graphprune.errors import LoadError, RunError, SelectionError
from graphprune.healing.calibration import open_calibration
from graphprune.importance.change import LONGEST, Meter, open_meter
from graphprune.importance.results import Measured, Ranked, Ranking, Stretch, ranks_of
from graphprune.ranking import rank
from tests import tiny
from tests.oracle import Oracle
from tools.zoo import Entry, NotExportableError, entries

ONE = gp.Settings(threads=1)
STREAMED = ("influence", "angular", "norm")
IDS = [f"encoder.{layer}.{kind}" for layer in range(3) for kind in ("attention", "ffn")]


def cosines(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return (before * after).sum(-1) / lengths


def influence(before: np.ndarray, after: np.ndarray) -> float:
    return float(1 - cosines(before, after).mean())


def angle(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.arccos(np.clip(cosines(before, after), -1, 1)).mean() / np.pi)


def norm(before: np.ndarray, branch: np.ndarray) -> float:
    return float((np.linalg.norm(branch, axis=-1) / np.linalg.norm(before, axis=-1)).mean())


def values(ranked: tuple[Ranked, ...], criterion: str) -> dict[str, float | None]:
    return {one.id: one.found[criterion].value for one in ranked}


def arrays(path: Path, x: np.ndarray, **options: Any) -> Data:
    np.savez(path, x=x)
    return gp.read_data(path, **options)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((12, 5, tiny.WIDTH), dtype=np.float32)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_by_hand_in_batches_of_any_size(tmp_path: Path, x: np.ndarray, size: int) -> None:
    model, data = tiny.save(tmp_path / "m.onnx"), arrays(tmp_path / "x.npz", x)
    found = rank(model, data, by=STREAMED, batch=size, settings=ONE)
    streams = [x]
    for layer in range(3):
        cut = dict.fromkeys(range(layer, 3), "attention ffn")
        streams.append(tiny.reference(x, without=cut | {layer: "ffn"}))
        streams.append(tiny.reference(x, without={k: v for k, v in cut.items() if k != layer}))
    streams = [stream.astype(np.float64) for stream in streams]
    blocks, layers = list(pairwise(streams)), list(pairwise(streams[::2]))
    assert [one.id for one in found.blocks] == IDS
    for ranked, pairs in ((found.blocks, blocks), (found.layers, layers)):
        for criterion, value in (("influence", influence), ("angular", angle)):
            got = [*values(ranked, criterion).values()]
            assert got == pytest.approx([value(*pair) for pair in pairs], abs=1e-6)
        grown = [norm(before, after - before) for before, after in pairs]
        assert [*values(ranked, "norm").values()] == pytest.approx(grown, rel=1e-5)
    ends = streams[::2]
    expected = {(i, n): angle(ends[i], ends[i + n]) for n in (1, 2) for i in range(4 - n)}
    assert {(one.start, one.length): one.distance for one in found.stretches} == pytest.approx(
        expected, abs=1e-6
    )
    assert {one.stack for one in found.stretches} == {"encoder"}
    assert found.data == "x.npz" and found.examples == 12 and found.by == STREAMED and not found.scales


def kept(entry: Entry, feeds: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every module of the layers was given, and put out."""
    oracle = Oracle(entry)
    given: dict[str, Any] = {}
    put: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def keep(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            given[path] = args[0] if args else kwargs.get("hidden_states")
            put[path] = out[0] if isinstance(out, tuple) else out

        return keep

    for stack in entry.stacks("model"):
        for layer in stack.layers:
            parts = [part.output for block in layer.blocks for part in block.parts]
            norms = [name for block in layer.blocks for name in (block.norm, block.branch_norm) if name]
            for path in (layer.path, *(f"{layer.path}.{name}" for name in (*parts, *norms))):
                oracle.model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
    oracle.run("model", feeds)
    return given, put


def expected_of(entry: Entry, feeds: dict[str, np.ndarray]) -> dict[str, tuple[Any, Any, Any]]:
    """The stream before and after every block, and what its branch adds: by hooks on torch modules."""
    given, put = kept(entry, feeds)
    found = {}
    for stack in entry.stacks("model"):
        for number, layer in enumerate(stack.layers):
            stream = given[layer.path]
            for block in layer.blocks:
                names = [block.branch_norm] if block.branch_norm else [part.output for part in block.parts]
                branch = sum(put[f"{layer.path}.{name}"] for name in names)
                after = put[f"{layer.path}.{block.norm}"] if block.placement == "post" else stream + branch
                found[f"{stack.name}.{number}.{block.kind}"] = stream, after, branch
                stream = after
    return found


def padded(*, types: bool = False) -> dict[str, np.ndarray]:
    """Token ids with padding on the right, but for the first row."""
    lengths = np.array([7, 3, 5, 1, 6])
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(1, 50, mask.shape) * mask
    feeds = {"input_ids": ids, "attention_mask": mask}
    return feeds | ({"token_type_ids": np.zeros_like(ids)} if types else {})


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2", "gptj", "gpt2"])
def test_what_torch_computes_of_padded_rows(family: str, tmp_path: Path) -> None:
    (entry,) = entries(family, fast=True)
    feeds = padded(types=family == "bert")
    mask = feeds["attention_mask"].astype(bool)
    np.savez(tmp_path / "rows.npz", **feeds)
    found = rank(
        entry.folder(), gp.read_data(tmp_path / "rows.npz"), by=STREAMED, batch=len(mask), settings=ONE
    )
    (call,) = gp.run(entry.folder(), gp.Source(feeds, *mask.shape), settings=ONE)
    streams = expected_of(entry, dict(call.feeds))
    last = np.zeros_like(mask)
    last[np.arange(len(mask)), mask.sum(1) - 1] = True
    for block in found.blocks:
        before, after, branch = (value.detach().double().numpy() for value in streams[block.id])
        at = mask if family == "bert" else last
        wanted = {
            "influence": influence(before[mask], after[mask]),
            "angular": angle(before[at], after[at]),
            "norm": norm(before[mask], branch[mask]),
        }
        got = {name: block.found[name].value for name in wanted}
        assert got == pytest.approx(wanted, abs=5e-6, rel=1e-4), block.id
    assert len(found.blocks) == len(streams)


def measured(path: Path, source: gp.Source) -> Meter:
    meter = open_meter(path, STREAMED, ONE)
    meter.add(source)
    return meter


def assert_like(one: Meter, other: Meter, rough: float) -> None:
    assert [change.id for change in one.blocks] == [change.id for change in other.blocks]
    for before, after in zip((*one.blocks, *one.runs), (*other.blocks, *other.runs), strict=True):
        for name, mean in before.means.items():
            assert after.means[name].value == pytest.approx(mean.value, abs=rough, rel=rough), before.id


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "squeezebert"])
def test_fused_graphs(family: str) -> None:
    (entry,) = entries(family, fast=True)
    (file,) = entry.files()
    source = gp.Source(batch=2, sequence=6)
    assert_like(measured(file, source), measured(entry.dialect(file, "fused"), source), 1e-4)


@pytest.mark.matrix
@pytest.mark.parametrize("dialect", ["fused", "ort-extended", "fp16", "qdq", "onnxslim"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bart", "vit", "swin", "convnext", "gptj"])
def test_every_dialect(family: str, dialect: str) -> None:
    (entry,) = entries(family, fast=True)
    file = entry.files()[0]
    try:
        treated = entry.dialect(file, dialect)
    except NotExportableError as reason:
        pytest.skip(str(reason)[:200])
    source = gp.Source(batch=2, sequence=6)
    rough = 0.15 if dialect == "qdq" else 0.02 if dialect == "fp16" else 1e-3
    assert_like(measured(file, source), measured(treated, source), rough)


@pytest.mark.matrix
def test_every_family() -> None:
    for entry in entries(fast=True):
        try:
            folder = entry.folder()
        except NotExportableError:
            continue
        meter = measured(folder, gp.Source(batch=2, sequence=6))
        means = [mean for one in (*meter.blocks, *meter.layers) for mean in one.means.values()]
        assert not [mean.reason for mean in means if mean.value is None], entry.id
        assert min(mean.value or 0 for mean in means) > 0, entry.id


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_batches_do_not_matter(family: str, tmp_path: Path) -> None:
    (entry,) = entries(family, fast=True)
    np.savez(tmp_path / "rows.npz", **padded(types=family == "bert"))
    data = gp.read_data(tmp_path / "rows.npz")
    one, three, eight = (
        rank(entry.folder(), data, by=(*STREAMED, "loss"), batch=size, settings=ONE) for size in (1, 3, 8)
    )
    for other in (three, eight):
        for name in one.by:
            for level in ("blocks", "layers"):
                assert values(getattr(one, level), name) == pytest.approx(
                    values(getattr(other, level), name), abs=2e-6
                )
        distances = [[s.distance for s in ranking.stretches] for ranking in (one, other)]
        assert distances[0] == pytest.approx(distances[1], abs=2e-6)


def test_what_is_lost_without_a_block(tmp_path: Path, x: np.ndarray) -> None:
    model, data = tiny.save(tmp_path / "m.onnx"), arrays(tmp_path / "x.npz", x, metric="cosine")
    told: list[str] = []
    found = rank(model, data, by=["loss"], batch=5, settings=ONE, on_step=told.append)
    dense = tiny.reference(x)
    for ranked in (*found.blocks, *found.layers):
        _, layer, *kind = ranked.id.split(".")
        without = tiny.reference(x, without={int(layer): kind[0] if kind else "attention ffn"})
        score = float(cosines(dense.astype(np.float64), without.astype(np.float64)).mean())
        assert ranked.found["loss"].score == pytest.approx(score, abs=1e-5)
        assert ranked.found["loss"].value == pytest.approx(1 - score, abs=1e-5)
    assert (found.scales["loss"].metric, found.scales["loss"].dense) == ("cosine", 1.0)
    assert told[0] == "without encoder.0.attention (1 of 9)" and not found.stretches


def test_what_healing_leaves(tmp_path: Path) -> None:
    (entry,) = entries("bert", fast=True)
    random = np.random.default_rng(0)
    ids = random.integers(1, 50, (24, 7))
    np.savez(
        tmp_path / "rows.npz",
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        token_type_ids=np.zeros_like(ids),
    )
    data = gp.read_data(tmp_path / "rows.npz", metric="cosine")
    found = rank(entry.folder(), data, by=["healed"], settings=ONE)
    calibration = open_calibration(entry.folder(), data, settings=ONE)
    for ranked in (found.blocks[0], found.blocks[-1], found.layers[1]):
        blocks = [one.id for one in found.blocks if one.id.startswith(ranked.id)]
        healing = calibration.heal(dict.fromkeys(blocks, "drop"))
        assert ranked.found["healed"].value == pytest.approx(healing.error, rel=1e-3)
        assert ranked.found["healed"].score == pytest.approx(healing.score, abs=1e-5)
    assert found.scales["healed"].metric == "cosine"


def test_healing_that_fails_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, x: np.ndarray
) -> None:
    class Fake:
        actions: ClassVar = dict.fromkeys(IDS[:4], ("drop",)) | {IDS[4]: ("linear",)}
        declined: ClassVar = {IDS[5]: "it is odd"}
        judge = SimpleNamespace(metric="cosine", better="higher", dense=1.0)

        def heal(self, choice: dict[str, str]) -> Any:
            if IDS[0] in choice:
                raise RunError("no numbers")
            error = np.nan if IDS[2] in choice else 0.5 + len(choice)
            return SimpleNamespace(error=error, score=np.nan)

    monkeypatch.setattr("graphprune.healing.calibration.open_calibration", lambda *_, **__: Fake())
    model, data = tiny.save(tmp_path / "m.onnx"), arrays(tmp_path / "x.npz", x)
    found = rank(model, data, by=["healed"])
    ranked = [one.found["healed"] for one in (*found.blocks, *found.layers)]
    assert [one.value for one in ranked] == [None, 1.5, None, 1.5, None, None, None, None, None]
    broken, unknown = "without it the outputs are not finite", "it is not among those that can be left out"
    assert [one.reason.partition(",")[0] for one in ranked] == [
        "no numbers", "", broken, "", unknown, "it is odd",
        "no numbers", broken, f"encoder.2.attention: {unknown}",
    ]  # fmt: skip
    assert found.order("healed") == (IDS[1], IDS[3]) and not any(one.score for one in ranked)


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "m.onnx")

    def sources(count: int) -> Iterator[gp.Source]:
        random = np.random.default_rng(0)
        for _ in range(count):
            yield gp.Source({"x": random.standard_normal((64, 64, tiny.WIDTH), dtype=np.float32)}, 64, 64)

    def peak(count: int) -> int:
        meter = open_meter(model, STREAMED, ONE)
        meter.add(next(sources(1)))
        tracemalloc.start()
        for source in sources(count):
            meter.add(source)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(meter.blocks) == 6
        return most

    peak(2)
    assert peak(50) < 1.2 * peak(5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    feeds = padded()
    (entry,) = entries("bert", fast=True)
    model = onnx.load(entry.files()[0])
    table = next(one for one in model.graph.initializer if one.name.endswith("word_embeddings.weight"))
    weights = onnx.numpy_helper.to_array(table).copy()
    weights[49] = value
    table.CopyFrom(onnx.numpy_helper.from_array(weights, table.name))
    onnx.save(model, tmp_path / "m.onnx")
    feeds["input_ids"] = np.minimum(feeds["input_ids"], 48)
    feeds["input_ids"][3, 0] = 49
    np.savez(tmp_path / "rows.npz", **feeds)
    data = gp.read_data(tmp_path / "rows.npz")
    for by in STREAMED:
        with pytest.raises(RunError, match=r"encoder\.0\.attention is not finite for row 3 of the data"):
            rank(tmp_path / "m.onnx", data, by=[by], batch=2, settings=ONE)
    with pytest.raises(RunError):
        rank(tmp_path / "m.onnx", data, by=["loss"], settings=ONE)


def test_what_cannot_be_had_has_a_reason(tmp_path: Path) -> None:
    (entry,) = entries("bart", fast=True)
    feeds = padded()
    np.savez(tmp_path / "rows.npz", **feeds)
    data = gp.read_data(tmp_path / "rows.npz")
    found = rank(entry.folder(), data, by=("norm", "loss"), settings=ONE)
    assert {one.kind for one in found.blocks} == {"attention", "cross_attention", "ffn"}
    assert all(one.found["norm"].value for one in found.blocks)
    assert {one.found["loss"].value for one in found.blocks} == {None}
    assert all("several models" in one.found["loss"].reason for one in found.blocks)
    with pytest.raises(RunError, match=r"nothing could be measured.*several models"):
        rank(entry.folder(), data, by=["loss"], settings=ONE)


def test_a_block_that_cannot_be_left_out(tmp_path: Path) -> None:
    (entry,) = entries("resnet", fast=True)
    random = np.random.default_rng(0)
    inputs = gp.run(entry.folder(), gp.Source(batch=2))[0].feeds
    pixels = {name: random.standard_normal(array.shape, np.float32) for name, array in inputs.items()}
    np.savez(tmp_path / "rows.npz", **pixels)
    data = gp.read_data(tmp_path / "rows.npz")
    found = rank(entry.folder(), data, by=("influence", "norm", "loss"), settings=ONE)
    reasons = {one.id: one.found["loss"].reason for one in found.blocks}
    assert any("projection" in reason for reason in reasons.values())
    for one in found.blocks:
        assert bool(one.found["loss"].value is None) == bool(one.found["loss"].reason)
    assert not set(found.order("loss")) & {id for id, reason in reasons.items() if reason}


def test_what_there_is_not(tmp_path: Path, x: np.ndarray) -> None:
    model, data = tiny.save(tmp_path / "m.onnx"), arrays(tmp_path / "x.npz", x)
    with pytest.raises(SelectionError, match="no criterion 'entropy': choose among influence, angular"):
        rank(model, data, by=["entropy"])
    with pytest.raises(SelectionError, match="no criterion is named"):
        rank(model, data, by=[])
    with pytest.raises(LoadError):
        rank(tmp_path / "nowhere", data)
    body = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
            [onnx.helper.make_tensor_value_info("x", 1, [None, None, tiny.WIDTH])],
            [onnx.helper.make_tensor_value_info("y", 1, [None, None, tiny.WIDTH])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(body, tmp_path / "relu.onnx")
    with pytest.raises(RunError, match="no blocks were found"):
        rank(tmp_path / "relu.onnx", data)


def test_the_longest_run_leaves_a_layer(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "m.onnx", layers=LONGEST + 3)
    x = np.random.default_rng(0).standard_normal((2, 3, tiny.WIDTH), dtype=np.float32)
    found = rank(model, arrays(tmp_path / "x.npz", x), by=["angular"], settings=ONE)
    assert max(one.length for one in found.stretches) == LONGEST
    one = tiny.save(tmp_path / "one.onnx", layers=1)
    assert not rank(one, arrays(tmp_path / "x.npz", x), by=["angular"], settings=ONE).stretches


def test_orders() -> None:
    blocks = tuple(
        Ranked(f"encoder.{i}.ffn", "ffn", {"loss": Measured(value)})
        for i, value in enumerate([0.3, None, 0.1, 0.3, -0.2])
    )
    stretches = (
        Stretch("encoder", 0, 1, 0.4), Stretch("encoder", 1, 1, 0.2), Stretch("encoder", 0, 2, None, "why"),
        Stretch("decoder", 0, 1, 0.0),
    )  # fmt: skip
    ranking = Ranking(("loss",), "data", 5, blocks, (), stretches)
    assert ranking.order("loss") == tuple(f"encoder.{i}.ffn" for i in (4, 2, 0, 3))
    assert ranks_of(blocks, "loss") == {f"encoder.{i}.ffn": n for i, n in ((4, 1), (2, 2), (0, 3), (3, 3))}
    assert ranking.best_stretches == (stretches[1], stretches[3])
