from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphprune import cli_profile, profiled, profiler
from graphprune.bundle import load
from graphprune.cli_groups import Inputs
from graphprune.cli_profile_json import to_json
from graphprune.compiled import Regions
from graphprune.errors import LoadError, RunError, SaveError
from graphprune.kernels import SessionRun, distinct, read_runs
from graphprune.phases import PartTime
from graphprune.play import Source
from graphprune.profiled import Profiled
from graphprune.profiler import Profile, profile
from graphprune.profilercost import Cost
from graphprune.scopes import Scope
from graphprune.session import Session
from graphprune.settings import LEVELS, Settings
from graphprune.survey import inspect
from graphprune.tagging import Trail
from graphprune.tracing import trace_events, write_trace
from graphprune.workload import work
from tests import small, tiny
from tools.zoo import entries

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"


def event(name: str, start: int, us: int, op: str = "", **args: object) -> dict[str, object]:
    """One event as ONNX Runtime writes it; a kernel where it has an op."""
    if not op:
        return {"cat": "Session", "ph": "X", "name": name, "ts": start, "dur": us, "args": {}}
    about = {"op_name": op, "activation_size": "8", "output_size": "4", **args}
    return {"cat": "Node", "ph": "X", "name": f"{name}_kernel_time", "ts": start, "dur": us, "args": about}


def written(path: Path, events: list[dict[str, object]]) -> Path:
    """A profile, one event a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in events) + "\n]\n")
    return path


def test_events_become_runs(tmp_path: Path) -> None:
    shapes = {"input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"float": [2, 5]}]}
    events = [
        event("session_initialization", 0, 90),
        event("a", 101, 7, "MatMul", **shapes),
        event("model_run", 100, 10),
        event("a", 201, 6, "MatMul"),
        event("model_run", 200, 8),
    ]
    first, second = read_runs(written(tmp_path / "p.json", events))
    assert (first.start, first.us, second.us) == (100, 10, 8)
    (kernel,) = first.kernels
    assert (kernel.node, kernel.op, kernel.us, kernel.moved) == ("a", "MatMul", 7, 12)
    assert (kernel.inputs, kernel.outputs) == (((2, 3),), ((2, 5),))


def test_what_a_subgraph_runs_counts_once(tmp_path: Path) -> None:
    events = [
        event("before", 0, 2, "Add"),
        event("x", 3, 4, "Add"),
        event("y", 8, 3, "Mul"),
        event("inner", 8, 5, "Loop"),
        event("outer", 3, 12, "If"),
        event("greedy", 2, 15, "GreedySearch"),
        event("model_run", 0, 20),
    ]
    (run,) = read_runs(written(tmp_path / "p.json", events), {"outer", "inner", "greedy"})
    own = {kernel.node: (kernel.us, kernel.depth) for kernel in run.kernels}
    # What the profiler took: within each but the If and the Loop, and beside the If in GreedySearch.
    cost = Cost(within=1.0, between=0.25)
    assert [cost.of(kernel) for kernel in run.kernels] == [1, 1, 1, 0, 0, 1.25]
    # GreedySearch works itself, beside its subgraphs: 15 - 12; what If and Loop do is the runtime's.
    assert own == {
        "before": (2, 0), "x": (4, 2), "y": (3, 3), "inner": (0, 2), "outer": (0, 1), "greedy": (3, 0),
    }  # fmt: skip


def test_what_a_device_ran_is_its_kernels_time(tmp_path: Path) -> None:
    inner = {"cat": "Kernel", "ph": "X", "name": "gemm", "dur": 30, "args": {}}
    events = [
        event("a", 0, 5, "MatMul", provider="CUDAExecutionProvider"),
        {**inner, "ts": 1},
        {**inner, "ts": 33, "dur": 12},
        event("b", 6, 4, "Add", provider="CPUExecutionProvider"),
        event("model_run", 0, 60),
    ]
    (run,) = read_runs(written(tmp_path / "p.json", events))
    found = [(kernel.node, kernel.provider, kernel.us, kernel.span) for kernel in run.kernels]
    assert found == [("a", "cuda", 42, 5), ("b", "cpu", 4, 4)]
    assert [Cost(2.0, 3.0).of(kernel) for kernel in run.kernels] == [0, 2]


@dataclass(frozen=True)
class Timed:
    """A kernel with those that it ran, and the microseconds that it took beside them."""

    own: int
    inside: tuple[Timed, ...]


trees = st.recursive(
    st.builds(Timed, st.integers(1, 50), st.just(())),
    lambda inner: st.builds(Timed, st.integers(1, 50), st.lists(inner, min_size=1, max_size=3).map(tuple)),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(trees, min_size=1, max_size=5))
def test_own_times_add_up_to_the_whole(roots: list[Timed]) -> None:
    events: list[dict[str, object]] = []
    expected: dict[str, int] = {}

    def run(one: Timed, start: int) -> int:
        name, end = f"n{len(expected)}", start + one.own
        expected[name] = one.own
        for inner in one.inside:
            end = run(inner, end)
        events.append(event(name, start, end - start, "GreedySearch" if one.inside else "Add"))
        return end

    now = 0
    for root in roots:
        now = run(root, now)
    events.append(event("model_run", 0, now))
    with tempfile.TemporaryDirectory() as folder:
        (found,) = read_runs(written(Path(folder) / "p.json", events), expected)
    assert {kernel.node: kernel.us for kernel in found.kernels} == expected
    assert sum(kernel.us for kernel in found.kernels) == now


GOOD = json.dumps([event("a", 1, 2, "Add"), event("model_run", 0, 9)]).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"[\n]", b"{}", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, GOOD[:-1], GOOD[:90],
        GOOD.replace(b'"ts": 1', b'"ts": "1"'), GOOD.replace(b'"args"', b'"a"'),
        GOOD.replace(b'"op_name"', b'"o"'),
        GOOD.replace(b'"dur": 9', b'"dur": -9'), GOOD.replace(b"model_run", b"model_ran"),
        GOOD.replace(b'"8"', b'"many"'),
    ],
)  # fmt: skip
def test_a_damaged_profile_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(RunError, match="profile cannot be read"):
        list(read_runs(tmp_path / "p.json"))


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    assert list(distinct(["", "a", "", "", "b", ""])) == ["+1", "a", "a+1", "a+2", "b", "b+1"]
    unnamed = event("Div_7", 5, 2, "Div", node_index="7")
    events = [event("a", 1, 2, "Add"), event("", 3, 2, "Exp"), unnamed]
    (run,) = read_runs(written(tmp_path / "p.json", [*events, event("model_run", 0, 9)]))
    assert [kernel.node for kernel in run.kernels] == ["a", "a+1", "a+2"]


def changed(at: int, byte: int) -> bytes:
    return GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(GOOD)).map(lambda end: GOOD[:end]),
        st.builds(changed, st.integers(0, len(GOOD) - 1), st.integers(0, 255)),
    )
)
def test_no_bytes_at_all_make_a_traceback(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        path.write_bytes(content)
        try:
            runs = list(read_runs(path))
        except RunError:
            return
    assert all(kernel.us >= 0 for run in runs for kernel in run.kernels)


def test_a_missing_profile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none\.json.*No such file"):
        list(read_runs(tmp_path / "none.json"))


def node(
    op: str, *inputs: tuple[int, ...] | None, domain: str = "", **attributes: ir.Attr | int | str
) -> ir.Node:
    """A node; inputs with a shape are weights of that shape."""
    values = [
        ir.val(f"v{i}", const_value=ir.tensor(np.zeros(shape, np.float32))) if shape else ir.val(f"v{i}")
        for i, shape in enumerate(inputs)
    ]
    return ir.node(op, values, attributes, domain=domain)


@pytest.mark.parametrize(
    ("made", "inputs", "outputs", "macs"),
    [
        (node("MatMul", None, (6, 7)), [(2, 5, 6)], [(2, 5, 7)], 2 * 5 * 6 * 7),
        (node("MatMul", None, (6, 7)), [(2, 5, 6), (6, 7)], [(2, 5, 7)], 2 * 5 * 6 * 7),
        (node("MatMul", None, None), [(2, 5, 6), (2, 6, 5)], [(2, 5, 5)], 2 * 5 * 5 * 6),
        (node("Gemm", None, (6, 7), (7,), transA=1), [(6, 5), (7,)], [(5, 7)], 5 * 6 * 7),
        (node("Conv", None, (8, 3, 2, 2)), [(1, 3, 9, 9)], [(1, 8, 8, 8)], 8 * 64 * 12),
        (node("ConvTranspose", None, (3, 8, 2, 2)), [(1, 3, 4, 4)], [(1, 8, 8, 8)], 48 * 32),
        (node("Einsum", None, None, equation="bid,bjd->bij"), [(2, 3, 4), (2, 5, 4)], [(2, 3, 5)], 120),
        (node("Einsum", None, (4, 5), equation="...d,de->...e"), [(2, 3, 4)], [(2, 3, 5)], 120),
        (node("Attention", None, (8, 24), domain="com.microsoft"), [(2, 5, 8)], [(2, 5, 8)],
         2 * 5 * 8 * 24 + 2 * (2 * 5 * 8) * 5),
        (node("GroupQueryAttention", None, None, None, None, None, domain="com.microsoft"),
         [(1, 1, 8), (1, 1, 4), (1, 1, 4), (1, 2, 6, 2), (1, 2, 6, 2)],
         [(1, 1, 8), (1, 2, 7, 2), (1, 2, 7, 2)], 2 * 8 * 7),
        (node("Add", None, None), [(2, 5), (2, 5)], [(2, 5)], 0),
        (node("MatMul", None, None), [], [], 0),
    ],
)  # fmt: skip
def test_work(
    made: ir.Node, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], macs: int
) -> None:
    assert work(made, inputs, outputs, 0).macs == macs


def test_bytes_are_activations_and_weights_but_not_whole_tables() -> None:
    assert work(node("MatMul", None, (6, 7)), [(5, 6)], [(5, 7)], 100).bytes == 100 + 4 * 42
    assert work(node("Gather", (1000, 7), None), [(1000, 7), (3,)], [(3, 7)], 100).bytes == 100


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


def cut_events(path: Path, runs: int) -> None:
    """Take the last runs off a profile."""
    events = json.loads(path.read_text())
    ends = [i for i, one in enumerate(events) if one["name"] == "model_run"]
    path.write_text(json.dumps(events[: ends[-runs]]))


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


def temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go to `folder`, to see what is left of them."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


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


def test_kernels_that_are_only_started_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session("m.onnx", None, (), (), providers=("cuda", "cpu"))
    one = Profiled(session, None, Trail.of(Scope(())), {}, {}, Regions(), ())
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    profiler._warn_of_launches([one])
    assert not caplog.records
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING")
    profiler._warn_of_launches([one])
    assert "CUDA_LAUNCH_BLOCKING=1" in caplog.text


def test_a_session_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx"), temporary(tmp_path / "t", monkeypatch)
    calls: list[int] = []

    def dying(self: Session, feeds: object) -> object:
        def once() -> object:
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("out of memory")
            return run()

        run = original(self, feeds)  # type: ignore[arg-type]
        return once

    original = Session.prepared
    monkeypatch.setattr(Session, "prepared", dying)
    with pytest.raises(RunError, match=r"^m\.onnx: out of memory"):
        profile(path)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text(""), "empty or cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cut off"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: cut_events(path, 2), "no whole round"),
    ],
)
def test_a_spoiled_profile(
    spoil: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx"), temporary(tmp_path / "t", monkeypatch)

    def finish(self: Profiled) -> object:
        written = Path(self.session.runtime.end_profiling())
        spoil(written)  # type: ignore[operator]
        return read_runs(written)

    monkeypatch.setattr(Profiled, "finish", finish)
    with pytest.raises(RunError, match=message):
        profile(path, rounds=1)
    assert not list(folder.iterdir())


FULL = """
import resource, signal, sys, tempfile
from graphprune.errors import RunError
from graphprune.profiler import profile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tempfile.tempdir = sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    profile(sys.argv[1])
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize(("limit", "message"), [(100, "cannot write temporary files"), (20_000, "cut off")])
def test_a_full_disk(limit: int, message: str, tmp_path: Path) -> None:
    path, folder = tiny.save(tmp_path / "m.onnx", layers=1), tmp_path / "t"
    folder.mkdir()
    arguments = [sys.executable, "-c", FULL, path, folder, str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert message in done.stdout and "room" in done.stdout
    assert not list(folder.iterdir())


def test_no_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="cannot write temporary files"):
        profile(path)


def test_errors_of_a_run_name_nodes_as_the_file_does(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 4, 7), np.float32))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    onnx.save(model, path)
    with pytest.raises(RunError, match=r"0/[qkv]_MatMul") as error:
        profile(path, Source.of_npz(tmp_path / "in.npz"), settings=Settings(threads=1, level="disabled"))
    assert "gp." not in str(error.value)


def test_what_onnx_runtime_refuses(tmp_path: Path) -> None:
    model = tiny.model()
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="NoSuchOp"):
        profile(tmp_path / "m.onnx")
    model.graph.node[0].op_type = "RelativePositionBias"  # has no kernel on a CPU
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="0/q_MatMul") as error:
        profile(tmp_path / "m.onnx")
    assert "gp." not in str(error.value)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile(tiny.save(tmp_path_factory.mktemp("m") / "m.onnx"), rounds=2)


def test_the_trace_puts_kernels_below_their_blocks(one: Profile, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("an old one")
    write_trace(one, path)
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    kernels = [e for e in spans if tracks[e["tid"]] == "kernels"]
    blocks = [e for e in spans if tracks[e["tid"]] == "blocks"]
    assert len(kernels) == sum(len(part.kernels) for part in (*one.blocks, *one.outside))
    for kernel in kernels:
        around = [b for b in blocks if b["ts"] <= kernel["ts"] and _end(kernel) <= _end(b)]
        assert kernel["args"]["block"] in [block["name"] for block in around]


def _end(span: dict[str, int]) -> int:
    return span["ts"] + span["dur"]


def test_a_trace_that_cannot_be_written(one: Profile, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="nothing was written"):
        write_trace(one, tmp_path / "nowhere" / "trace.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="nothing was written"):
        write_trace(one, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_the_json(one: Profile) -> None:
    shown = json.loads(json.dumps(to_json(one)))
    assert shown["format"] == 1 and shown["attributed"] == 1 and shown["total_us"] > 0
    assert [block["id"] for block in shown["blocks"]] == [part.name for part in one.blocks]
    assert set(shown["blocks"][0]) >= {"id", "us", "share", "macs", "bytes", "kernels"}
    assert {entry["name"] for entry in shown["outside"]} <= {"head", "final norm", "shapes", "embedding"}
    assert shown["phases"][0]["phase"] == "run"


def test_the_command_shows_layers_blocks_parts_and_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.save(tmp_path / "m.onnx", layers=2)
    cli_profile.profile(
        path, inputs=Inputs(sequence=8), rounds=1, parts=True, kernels=2, trace=tmp_path / "t.json"
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    firsts = [words[0] for words in lines]
    layer = ["encoder.0", "encoder.0.attention", "projections", "scores", "output", "join"]
    start = firsts.index("encoder.0")
    assert firsts[start : start + 7] == [*layer, "encoder.0.ffn"]
    assert lines[0][:2] == ["m.onnx,", "run:"] and lines[-1] == ["wrote", str(tmp_path / "t.json")]
    assert len(lines) - firsts.index("kernel") == 4  # a header, two kernels, the last line
    cli_profile.profile(path, inputs=Inputs(sequence=8), rounds=1, as_json=True)
    assert json.loads(capsys.readouterr().out)["format"] == 1


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
