"""Rules fitted to what was seen: a router for each block, and one threshold for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.fits import ridges
from graphprune.healing.moments import Affine, Moments
from graphprune.skipping.watching import Seen

Policy = Literal["cosine", "router"]
_STRENGTHS = (10.0, 1.0, 0.1)  # λ by the mean eigenvalue: the one that is best on held-out examples is taken
_LEAST = 4  # examples
_FIT = 0.5  # of the examples, those that routers are fitted to


@dataclass(frozen=True, eq=False)
class Rule:
    """When a block does not run: where its score is over `threshold`.

    `skipped` is the share of held-out examples on which that is so, `alike` the mean over these of the cosine
    of the model's outputs with and without the block (NaN where there are none), and `explained` R² of its
    router there.
    """

    block: str
    threshold: float
    skipped: float
    alike: float
    router: Affine | None = None
    explained: float | None = None


def fit_rules(seen: Mapping[str, Seen], policy: Policy, share: float) -> tuple[Rule, ...]:
    """One rule for each block, so that over all of them `share` of the runs of blocks are left out.

    Routers (ridge; the target is −log₁₀(1 − the cosine of the outputs with and without the block)) are
    fitted to the first half of the examples. Scores on the others give the threshold, one for all blocks:
    the score that a `share` of them is above. Raises `RunError` where there are too few examples, or no
    block has a score.
    """
    if not 0 < share < 1:
        raise RunError(f"the share of blocks to skip is between 0 and 1, and {share} was given")
    count = min((len(one.alike) for one in seen.values()), default=0)
    if count < _LEAST:
        raise RunError("there are too few examples to fit rules to: give at least four")
    half = round(_FIT * count)
    fitted = {id: _score(one, policy, half) for id, one in seen.items()}
    scores = {id: score for id, (score, _) in fitted.items() if np.isfinite(score).all()}
    if not scores:
        raise RunError("no block has a score: with the policy cosine, one has to stand before it")
    threshold = float(np.float32(np.quantile(np.concatenate([*scores.values()]), 1 - share)))
    return tuple(_rule(id, seen[id], score, fitted[id][1], threshold, half) for id, score in scores.items())


def _score(one: Seen, policy: Policy, half: int) -> tuple[NDArray[np.float64], Affine | None]:
    """The scores of the held-out examples."""
    if policy == "cosine":
        return one.near[half:], None
    x, y = one.pooled.astype(np.float32), nines(one.alike).astype(np.float32)[:, None]
    moments = Moments()
    moments.add(x[:half], y[:half])
    best = min(ridges(moments, _STRENGTHS), key=lambda map: float(((map(x[half:]) - y[half:]) ** 2).mean()))
    return best(x[half:])[:, 0].astype(np.float64), best


def nines(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """−log₁₀(1 − cosine), at most 7: how many nines it begins with. Nearer to linear than the cosine."""
    return -np.log10(np.maximum(1 - cosine, 1e-7))


def _rule(
    id: str, one: Seen, score: NDArray[Any], router: Affine | None, threshold: float, half: int
) -> Rule:
    over, alike = score > threshold, one.alike[half:]
    wanted = nines(alike)
    spread = float(wanted.var())
    explained = 1 - float(((score - wanted) ** 2).mean()) / spread if router and spread > 0 else None
    mean = float(alike[over].mean()) if over.any() else float("nan")
    return Rule(id, threshold, float(over.mean()), mean, router, explained)


def values_of(rules: tuple[Rule, ...]) -> dict[str, NDArray[np.float32]]:
    """The arrays that the pass `insert_skips` reads, by their names in an .npz file."""
    values: dict[str, NDArray[np.float32]] = {}
    for rule in rules:
        values[f"{rule.block}/threshold"] = np.array(rule.threshold, np.float32)
        if rule.router is not None:
            values[f"{rule.block}/router"] = rule.router.weight[:, 0].astype(np.float32)
            values[f"{rule.block}/router_bias"] = np.array(rule.router.bias[0], np.float32)
    return values
