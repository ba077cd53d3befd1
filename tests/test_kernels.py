from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import RunError
from graphprune.kernels import distinct, read_runs
from graphprune.profilercost import Cost


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
