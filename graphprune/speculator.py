"""Speculative decoding of one text: drafted tokens are scored together, before they are asked for.

A `Speculator` stands in the place of a `Lane`: it gives the whole model's scores after each token that it
is told was chosen. Where that is the one it drafted, they are there already. So the text is what it would
be without drafts, whichever rule chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphprune.errors import RunError
from graphprune.speculation import Drafting, Drafts, Shortcut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.lane import Lane
    from graphprune.sampling import Proposal

    Scores = NDArray[np.float32]
    # Chooses a token for a draft by its scores [1, vocabulary] and the tokens so far.
    Propose = Callable[[Scores, Sequence[int]], Proposal]

# Tokens that are scored one by one and at once, and how far these may be apart, over max(1, the largest).
_TRIAL, _TOLERANCE = 3, 1e-2


@dataclass(frozen=True, eq=False)
class _Ahead:
    """A drafted token, and what the whole model scores after it."""

    proposal: Proposal
    scores: Scores


class Speculator:
    """One text in a lane of its own, drafted by `propose` and verified by the whole model.

    `limit` is the number of tokens that the text can have. Raises `RunError` where the model cannot
    score several tokens at once.
    """

    def __init__(
        self,
        lane: Lane,
        shortcut: Shortcut,
        drafting: Drafting,
        propose: Propose,
        prompt: Sequence[int],
        limit: int,
    ) -> None:
        self._lane, self._shortcut, self._drafting = lane, shortcut, drafting
        self._propose, self._limit = propose, limit
        self._text = list(prompt)
        self._ahead: deque[_Ahead] = deque()
        self._drafted = self._accepted = self._verifications = 0

    @property
    def length(self) -> int:
        """The tokens of the text so far."""
        return len(self._text)

    @property
    def cache_bytes(self) -> int:
        """What the caches take now."""
        return self._lane.cache_bytes

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """What was drafted for the place that the last scores are about; empty where nothing was."""
        return (self._ahead[0].proposal,) if self._ahead else ()

    @property
    def drafts(self) -> Drafts:
        """What has become of drafts by now."""
        return Drafts(self._drafted, self._accepted, self._verifications)

    def begin(self) -> Scores:
        """Read the prompt: the scores [1, vocabulary] of the token after it."""
        scores = self._lane.begin()
        if not self._shortcut.proved:
            self._shortcut.proved = _proves(self._lane, int(scores[0].argmax()))
        return scores

    def advance(self, tokens: Sequence[int]) -> Scores:
        """Take the token that was chosen: the scores of the one after it."""
        (token,) = tokens
        self._text.append(token)
        if self._ahead and self._ahead[0].proposal.token == token:
            self._accepted += 1
            return self._ahead.popleft().scores
        self._ahead.clear()
        self._lane.crop(len(self._text) - 1)
        return self._verify(token, self._draft(token))

    def _draft(self, token: int) -> list[Proposal]:
        """Tokens after `token`, by runs that take the shortcut; these leave no trace in the lane."""
        drafted: list[Proposal] = []
        room = min(self._drafting.tokens, self._limit - len(self._text) - 1)
        mark = self._lane.mark()
        while len(drafted) < room:
            scores = self._lane.extend([[token]], shortcut=True)[:, -1]
            text = (*self._text, *(one.token for one in drafted))
            drafted.append(self._propose(scores, text))
            token = drafted[-1].token
            if drafted[-1].confidence < self._drafting.confidence:
                break
        self._lane.rewind(mark)
        return drafted

    def _verify(self, token: int, drafted: Sequence[Proposal]) -> Scores:
        """The scores after `token`; those after each drafted one are kept until it is chosen."""
        scores = self._lane.extend([[token, *(one.token for one in drafted)]])
        self._verifications += 1
        self._drafted += len(drafted)
        self._ahead += (_Ahead(one, scores[:, place + 1]) for place, one in enumerate(drafted))
        return scores[:, 0]


def _proves(lane: Lane, token: int) -> bool:
    """Whether a lane that has read its prompt scores tokens at once as one by one; False: it has no room.

    Raises `RunError` where it does not.
    """
    if lane.room < _TRIAL:
        return False
    mark, tokens, singly = lane.mark(), [token], []
    for _ in range(_TRIAL):
        singly.append(lane.extend([tokens[-1:]])[:, -1])
        tokens.append(int(singly[-1][0].argmax()))
    lane.rewind(mark)
    together = lane.extend([tokens[:_TRIAL]])
    lane.crop(mark.width + 1)
    lane.rewind(mark)
    wanted = np.stack(singly, axis=1)
    apart = float(np.abs(together - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
    if not apart <= _TOLERANCE:
        raise RunError(
            f"{lane.name} cannot verify drafts: its scores for several tokens at once are {apart:.1g} apart "
            "from those one by one, because later tokens are not masked, or values are rounded together"
        )
    return True
