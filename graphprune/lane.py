"""Texts that go through a decoder side by side, and the caches that go along with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.decodercall import DecoderCall, bytes_of, cropped
from graphprune.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.language import LanguageModel

    Scores = NDArray[np.float32]
    Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in the texts of a lane to which it can go back: what `Lane.mark` gives."""

    width: int
    lengths: Ids
    ids: Ids
    cache: dict[str, Any]


class Lane:
    """Texts that have one length, or are filled up to one; the state of their decoding.

    `prompts` are ids, `others` the inputs that stay the same at every step, by name.
    Raises `RunError` where the model takes an input that has no value.
    """

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], others: Mapping[str, NDArray[Any]]
    ) -> None:
        self._model = model
        step = model.step or model.first
        self._first, self._next = (DecoderCall(one, others) for one in (model.first, step))
        self._short = DecoderCall(step, others, model.shortcut) if model.shortcut else None
        self._lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._width = int(self._lengths.max())
        self._fill = self._width - self._lengths if model.padding == "left" else np.zeros_like(self._lengths)
        self._even = bool((self._lengths == self._width).all())
        self._ids = np.full((len(prompts), self._width), model.rules.pad, np.int64)
        for row, prompt, fill in zip(self._ids, prompts, self._fill, strict=True):
            row[fill : fill + len(prompt)] = prompt
        self._cache: dict[str, Any] = {}
        self._growing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the file that takes further tokens."""
        return self._next.name

    @property
    def length(self) -> int:
        """The tokens of the longest text so far."""
        return self._width

    @property
    def room(self) -> int:
        """The tokens for which the model has positions yet; a great number where that is not known."""
        return sys.maxsize if self._model.context is None else self._model.context - self._width

    @property
    def cache_bytes(self) -> int:
        """What the caches take now."""
        return sum(bytes_of(value) for value in self._cache.values())

    def begin(self) -> Scores:
        """Read the prompts: the scores [texts, vocabulary] of the token after each."""
        first, ids = self._first, self._ids
        self._cache = first.empty(len(ids))
        if not first.ports.single:
            return self._last(self._run(first, ids, self._width), ids.shape[1])
        for place in range(self._width):
            scores = self._run(first, ids[:, place : place + 1], place + 1)
        return self._last(scores, 1)

    def advance(self, tokens: Sequence[int]) -> Scores:
        """Take one more token for each text: the scores of the one after it."""
        scores = self._extend(np.array(tokens, np.int64)[:, None], self._next)
        return self._last(scores, 1 if self._model.step else self._width)

    def extend(self, tokens: Sequence[Sequence[int]], *, shortcut: bool = False) -> Scores:
        """Take as many more tokens for each text: the scores [texts, tokens, vocabulary] after each of them.

        With `shortcut` some blocks are passed by, and their caches do not have these tokens. The texts have
        one length. Raises `RunError` where the file does not give so many scores.
        """
        more = np.array(tokens, np.int64)
        call = self._short if shortcut and self._short else self._next
        scores = self._extend(more, call)
        if scores.ndim == 2:
            scores = scores[:, None]
        if scores.shape[1] < more.shape[1]:
            raise RunError(f"{call.name} gives scores after the last token only: it cannot verify drafts")
        return scores[:, -more.shape[1] :].astype(np.float32, copy=False)

    def mark(self) -> Mark:
        """Where the texts are now."""
        return Mark(self._width, self._lengths, self._ids, self._cache)

    def rewind(self, mark: Mark) -> None:
        """Go back to where the texts were."""
        self._width, self._lengths = mark.width, mark.lengths
        self._ids, self._cache = mark.ids, mark.cache

    def crop(self, length: int) -> None:
        """Forget the tokens from this length on. Raises `RunError` where a cache does not hold all tokens."""
        if length == self._width:
            return
        kept = {slot: self._cropped(slot, length) for slot in self._growing}
        self._cache = self._cache | kept
        self._lengths = self._lengths - (self._width - length)
        self._width = length
        if self._model.step is None:
            self._ids = self._ids[:, :length]

    def _cropped(self, slot: str, length: int) -> Any:
        value = self._cache[slot]
        held = value.shape()[-2]
        if held != self._width:
            raise RunError(
                f"{self.name}: the cache {slot} holds {held} of {self._width} tokens: it cannot go back to "
                "where a draft was wrong"
            )
        return cropped(value, length)

    def _extend(self, more: Ids, call: DecoderCall) -> NDArray[Any]:
        self._width += more.shape[1]
        self._lengths = self._lengths + more.shape[1]
        if self._model.step is not None:
            return self._run(call, more, self._width)
        self._ids = np.concatenate([self._ids, more], axis=1)
        return self._run(call, self._ids, self._width)

    def _run(self, call: DecoderCall, ids: Ids, width: int) -> NDArray[Any]:
        """The file's scores; what it puts into the caches is kept."""
        mask = self._mask(width) if call.ports.mask else None
        places = self._places(ids.shape[1], width) if call.ports.positions else None
        scores, cache = call.run(ids, mask, places, width - ids.shape[1], self._cache)
        self._cache = self._cache | cache
        if call is self._next:
            self._growing = tuple(slot for slot in cache if "encoder" not in slot.split("."))
        return scores

    def _mask(self, width: int) -> NDArray[np.bool_]:
        """Which columns are tokens of the text."""
        if self._even:
            return np.ones((len(self._lengths), width), np.bool_)
        columns = np.arange(width)
        if self._model.padding == "right":
            return columns < self._lengths[:, None]
        return columns >= self._fill[:, None]

    def _places(self, count: int, width: int) -> Ids:
        """The positions of the last `count` columns in their texts; 0 where there is no text."""
        if self._model.padding == "right" and count == 1:
            return self._lengths[:, None] - 1
        places: Ids = np.maximum(np.arange(width - count, width) - self._fill[:, None], 0)
        return places

    def _last(self, scores: NDArray[Any], count: int) -> Scores:
        """The scores after each text's last token, as float32."""
        if scores.ndim == 2:
            last = scores
        elif self._even or count == 1 or self._model.padding != "right":
            last = scores[:, -1]
        elif scores.shape[1] == count:
            last = scores[np.arange(len(scores)), self._lengths - 1]
        else:
            raise RunError(f"{self.name} gives scores after the last column only: give prompts of one length")
        return last.astype(np.float32, copy=False)
