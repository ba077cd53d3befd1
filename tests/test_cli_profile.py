from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphprune import cli_profile
from graphprune.cli_groups import Inputs
from graphprune.cli_profile_json import to_json
from graphprune.errors import SaveError
from graphprune.profiler import Profile, profile
from graphprune.tracing import write_trace
from tests import tiny


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
