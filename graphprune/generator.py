"""Make text with a bundle: a small loop on ONNX Runtime, token by token.

```python
for step in (loop := gp.generate_steps("gpt2-onnx", ["Once upon"], max_new_tokens=20)):
    print(step.texts[0], end="", flush=True)
print(loop.result().completions[0].reason)
```
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import RunError
from graphprune.language import LanguageModel, open_model
from graphprune.prompting import Group, read_prompts
from graphprune.sampling import Proposal, Sampling
from graphprune.speculation import Drafting, Drafts
from graphprune.speculator import Speculator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from graphprune.genconfig import GenerationRules
    from graphprune.lane import Lane
    from graphprune.settings import Settings
    from graphprune.text import Transcript

    Scores = NDArray[np.float32]

Reason = Literal["eos", "stop", "length", "context", "unfinished"]


@dataclass(frozen=True)
class Completion:
    """What a model made of one prompt: ids of new tokens, their text, and why it ended there.

    `prompt` are the ids that the decoder was given. `text` is None without a tokenizer. `reason`
    is "eos" (the model ended it; that token is the last of `tokens`), "stop" (a stop string,
    which the text does not have), "length", "context" (no position is left), or "unfinished".
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str | None
    reason: Reason


@dataclass(frozen=True)
class Generation:
    """All completions, in the order of the prompts, and what they took.

    `prefill_s` until the first token of each, encoder included; `decode_s` for the others. Seconds
    that the caller spent between steps do not count. `prompt_tokens` were read and `decoded` made
    in those times. `cache_bytes` is the size of all caches at the end. `drafts` tells what became of
    drafts; None where none were made.
    """

    completions: tuple[Completion, ...]
    prompt_tokens: int
    decoded: int
    prefill_s: float
    decode_s: float
    cache_bytes: int
    drafts: Drafts | None = None

    @property
    def prefill_per_s(self) -> float:
        """Tokens of prompts read a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens made a second, after the first."""
        return self.decoded / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """One step of all texts: the token of each (None where it had ended), and the text that it adds.

    Texts grow by whole characters, so that some steps add none; together they are the
    completion's text. `scores` [texts, vocabulary] are the model's own, before any rule.
    """

    tokens: tuple[int | None, ...]
    texts: tuple[str, ...]
    scores: Scores


def generate(
    model: str | Path | LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]] = (),
    **options: Any,
) -> Generation:
    """Complete `prompts`; the options and errors are those of `generate_steps`."""
    steps = generate_steps(model, prompts, **options)
    for _ in steps:
        pass
    return steps.result()


def generate_steps(
    model: str | Path | LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]] = (),
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    stop_tokens: Collection[int] = (),
    ignore_eos: bool = False,
    start: Sequence[int] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    settings: Settings | None = None,
    drafting: Drafting | None = None,
) -> Steps:
    """Complete prompts step by step; what the model at this path, or loaded by `open_model`, makes of them.

    `prompts` are texts or ids of tokens; for an encoder-decoder model they go to the encoder, and
    `start` replaces the tokens that its texts begin with. `inputs` are arrays by the names of
    further inputs (`input_features`, say). Each text ends at one of `stop_tokens` or the model's
    own end (unless `ignore_eos`), before the first of the strings in `stop`, or after
    `max_new_tokens`. `settings` say how it is run, where a path is given.

    With `drafting` the model drafts tokens by itself without some blocks, and verifies several at once
    (self-speculative decoding): the same tokens where the most likely one is taken, the same distribution
    where they are drawn. Every text runs alone then: their drafts are kept for different lengths, and not
    all models can go on from caches of different lengths side by side. A model that is loaded already must
    have been opened for it (`open_model(path, draft_skip=…)`).

    Raises `LoadError` where the model cannot be read, `RunError` where it makes no text or the
    prompts do not fit it.
    """
    if max_new_tokens < 1:
        raise RunError(f"max_new_tokens {max_new_tokens} is less than 1")
    if "" in stop:
        raise RunError("a stop string is empty")
    if not isinstance(model, LanguageModel):
        model = open_model(model, settings, draft_skip=drafting.skip if drafting else None)
    if drafting and model.shortcut is None:
        raise RunError(f"{model.path} was not opened for drafts: give draft_skip to open_model")
    if stop and model.tokenizer is None:
        raise RunError(f"{model.path}: stop strings need a tokenizer.json beside the model: give stop tokens")
    groups = read_prompts(model, prompts, start, inputs or {})
    rules = model.rules.without_end() if ignore_eos else model.rules
    ends = frozenset(stop_tokens) | rules.eos
    if drafting:
        groups = tuple(alone for group in groups for alone in group.apart())
    return Steps(model, groups, rules, ends, tuple(stop), max_new_tokens, sampling or Sampling(), drafting)


@dataclass
class _Text:
    """One text in the making."""

    prompt: tuple[int, ...]
    tokens: list[int]
    transcript: Transcript | None
    reason: Reason = "unfinished"

    @property
    def going(self) -> bool:
        """Whether more is to come."""
        return self.reason == "unfinished"

    def completion(self) -> Completion:
        """What there is of it now."""
        said = self.transcript.text if self.transcript else None
        return Completion(self.prompt, tuple(self.tokens), said, self.reason)


class Steps(Iterator[Step]):
    """The steps of a generation, made as they are asked for; `result` tells what there is so far."""

    def __init__(
        self,
        model: LanguageModel,
        groups: Sequence[Group],
        rules: GenerationRules,
        ends: frozenset[int],
        stop: tuple[str, ...],
        max_new_tokens: int,
        sampling: Sampling,
        drafting: Drafting | None = None,
    ) -> None:
        self._model, self._groups, self._rules, self._ends = model, groups, rules, ends
        self._max, self._sampling, self._drafting = max_new_tokens, sampling, drafting
        self._lanes: list[Lane | Speculator] = []
        begins = {row: ids for one in groups for row, ids in zip(one.rows, one.begins, strict=True)}
        self._texts = [_Text(begins[row], [], _transcript(model, stop)) for row in sorted(begins)]
        self._randoms = sampling.generators(len(self._texts))
        self._scores: Scores | None = None
        self._seconds = [0.0, 0.0]
        self._decoded = 0

    def __next__(self) -> Step:
        """The next token of every text that goes on. Raises `RunError` where the runtime refuses."""
        if not any(text.going for text in self._texts):
            raise StopIteration
        before, began = time.perf_counter(), self._scores is None
        scores = self._begin() if began else self._advance()
        tokens: list[int | None] = [None] * len(self._texts)
        pieces = [""] * len(self._texts)
        for group, lane in zip(self._groups, self._lanes, strict=True):
            for row, token in zip(group.rows, self._choose(group, lane, scores), strict=True):
                if self._texts[row].going:
                    tokens[row], pieces[row] = token, self._take(self._texts[row], token, lane)
        self._seconds[not began] += time.perf_counter() - before
        self._decoded += 0 if began else sum(token is not None for token in tokens)
        return Step(tuple(tokens), tuple(pieces), scores)

    @property
    def has_text(self) -> bool:
        """Whether a tokenizer tells the texts of the tokens."""
        return self._model.tokenizer is not None

    def result(self) -> Generation:
        """What has been made by now; texts that have not ended are "unfinished"."""
        return Generation(
            completions=tuple(text.completion() for text in self._texts),
            prompt_tokens=sum(len(one.prompt) for one in self._texts),
            decoded=self._decoded,
            prefill_s=self._seconds[0],
            decode_s=self._seconds[1],
            cache_bytes=sum(lane.cache_bytes for lane in self._lanes),
            drafts=self._drafts() if self._drafting else None,
        )

    def _drafts(self) -> Drafts:
        made = [lane.drafts for lane in self._lanes if isinstance(lane, Speculator)]
        return Drafts(
            sum(one.drafted for one in made),
            sum(one.accepted for one in made),
            sum(one.verifications for one in made),
        )

    def _begin(self) -> Scores:
        import numpy as np

        parts = []
        for group in self._groups:
            self._lanes.append(self._open(group))
            parts.append(self._lanes[-1].begin())
        order = np.argsort([row for group in self._groups for row in group.rows])
        self._scores = parts[0] if len(parts) == 1 else np.concatenate(parts)[order]
        return self._scores

    def _open(self, group: Group) -> Lane | Speculator:
        """A lane for a group; for drafts the group has one text."""
        lane, shortcut = group.open(self._model), self._model.shortcut
        if self._drafting is None or shortcut is None:
            return lane
        (row,), (begin,) = group.rows, group.begins
        limit = min(len(begin) + self._max, self._model.context or sys.maxsize)

        def propose(scores: Scores, text: Sequence[int]) -> Proposal:
            ruled = self._rules.apply(scores, begun=len(begin), made=len(text) - len(begin), ends=False)
            return self._sampling.propose(ruled, text, self._randoms[row])

        return Speculator(lane, shortcut, self._drafting, propose, begin, limit)

    def _advance(self) -> Scores:
        """Feed the last tokens. Texts that have ended go along as long as one beside them goes on."""
        assert self._scores is not None
        for group, lane in zip(self._groups, self._lanes, strict=True):
            texts = [self._texts[row] for row in group.rows]
            if any(text.going for text in texts):
                made = lane.advance([one.tokens[-1] if one.going else self._rules.pad for one in texts])
                if len(self._lanes) == 1:
                    self._scores = made
                else:
                    self._scores = self._scores.copy()
                    self._scores[list(group.rows)] = made
        return self._scores

    def _choose(self, group: Group, lane: Lane | Speculator, scores: Scores) -> list[int]:
        """A token for each text of a group."""
        texts = [self._texts[row] for row in group.rows]
        made = max(len(text.tokens) for text in texts)
        if len(self._lanes) > 1:
            scores = scores[list(group.rows)]
        ends = made + 1 == self._max or self._is_full(lane)
        scores = self._rules.apply(scores, begun=lane.length - made, made=made, ends=ends)
        penalized = texts if self._sampling.repetition_penalty != 1 else ()
        so_far = [(*text.prompt, *text.tokens) for text in penalized]
        randoms = [self._randoms[row] for row in group.rows]
        proposals = lane.proposals if isinstance(lane, Speculator) else ()
        return self._sampling.choose(scores, so_far, randoms, proposals)

    def _take(self, text: _Text, token: int, lane: Lane | Speculator) -> str:
        """Add a token to a text, and end it where it ends; the text that it adds."""
        text.tokens.append(token)
        transcript, told = text.transcript, len(text.transcript.safe) if text.transcript else 0
        if token in self._ends:
            text.reason = "eos"
        elif transcript:
            transcript.add(token)
        if transcript and transcript.stopped:
            text.reason = "stop"
        elif text.going and len(text.tokens) == self._max:
            text.reason = "length"
        elif text.going and self._is_full(lane):
            text.reason = "context"
        if transcript and not text.going:
            transcript.end()
        return transcript.safe[told:] if transcript else ""

    def _is_full(self, lane: Lane | Speculator) -> bool:
        """Whether the model has no position for one more token."""
        return self._model.context is not None and lane.length >= self._model.context


def _transcript(model: LanguageModel, stop: tuple[str, ...]) -> Transcript | None:
    from graphprune.text import Transcript

    return None if model.tokenizer is None else Transcript(model.tokenizer, stop)
