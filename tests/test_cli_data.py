"""The options for data, as commands take them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from graphprune.cli_data import DataOptions
from graphprune.cli_groups import with_groups
from graphprune.data.dataset import Data

found: list[Data] = []


def keep(data: DataOptions = DataOptions()) -> None:
    """Read the data."""
    found.append(data.data())


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(with_groups(keep))
    found.clear()
    return made


def test_all_options(app: typer.Typer, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("one,two,score\n" + "".join(f"a {n},b {n},{n}\n" for n in range(9)))
    options = ["--data", str(path), "--text", "0, two", "--label", "score", "--metric", "spearman"]
    result = CliRunner().invoke(app, [*options, "--length", "7", "--limit", "5"], catch_exceptions=False)
    assert result.exit_code == 0
    (data,) = found
    assert (data.examples, data.length) == (5, 7) and data.metric is not None
    assert data.metric.name == "spearman" and data.labels is not None
    assert data.labels.tolist() == data.chosen.tolist()


def test_none(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, []).exit_code == 0
    assert (found[0].name, found[0].metric) == ("the sample text", None)


def test_too_short(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--length", "1"]).exit_code == 2
