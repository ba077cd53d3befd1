from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import RunError
from graphprune.skipping.rules import fit_rules, values_of
from graphprune.skipping.watching import Seen


def seen(count: int = 400, seed: int = 0) -> dict[str, Seen]:
    """Of one block the nines are a linear map of the pooled stream, of the other they are noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 4))
    linear = 0.5 + x @ np.array([0.1, -0.2, 0.0, 0.05])
    noise = random.standard_normal(count)
    return {
        "decoder.0.ffn": Seen(x, np.full(count, np.nan), 1 - 10**-linear),
        "decoder.1.ffn": Seen(x, np.linspace(0, 1, count), 1 - 10**-noise),
    }


def test_routers_find_what_is_linear() -> None:
    first, second = fit_rules(seen(), "router", 0.25)
    assert first.router is not None and second.router is not None
    np.testing.assert_allclose(first.router.weight[:, 0], [0.1, -0.2, 0.0, 0.05], atol=0.03)
    assert first.explained is not None and first.explained > 0.95
    assert second.explained is not None and second.explained < 0.1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_threshold_leaves_out_the_share(share: float) -> None:
    rules = fit_rules(seen(), "router", share)
    assert len({rule.threshold for rule in rules}) == 1
    assert np.mean([rule.skipped for rule in rules]) == pytest.approx(share, abs=0.01)


def test_cosines_need_a_block_before() -> None:
    (rule,) = fit_rules(seen(), "cosine", 0.5)
    assert rule.block == "decoder.1.ffn" and rule.router is None
    assert rule.threshold == pytest.approx(0.75, abs=0.01)  # the middle of the second half
    with pytest.raises(RunError, match="no block has a score"):
        fit_rules({"decoder.0.ffn": seen()["decoder.0.ffn"]}, "cosine", 0.5)


def test_values_as_the_pass_reads_them() -> None:
    values = values_of(fit_rules(seen(), "router", 0.25))
    assert set(values) == {
        f"decoder.{i}.ffn/{key}" for i in (0, 1) for key in ("router", "router_bias", "threshold")
    }
    assert values["decoder.0.ffn/router"].shape == (4,) and values["decoder.0.ffn/router_bias"].shape == ()


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(RunError, match="between 0 and 1"):
        fit_rules(seen(), "router", share)


def test_too_few_examples() -> None:
    with pytest.raises(RunError, match="too few examples"):
        fit_rules(seen(3), "router", 0.5)
