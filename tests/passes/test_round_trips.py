"""What is repeated and dropped again, or turned round twice, is what it was: on graphs of other makers.

Names, order and outputs must come back, the caches' too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import SelectionError
from graphprune.inputs import make_inputs
from tests.passes.agreement import open_session

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
FILES = ("genai_gqa_2l.onnx", pytest.param("gpt2_past_12l.onnx", marks=pytest.mark.matrix))
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")


def outputs(path: Path, past: int) -> dict[str, np.ndarray]:
    session = open_session(path)
    feeds: dict[str, Any] = dict(make_inputs(session, batch=1, sequence=2, past=past))
    return dict(zip((v.name for v in session.get_outputs()), session.run(None, feeds), strict=True))


def same(one: Path, other: Path) -> None:
    sessions = [open_session(path) for path in (one, other)]
    signatures = [[v.name for v in (*s.get_inputs(), *s.get_outputs())] for s in sessions]
    assert signatures[0] == signatures[1]
    for past in (0, 3):
        before, after = (outputs(path, past) for path in (one, other))
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("file", FILES)
def test_a_run_more_and_a_run_less(file: str, tmp_path: Path) -> None:
    source, more, less = SHARED / file, tmp_path / "more.onnx", tmp_path / "less.onnx"
    gp.prune(gp.load(source), repeat_layers="0").save(more)
    before, after = (len(open_session(path).get_inputs()) for path in (source, more))
    assert after > before
    gp.prune(gp.load(more), drop_layers="1").save(less)
    same(source, less)


@pytest.mark.parametrize("file", FILES)
def test_turned_round_twice(file: str, tmp_path: Path) -> None:
    source, once, twice = SHARED / file, tmp_path / "once.onnx", tmp_path / "twice.onnx"
    count = len(gp.inspect(gp.load(source))[0].architecture.stacks[0].layers)
    order = ",".join(str(layer) for layer in reversed(range(count)))
    gp.prune(gp.load(source), reorder_layers=order).save(once)
    gp.prune(gp.load(once), reorder_layers=order).save(twice)
    same(source, twice)


def test_layers_of_a_search_do_not_run_twice() -> None:
    bundle = gp.load(SHARED / "gpt2_greedy_two_subgraphs.onnx")
    with pytest.raises(SelectionError, match="its caches are those of a subgraph"):
        gp.prune(bundle, repeat_layers="1")
