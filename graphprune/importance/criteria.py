"""The criteria: what each measures, where it comes from, what it says and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from graphprune.errors import SelectionError


@dataclass(frozen=True)
class Criterion:
    """One way to tell how important a block is: the smaller its value, the sooner it can be spared.

    `what` is the formula in words, `says` what a small value means, `silent` what it does not tell.
    """

    name: str
    title: str
    what: str
    paper: str
    url: str
    says: str
    silent: str


_ALL = (
    Criterion(
        "influence",
        "Block influence",
        "1 − cosine of the stream before and after, the mean over positions",
        "Men et al. 2024, ShortGPT",
        "https://arxiv.org/abs/2403.03853",
        "how much a block turns the stream",
        "whether the model's result depends on that turn, or on a change of length",
    ),
    Criterion(
        "angular",
        "Angular distance",
        "arccos(cosine)/π of the stream before and after: of a decoder at the last position, else at all",
        "Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers",
        "https://arxiv.org/abs/2403.17887",
        "the same as an angle, also over several layers in a row: which of them to cut out as one",
        "what is lost: cut layers still change what all later ones read",
    ),
    Criterion(
        "norm",
        "Relative norm of the branch",
        "‖F(x)‖/‖x‖ of what a block adds to the stream x, the mean over positions; of a layer ‖x′ − x‖/‖x‖",
        "Samragh et al. 2023, Weight subcloning (they divide by ‖x + F(x)‖)",
        "https://arxiv.org/abs/2312.09299",
        "how large the branch is beside what passes it",
        "what it is good for: a small vector may decide, a large one may be removed by the next norm",
    ),
    Criterion(
        "loss",
        "Loss without it",
        "the share of the dense model's quality on the data that is lost where it alone is left out",
        "Song et al. 2024, SLEB",
        "https://arxiv.org/abs/2402.09025",
        "what leaving it out costs, by the measure that counts",
        "what it costs once others are gone, and what a repair would give back",
    ),
    Criterion(
        "healed",
        "Error after healing",
        "relative squared error of the last stream where it alone is left out and the rest is healed",
        "Erdogan et al. 2025, NBL, who rank by a bound of what a repair in closed form leaves",
        "https://arxiv.org/abs/2505.21077",
        "what remains of the damage after the repair in closed form",
        "what it costs once others are gone, and how the head takes the error",
    ),
)
CRITERIA: Mapping[str, Criterion] = MappingProxyType({one.name: one for one in _ALL})
# What one pass over the data measures, by looking at the streams alone.
STREAMED = ("influence", "angular", "norm")
CHEAP = (*STREAMED, "loss")


def require_criteria(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in the order of `CRITERIA`. Raises `SelectionError` for one that there is not."""
    asked = tuple(names)
    unknown = next((name for name in asked if name not in CRITERIA), None)
    if unknown is not None or not asked:
        what = "no criterion is named" if unknown is None else f"there is no criterion {unknown!r}"
        raise SelectionError(f"{what}: choose among {', '.join(CRITERIA)}")
    return tuple(name for name in CRITERIA if name in asked)
