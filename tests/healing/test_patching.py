from __future__ import annotations

import numpy as np
import pytest

from graphprune.healing.patching import Magnitudes, rotation_of


@pytest.mark.parametrize("width", [1, 5, 6, 8, 96, 384])
def test_a_rotation_is_orthogonal_and_no_channel_stands_out(width: int) -> None:
    rotation = rotation_of(width)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(width), atol=1e-12)
    assert np.abs(rotation).max() * np.sqrt(width) < 1.5


def test_streams_that_only_grew_are_grown() -> None:
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    magnitudes = Magnitudes.of(8)
    for part in (x[:11], x[11:]):
        magnitudes.add(part, 3 * part)
    np.testing.assert_allclose(x + magnitudes.patch()(x), 3 * x, rtol=1e-4, atol=1e-5)


def test_every_rotated_channel_gets_the_mean_magnitude_that_it_should_have() -> None:
    rng = np.random.default_rng(0)
    before, behind = (rng.standard_normal((40, 6)).astype(np.float32) for _ in range(2))
    magnitudes = Magnitudes.of(6)
    magnitudes.add(before, behind)
    patched = (before + magnitudes.patch()(before)) @ rotation_of(6)
    expected = np.abs(behind @ rotation_of(6)).mean(0)
    np.testing.assert_allclose(np.abs(patched).mean(0), expected, rtol=1e-4)


def test_a_channel_that_is_always_zero_stays_zero() -> None:
    magnitudes = Magnitudes.of(4)
    magnitudes.add(np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32))
    assert not magnitudes.patch().weight.any()
