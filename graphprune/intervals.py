"""The ratio of two models' times, and an interval for it that holds.

Three things make two times of one model differ. The machine drifts: so both models are timed in the
same round, and their ratio is taken there. Rounds scatter. And a model that is loaded again runs a
little faster or slower than before, for as long as it stays loaded, since its weights lie elsewhere in
memory: no number of rounds shows that, so every model is loaded several times.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Fewer loads cannot carry an interval of 95%: of 5, all lie on one side in 1 of 16 cases.
MIN_LOADS = 6
_RESAMPLES = 2000
# Values drawn at once: a bound on memory.
_DRAWN = 1 << 22


def ratio_interval(
    times: NDArray[np.float64], base: NDArray[np.float64]
) -> tuple[float, float | None, float | None]:
    """The ratio of `times` to `base`, both [loads, rounds], and its 95% interval.

    The ratio is the median of those of the rounds. The interval is a nested bootstrap: loads are drawn
    anew, and from each its rounds, as pairs (Davison and Hinkley, 1997, "Bootstrap Methods", 3.8). Few
    loads show too little scatter, so the percentiles lie further out, as Student's t is wider than the
    normal distribution (the expanded percentile interval of Hesterberg, 2015, "What Teachers Should Know
    about the Bootstrap"). Both ends are None where there are fewer than `MIN_LOADS` loads.
    """
    import numpy as np

    logs = np.log(times) - np.log(base)
    ratio = math.exp(float(np.median(logs)))
    if len(logs) < MIN_LOADS:
        return ratio, None, None
    tail = _tail(len(logs))
    low, high = np.exp(np.quantile(_resampled(logs), (tail, 1 - tail)))
    return ratio, float(low), float(high)


def _resampled(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The medians of `logs` [loads, rounds] drawn anew, `_RESAMPLES` of them."""
    import numpy as np

    rng = np.random.default_rng(0)
    loads, rounds = logs.shape
    each = max(1, _DRAWN // logs.size)
    medians: list[NDArray[np.float64]] = []
    for start in range(0, _RESAMPLES, each):
        count = min(each, _RESAMPLES - start)
        load = rng.integers(0, loads, (count, loads, 1))
        drawn = logs[load, rng.integers(0, rounds, (count, loads, rounds))]
        medians.append(np.median(drawn.reshape(count, -1), axis=1))
    return np.concatenate(medians)


def _tail(loads: int) -> float:
    """The share of resamples beyond each end of a 95% interval."""
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(loads / (loads - 1)) * t.ppf(0.975, loads - 1)))
