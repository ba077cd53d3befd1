from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.stats import entropy

from graphprune.compare import Limits, difference, verify
from graphprune.errors import RunError
from graphprune.play import Source
from tests import tiny


def test_differences_against_scipy() -> None:
    random = np.random.default_rng(0)
    one, two = random.normal(size=(2, 5, 7))
    found = difference(one, two, logits=True)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (one, two))
    assert found.max_abs == np.abs(one - two).max()
    assert found.mean_abs == pytest.approx(np.abs(one - two).mean())
    assert found.cosine == pytest.approx(np.mean([1 - cosine(a, b) for a, b in zip(one, two, strict=True)]))
    assert found.kl == pytest.approx(np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]))
    assert found.top1 == np.mean(one.argmax(-1) == two.argmax(-1))


def test_masked_logits_and_zero_vectors_are_no_trouble() -> None:
    one = np.array([[0.0, -np.inf], [0.0, 0.0]])
    assert difference(one, one, logits=True).kl == 0
    assert difference(np.zeros((2, 3)), np.zeros((2, 3)), logits=False).cosine == 1


def test_limits() -> None:
    found = [difference(np.ones((1, 2)), np.ones((1, 2)) * 1.5, output="y", logits=False)]
    assert Limits().broken(found) == ()
    assert Limits(max_abs=0.5, min_cosine=0.99).broken(found) == ()
    assert Limits(max_abs=0.4, max_mean_abs=0.6).broken(found) == ("y: max_abs 0.5, allowed max 0.4",)
    with pytest.raises(RunError, match="--max-kl: no output is called logits"):
        Limits(max_kl=1).broken(found)
    broken = [difference(np.ones((1, 2)), np.full((1, 2), np.nan), output="y", logits=False)]
    assert len(Limits(max_abs=9, max_mean_abs=9, min_cosine=0).broken(broken)) == 3


def test_two_models_on_the_same_inputs(tmp_path: Path) -> None:
    a, b = (tiny.save(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1))
    x = np.random.default_rng(0).normal(size=(2, 4, tiny.WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    (same,) = verify(a, a, Source.of_npz(tmp_path / "x.npz")).differences
    assert (same.max_abs, same.cosine) == (0, pytest.approx(1))
    (other,) = verify(a, b, Source.of_npz(tmp_path / "x.npz")).differences
    expected = np.abs(tiny.reference(x) - tiny.reference(x, seed=1)).max()
    assert other.max_abs == pytest.approx(expected, rel=1e-4)
