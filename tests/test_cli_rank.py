"""The command `rank`: its tables, its JSON and back, its plot, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.cli import run_line
from graphprune.errors import LoadError
from graphprune.importance.exchange import read_ranking, to_json
from graphprune.importance.results import Measured, Ranked, Ranking, Scale, Stretch
from tests import tiny

SMALL = Ranking(
    ("angular", "loss"), "data.csv", 4,
    (
        Ranked("encoder.0.ffn", "ffn", {"angular": Measured(0.2), "loss": Measured(-0.01, 0.9)}),
        Ranked("encoder.1.ffn", "ffn", {"angular": Measured(0.1), "loss": Measured(reason="why")}),
    ),
    (Ranked("encoder.0", "layer", {"angular": Measured(0.3), "loss": Measured(0.5, 0.4)}),),
    (Stretch("encoder", 0, 1, 0.3), Stretch("encoder", 1, 1, None, "why")),
    {"loss": Scale("spearman", "higher", 0.8)},
)  # fmt: skip


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("m")
    x = np.random.default_rng(0).standard_normal((6, 4, tiny.WIDTH), dtype=np.float32)
    np.savez(folder / "x.npz", x=x)
    return ["rank", str(tiny.save(folder / "m.onnx")), "--data", str(folder / "x.npz"), "--metric", "cosine"]


def test_the_tables(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line([*command, "--sort", "loss"]) == 0
    shown = capsys.readouterr().out
    blocks, layers, runs, criteria = [part.splitlines() for part in shown.split("\n\n")[:4]]
    assert blocks[0].startswith("measured on x.npz, 6 examples; cosine of the dense model: 1.0000; #1 is the")
    assert " ".join(blocks[1].split()) == "block influence # angular # norm # loss # cosine"
    rows = [line.split() for line in blocks[2:]]
    assert [row[8] for row in rows] == list("123456") and {row[0] for row in rows} >= {"encoder.2.ffn"}
    assert float(rows[0][9]) >= float(rows[-1][9])
    assert len(layers) == 4 and sum(line.count("*") for line in runs[2:]) == 2
    assert [line.split()[0] for line in criteria if not line.startswith(" ")] == [
        "criterion", "influence", "angular", "norm", "loss",
    ]  # fmt: skip
    assert "arXiv:2403.17887" in shown


def test_the_json_and_back(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line([*command, "--by", "influence, angular,loss", "--json"]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text)
    assert shown["format"] == 1 and shown["by"] == ["influence", "angular", "loss"]
    assert [one["name"] for one in shown["criteria"]] == shown["by"]
    assert shown["scales"] == {"loss": {"metric": "cosine", "better": "higher", "dense": 1.0}}
    first = shown["blocks"][0]
    assert first["id"] == "encoder.0.attention" and first["kind"] == "attention"
    ranks = sorted(one["found"]["influence"]["rank"] for one in shown["blocks"])
    assert ranks == [1, 2, 3, 4, 5, 6]
    best = [one for one in shown["stretches"] if one["best"]]
    assert {one["length"]: min(s["distance"] for s in shown["stretches"] if s["length"] == one["length"])
            for one in best} == {one["length"]: one["distance"] for one in best}  # fmt: skip
    (tmp_path / "rank.json").write_text(text, encoding="utf-8")
    ranking = read_ranking(tmp_path / "rank.json")
    assert json.loads(json.dumps(to_json(ranking))) == shown


def test_the_plot(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    path = tmp_path / "rank.svg"
    assert run_line([*command, "--by", "norm", "--plot", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "influence,entropy"], "there is no criterion 'entropy'"),
        (["--by", ","], "no criterion is named"),
        (["--by", "norm", "--sort", "loss"], "'loss' is not among stream, norm"),
        (["--plot", "rank.png"], "rank.png is no .svg file"),
        (["--plot", "nowhere/rank.svg"], "there is no folder"),
        (["--batch", "0"], "--batch"),
        (["--label", "nothing"], "nothing"),
    ],
)
def test_what_is_refused(
    command: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line([*command, *options]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and not shown.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"by": ["angular", "x"]}, "there is no criterion 'x'"),
        ({"by": ["angular", "norm"]}, "lacks one of"),
        ({"examples": "many"}, "examples: "),
        ({"blocks": [{"id": "a"}]}, "blocks.0.kind: "),
        ({"stretches": [{"stack": "a", "start": 0, "length": 1, "distance": "inf"}]}, "not finite"),
    ],
)
def test_files_that_hold_no_ranking(change: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rank.json"
    path.write_text(json.dumps(to_json(SMALL)), encoding="utf-8")
    assert read_ranking(path) == SMALL
    path.write_text(json.dumps(to_json(SMALL) | change), encoding="utf-8")
    with pytest.raises(LoadError, match="not what `graphprune rank --json` prints") as error:
        read_ranking(path)
    assert said in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(LoadError, match="cannot be read"):
            read_ranking(path)
    (tmp_path / "no.json").write_bytes(b"\xff{")
    with pytest.raises(LoadError, match="not what"):
        read_ranking(tmp_path / "no.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(to_json(SMALL))), JSON, max_size=3), st.booleans())
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, change: dict[str, object], whole: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / "rank.json"
    path.write_text(json.dumps((to_json(SMALL) if whole else {}) | change), encoding="utf-8")
    try:
        ranking = read_ranking(path)
    except LoadError as error:
        assert str(path) in str(error)
    else:
        assert {name for one in ranking.blocks for name in one.found} >= set(ranking.by) or not ranking.blocks
