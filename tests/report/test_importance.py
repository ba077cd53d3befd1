"""The section and the plot of a ranking: its numbers where they belong, its names escaped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib")

import graphprune as gp
from graphprune.cli import run_line
from graphprune.importance.criteria import CRITERIA
from graphprune.importance.exchange import to_json
from graphprune.importance.results import Measured, Ranked, Ranking, Scale, Stretch
from graphprune.report.figures import standalone
from graphprune.report.plot_importance import importance_plot
from tests import tiny
from tests.report.conftest import HOSTILE, QUICK
from tests.report.test_page import Read
from tests.report.test_plots import HOSTILE as UNPRINTABLE
from tests.report.test_plots import marks

BY = ("influence", "loss")


def ranked(id: str, kind: str, influence: float | None, loss: float) -> Ranked:
    found = {"influence": Measured(influence, reason="" if influence is not None else "why")}
    return Ranked(id, kind, found | {"loss": Measured(loss, 0.8 * (1 - loss))})


RANKING = Ranking(
    BY, "data \udcff.csv", 7,
    (
        ranked("encoder.0.attention", "attention", 0.2, 0.3), ranked("encoder.0.ffn", "ffn", None, -0.1),
        ranked(f"{HOSTILE}.1.odd", HOSTILE, 0.4, 0.0),
    ),
    (ranked("encoder.0", "layer", 0.3, 0.5), ranked(f"{HOSTILE}.1", "layer", 0.1, 0.6)),
    (Stretch("encoder", 0, 2, 0.25), Stretch("encoder", 1, 2, 0.2), Stretch("encoder", 0, 1, 0.1)),
    {"loss": Scale("spearman", "higher", 0.8)},
)  # fmt: skip


def heights(path: ElementTree.Element) -> float:
    numbers = [float(one) for one in path.attrib["d"].replace("M", " ").replace("L", " ").strip("z ").split()]
    return max(numbers[1::2]) - min(numbers[1::2])


def test_a_bar_for_every_value() -> None:
    bars = marks(importance_plot(RANKING), "path")
    words = [word for word in bars if word.startswith("encoder.0.attention")]
    assert words == ["encoder.0.attention: 0.200, #1", "encoder.0.attention: 30.0%, #3"]
    odd = next(word for word in bars if word.endswith("0.400, #2"))
    assert heights(bars[odd]) == pytest.approx(2 * heights(bars[words[0]]), rel=0.01)
    assert heights(bars[words[1]]) == pytest.approx(3 * heights(bars["encoder.0.ffn: -10.0%, #1"]), rel=0.03)
    assert not [word for word in bars if "encoder.0.ffn: not" in word]


def test_a_plot_alone() -> None:
    text = standalone(importance_plot(RANKING, name="own"))
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("}svg") and "var(" not in text and "<script" not in text
    assert importance_plot(RANKING) == importance_plot(RANKING)
    odd = Ranking(BY, "", 1, (ranked(f"{UNPRINTABLE}.0.ffn", "ffn", 0.1, 0.1),), ())
    assert "\\udcff" not in repr(standalone(importance_plot(odd)))
    many = tuple(ranked(f"decoder.{i}.ffn", "ffn", i / 99, i / 99) for i in range(96))
    assert len(marks(importance_plot(Ranking(BY, "data", 1, many, ())), "path")) == 2 * 96


def test_the_section(tmp_path: Path) -> None:
    path = gp.write_report(tiny.save(tmp_path / "m.onnx"), tmp_path / "m.html", ranking=RANKING, **QUICK)
    text = path.read_text(encoding="utf-8")
    assert "<script>document" not in text and "data \ufffd.csv" in text and 'id="importance"' in text
    tables = Read(text).tables
    assert tables["Blocks"] == [
        ["Block", "Block influence", "#", "Loss without it", "#", "spearman"],
        ["encoder.0.attention", "0.200", "1", "30.0%", "3", "0.5600"],
        ["encoder.0.ffn", "–", "–", "-10.0%", "1", "0.8800"],
        [f"{HOSTILE}.1.odd", "0.400", "2", "0.0%", "2", "0.8000"],
    ]
    assert [row[0] for row in tables["Layers"]] == ["Layer", "encoder.0", f"{HOSTILE}.1"]
    assert tables["The nearest layers in a row"][1:] == [["encoder 1 to 2", "2", "0.200"]]
    for name in BY:
        assert CRITERIA[name].says in text and CRITERIA[name].url in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, given = tiny.save(tmp_path / "m.onnx"), tmp_path / "m.html", tmp_path / "rank.json"
    given.write_text(json.dumps(to_json(replace(RANKING, data="data.csv"))), encoding="utf-8")
    options = ["--rounds", "2", "--sizes", "1x4", "--sequence", "4", "--out", str(out)]
    assert run_line(["report", str(model), *options, "--ranking", str(given)]) == 0
    assert 'id="importance"' in out.read_text(encoding="utf-8")
    given.write_text("{}", encoding="utf-8")
    out.unlink()
    assert run_line(["report", str(model), *options, "--ranking", str(given)]) == 2
    assert "not what `graphprune rank --json` prints" in capsys.readouterr().err and not out.exists()
