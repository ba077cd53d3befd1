"""Choose the next token from a model's scores: the greatest, or one drawn at random.

The order is transformers' own: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A token that a draft chose, and its probability in the draft as the draft's scores tell it.

    `shares` [vocabulary] are the probabilities by which it was drawn; None where none was.
    """

    token: int
    confidence: float
    shares: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the most likely one and draws nothing.

    `top_k` 0 and `top_p` 1 leave all tokens to choose from. The same `seed` gives the same
    tokens; row n of a batch draws from the n-th child of the seed, whatever the other rows do.
    Raises `RunError` where a number is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = (
            ("temperature", 0 <= self.temperature < np.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0"),
            ("seed", self.seed >= 0, "0 or more"),
        )
        for name, holds, range_ in allowed:
            if not holds:
                raise RunError(f"{name} {getattr(self, name)} is not {range_}")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise RunError("top_k and top_p draw at random: give a temperature above 0 too")

    def generators(self, rows: int) -> list[np.random.Generator]:
        """One source of random numbers for each row."""
        return [np.random.default_rng((self.seed, row)) for row in range(rows)]

    def choose(
        self,
        scores: Scores,
        texts: Sequence[Sequence[int]],
        randoms: Sequence[np.random.Generator],
        proposals: Sequence[Proposal | None] = (),
    ) -> list[int]:
        """One token for each row of `scores` [rows, vocabulary]; `texts` are the tokens so far.

        Where a draft made `proposals` for them, they are kept as often as can be.
        """
        warped = self._warped(scores, texts)
        if not self.temperature:
            return [int(token) for token in warped.argmax(axis=-1)]
        drafted = proposals or [None] * len(warped)
        return [
            draw(row, random) if one is None else settle(row, random, one)
            for row, random, one in zip(warped, randoms, drafted, strict=True)
        ]

    def propose(self, scores: Scores, text: Sequence[int], random: np.random.Generator) -> Proposal:
        """What a draft chooses by its scores [1, vocabulary]."""
        row = self._warped(scores, [text])[0]
        if not self.temperature:
            token = int(row.argmax())
            return Proposal(token, float(1 / np.exp(row - row[token]).sum()))
        shares = softmax(row.astype(np.float64))
        token = draw(row, random)
        return Proposal(token, float(shares[token]), shares)

    def _warped(self, scores: Scores, texts: Sequence[Sequence[int]]) -> Scores:
        """The scores by which tokens are chosen."""
        if self.repetition_penalty != 1:
            scores = penalize(scores, texts, self.repetition_penalty)
        if not self.temperature:
            return scores
        scores = scores / np.float32(self.temperature)
        if self.top_k:
            scores = keep_top_k(scores, self.top_k)
        return keep_top_p(scores, self.top_p) if self.top_p < 1 else scores


def penalize(scores: Scores, texts: Sequence[Sequence[int]], penalty: float) -> Scores:
    """Make the tokens that a text already has less likely (Keskar et al. 2019, CTRL, section 4.1)."""
    scores = scores.copy()
    for row, text in zip(scores, texts, strict=True):
        used = np.unique(np.asarray(text, np.int64))
        row[used] = np.where(row[used] < 0, row[used] * penalty, row[used] / penalty)
    return scores


def keep_top_k(scores: Scores, k: int) -> Scores:
    """Minus infinity for all but the k greatest scores of each row, and those equal to the k-th."""
    k = min(k, scores.shape[-1])
    least = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < least, np.float32(-np.inf), scores)


def keep_top_p(scores: Scores, p: float) -> Scores:
    """Minus infinity for all but the fewest tokens of each row that have the probability `p` together.

    Nucleus sampling (Holtzman et al. 2020, The Curious Case of Neural Text Degeneration).
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    below = np.cumsum(softmax(np.take_along_axis(scores, order, axis=-1)), axis=-1) <= 1 - p
    below[:, -1] = False
    removed = np.empty_like(below)
    np.put_along_axis(removed, order, below, axis=-1)
    return np.where(removed, np.float32(-np.inf), scores)


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Probabilities along the last axis."""
    powers: NDArray[Any] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def draw(scores: Scores, random: np.random.Generator) -> int:
    """A token by its probability under `scores` [vocabulary]; one of minus infinity is never drawn."""
    sums = np.cumsum(softmax(scores.astype(np.float64)))
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))


def settle(scores: Scores, random: np.random.Generator, proposal: Proposal) -> int:
    """The token of a draft, or another one, so that it has the probabilities under `scores` [vocabulary].

    What was drawn by q is kept with the probability min(1, p/q), else one is drawn by what p has beyond q
    (Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, section 2.3,
    https://arxiv.org/abs/2211.17192).
    """
    token, drafted = proposal.token, proposal.shares
    if drafted is None:
        return draw(scores, random)
    shares = softmax(scores.astype(np.float64))
    if random.random() * drafted[token] < shares[token]:
        return token
    beyond = np.maximum(shares - drafted, 0)
    sums = np.cumsum(beyond)
    if not sums[-1]:  # they differ by rounding alone
        return token
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
