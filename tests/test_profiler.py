from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphprune import profiled, profiler
from graphprune.bundle import load
from graphprune.compiled import Regions
from graphprune.errors import RunError
from graphprune.kernels import SessionRun
from graphprune.phases import PartTime
from graphprune.play import Source
from graphprune.profiled import Profiled
from graphprune.profiler import Profile, profile
from graphprune.settings import LEVELS, Settings
from graphprune.survey import inspect
from graphprune.tracing import trace_events
from tests import small, tiny
from tools.zoo import entries

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"


def widened(path: Path, wide: int = 10) -> Path:
    """`tiny` with inner widths of 96, that of layer 1's FFN `wide` times as large."""
    model = tiny.model(layers=3)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        layer, _, name = tensor.name.partition(".")
        inner = 96 * (wide if layer == "1" else 1)
        shape = {"up": (tiny.WIDTH, inner), "down": (inner, tiny.WIDTH)}.get(name)
        if shape is not None:
            weights = random.normal(0, 0.1, shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_wide_block_shows(level: str, tmp_path: Path) -> None:
    found = profile(
        widened(tmp_path / "m.onnx"), Source(sequence=64), rounds=8, settings=Settings(threads=1, level=level)
    )
    blocks = {part.name: part for part in found.blocks}
    assert list(blocks) == [f"encoder.{i}.{kind}" for i in range(3) for kind in ("attention", "ffn")]
    assert blocks["encoder.1.ffn"].macs == 10 * blocks["encoder.0.ffn"].macs == 10 * 2 * 64 * 8 * 96
    assert max(blocks.values(), key=lambda part: part.us).name == "encoder.1.ffn"
    assert blocks["encoder.1.ffn"].share > 0.25
    assert [part.name for part in blocks["encoder.1.ffn"].parts] == ["up", "activation", "down", "join"]


def consistent(found: Profile) -> None:
    """Everything that is shown adds up: parts to blocks, kernels to parts, all to the whole."""
    for phase in found.phases:
        whole = sum(part.us for part in (*phase.blocks, *phase.outside))
        assert whole == pytest.approx(phase.kernel_us)
        assert sum(part.share for part in (*phase.blocks, *phase.outside)) == pytest.approx(1)
        for part in (*phase.blocks, *phase.outside):
            assert sum(kernel.us for kernel in part.kernels) == pytest.approx(part.us)
            assert not part.parts or sum(inner.us for inner in part.parts) == pytest.approx(part.us)
    total = sum(part.us for part in (*found.blocks, *found.outside))
    assert total == pytest.approx(found.total_us)
    assert found.attributed >= 0.99


def test_a_run_is_all_of_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SessionRun] = []

    def finish(self: Profiled) -> list[SessionRun]:
        seen.extend(original(self))
        return seen

    original = Profiled.finish
    monkeypatch.setattr(Profiled, "finish", finish)
    found = profile(tiny.save(tmp_path / "m.onnx"), rounds=3)
    consistent(found)
    assert len(seen) == 3 + 2 and found.phases[0].rounds == 3
    assert all(sum(kernel.us for kernel in run.kernels) <= run.us for run in seen)


def test_weights_outside_of_the_file_and_names_that_are_missing(tmp_path: Path) -> None:
    path = small.write(tmp_path / "m.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    for one in model.graph.node:
        one.name = ""
    onnx.save(model, path)
    before = sorted(tmp_path.iterdir())
    found = profile(path, rounds=2)
    consistent(found)
    assert [part.name for part in found.blocks] == ["encoder.0.ffn", "encoder.1.ffn"]
    assert [part.name for part in found.outside] == ["embedding"]
    assert sorted(tmp_path.iterdir()) == before


def test_prefill_and_decode_apart_in_a_merged_file(tmp_path: Path) -> None:
    (entry,) = entries("bart", fast=True)
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx", "config.json"):
        shutil.copy(entry.folder() / name, tmp_path)
    found = profile(tmp_path, Source(sequence=5), steps=2, rounds=2)
    consistent(found)
    encoder, prefill, decode = found.phases
    assert [(phase.name, phase.calls) for phase in found.phases] == [
        ("run", 1),
        ("prefill", 1),
        ("decode", 2),
    ]
    assert [part.name for part in found.blocks][:2] == ["encoder.0.attention", "encoder.0.ffn"]
    inspected = inspect(load(entry.folder() / "decoder_model_merged.onnx"))[0].architecture
    ids = list(dict.fromkeys(block.id for block in inspected.blocks))
    assert [part.name for part in prefill.blocks] == [part.name for part in decode.blocks] == ids
    # One token makes a fifth of the products of five.
    ffns = [
        next(part for part in phase.blocks if part.name == "decoder.0.ffn") for phase in (prefill, decode)
    ]
    assert ffns[0].macs == 5 * ffns[1].macs > 0
    assert found.total_us == pytest.approx(encoder.kernel_us + prefill.kernel_us + 2 * decode.kernel_us)
    # What its bodies ran counts once, and whatever the If itself took is not a kernel's time.
    assert {span.depth for span in prefill.timeline} == {0, 1}
    assert all(phase.kernel_us < phase.session_us for phase in found.phases)
    assert not [part for part in prefill.outside if part.name == "control flow" and part.us]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_macs_are_those_of_the_architecture(family: str) -> None:
    (entry,) = entries(family, fast=True)
    (path,) = entry.files()
    found = profile(
        path, Source(batch=2, sequence=6), rounds=1, settings=Settings(threads=1, level="disabled")
    )
    sizes = {"batch": 2, "sequence": 6, "past": 0}
    for block in inspect(load(path))[0].architecture.blocks:
        known = {name: next(v for k, v in sizes.items() if k in name) for name in block.macs.names}
        known |= {name: 0 for name in known if "past" in name}
        part = next(one for one in found.blocks if one.name == block.id)
        assert part.macs == block.macs.at(**known), block.id


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not beside this repository")
def test_a_search_with_two_bodies() -> None:
    found = profile(SHARED / "gpt2_greedy_two_subgraphs.onnx", Source(sequence=4), rounds=2)
    consistent(found)
    assert "control flow" in [part.name for part in found.outside]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rounds": 0}, "1 round"), ({"steps": -1}, "1 round")],
)
def test_wrong_options(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        profile(tiny.save(tmp_path / "m.onnx"), **options)  # type: ignore[arg-type]


def test_layers_and_stacks_are_the_sums_of_their_blocks(tmp_path: Path) -> None:
    found = profile(tiny.save(tmp_path / "m.onnx"), rounds=2)
    for whole in (found, found.phases[0]):
        assert [part.name for part in whole.layers] == ["encoder.0", "encoder.1", "encoder.2"]
        (stack,) = whole.stacks
        assert stack.parts == whole.layers
        assert [part for layer in whole.layers for part in layer.parts] == list(whole.blocks)
        for layer in whole.layers:
            for what in ("us", "share", "macs", "bytes"):
                blocks = sum(getattr(block, what) for block in layer.parts)
                assert getattr(layer, what) == pytest.approx(blocks)
            assert len(layer.kernels) == sum(len(block.kernels) for block in layer.parts)
        assert stack.us == pytest.approx(sum(part.us for part in whole.blocks))


def test_the_same_calls_without_the_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    (phase,) = profile(path, rounds=7).phases
    assert phase.unprofiled_us and phase.agreement
    monkeypatch.setattr(profiled, "_TWICE", 100)
    (phase,) = profile(path, rounds=2).phases
    assert phase.unprofiled_us is None and phase.agreement is None


def test_every_phase_is_compared_with_its_own_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**12, 40_000))  # every call without the profiler takes 40 microseconds
    monkeypatch.setattr(profiler, "perf_counter_ns", lambda: next(clock))
    (entry,) = entries("bart", fast=True)
    found = profile(entry.folder(), Source(sequence=5), steps=2, rounds=6)
    assert found.profiler_us >= 0
    for phase in found.phases:
        assert phase.unprofiled_us == pytest.approx(40)
        assert phase.agreement and phase.agreement > 0


def test_without_the_optimized_graph_kernels_go_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tiny.save(tmp_path / "m.onnx"), Settings(threads=1, level="disabled")
    known = profile(path, rounds=1, settings=settings)
    compiling = replace(profiled.PROVIDERS["cpu"], caches={"folder": "{}"})
    monkeypatch.setattr(profiled, "PROVIDERS", {"cpu": compiling})
    monkeypatch.setattr(Regions, "of", lambda runtime, trail, places: Regions({}, places))
    (phase,) = (found := profile(path, rounds=1, settings=settings)).phases
    consistent(found)
    assert phase.unprofiled_us is None
    assert [(part.name, part.macs) for part in found.blocks] == [(p.name, p.macs) for p in known.blocks]


def test_every_level_has_a_name(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx", layers=1)
    for level in LEVELS:
        found = profile(path, rounds=1, settings=Settings(threads=1, level=level))
        assert found.settings.level == level and found.attributed == 1
        consistent(found)


def test_speed_is_two_operations_a_product() -> None:
    assert PartTime("ffn", 2.0, 1.0, 5000, 0, ()).gflops == pytest.approx(5.0)
    assert PartTime("ffn", 0.0, 0.0, 0, 0, ()).gflops == 0
    assert not trace_events(Profile(Settings(), ()))
