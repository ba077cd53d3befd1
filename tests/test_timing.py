from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphprune.errors import RunError
from graphprune.timing import bench, ratio_interval
from tests import tiny


def test_the_interval_holds_the_true_ratio_and_gives_the_same_twice() -> None:
    random = np.random.default_rng(0)
    drift = random.lognormal(0, 0.5, 400)  # meets both models of a round alike
    first, second = drift * random.normal(10, 0.1, 400), drift * random.normal(7, 0.1, 400)
    ratio, low, high = ratio_interval(second, first)
    assert low < 0.7 < high
    assert low <= ratio <= high
    assert (ratio, low, high) == ratio_interval(second, first)


def test_models_in_turns(tmp_path: Path) -> None:
    paths = [tiny.save(tmp_path / f"{layers}.onnx", layers=layers) for layers in (1, 2)]
    rounds: list[None] = []
    first, second = bench(paths, rounds=4, warmup=1, on_round=lambda: rounds.append(None))
    assert (first.rounds, len(rounds)) == (4, 5)
    assert first.median > 0 and first.ratio is None
    assert second.low is not None and second.low <= second.high
    with pytest.raises(RunError, match="2 rounds at least"):
        bench(paths, rounds=1)
