"""Which blocks a model had best leave out in its drafts: a sweep by what was measured.

How often a draft would be right is told by the model's own continuations of a few prompts, scored without
the blocks (`scoring`); what its runs take is timed. Blocks go one by one, each time the one after which the
model is fastest (as SWIFT chooses while it runs, https://arxiv.org/abs/2410.06916).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.bundle import load
from graphprune.draftcosts import Costs, Trace, measure, speed
from graphprune.errors import EditError, RunError
from graphprune.generator import generate
from graphprune.language import LanguageModel, open_model
from graphprune.play import Source
from graphprune.sampling import softmax
from graphprune.scoring import Scorer, open_scorer
from graphprune.speculation import Drafting, shorten

if TYPE_CHECKING:
    from graphprune.bundle import ModelFile
    from graphprune.generator import Completion
    from graphprune.settings import Settings

_LENGTHS, _CONFIDENCES = (1, 2, 3, 4, 6, 8), (0.0, 0.2, 0.4, 0.6)
_TRIED = 4  # blocks that are tried for each place: those that harm least alone


@dataclass(frozen=True)
class Draft:
    """A way to draft, and how many times the tokens a second without drafts are expected of it."""

    drafting: Drafting
    speed: float


def find_draft(
    path: str | Path,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    settings: Settings | None = None,
    *,
    max_new_tokens: int = 64,
) -> Draft:
    """The blocks to leave out in drafts, and how long drafts had best be, by continuations of `prompts`.

    Where the expected `speed` is not over 1, drafts do not pay. Raises `LoadError`, `RunError` where the
    model is no single file whose blocks can be left out.
    """
    model = open_model(path, settings)
    made = generate(model, prompts, max_new_tokens=max_new_tokens, ignore_eos=True).completions
    scorer = open_scorer(path, [_source(model, one) for one in made], settings)
    costs = measure(path, settings, scorer.blocks, made[0].prompt)
    return _Sweep(load(path).only("drafted with"), scorer, model.first.ports.logits, made, costs).run()


def _source(model: LanguageModel, one: Completion) -> Source:
    ports, ids = model.first.ports, np.array([(*one.prompt, *one.tokens[:-1])], np.int64)
    places = np.arange(ids.shape[1])
    given = {
        ports.ids: ids,
        ports.mask: np.ones_like(ids),
        ports.positions: places[None],
        ports.place: places,
    }
    return Source(arrays={name: array for name, array in given.items() if name})


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A search for blocks to leave out: the model asked, its texts, and what its runs take."""

    file: ModelFile
    scorer: Scorer
    logits: str
    made: Sequence[Completion]
    costs: Costs

    def run(self) -> Draft:
        """Leave out block after block, and see with which of them the model is fastest."""
        rest = sorted(self.scorer.blocks, key=self._harm)
        chosen: list[str] = []
        best: Draft | None = None
        while rest:
            drafts = {id: self._draft([*chosen, id]) for id in rest[:_TRIED]}
            id = max(drafts, key=lambda id: drafts[id].speed)
            rest.remove(id)
            if not self._can_go([*chosen, id]):
                continue
            chosen.append(id)
            if best is None or drafts[id].speed > best.speed:
                best = drafts[id]
        if best is None:
            raise RunError(f"{self.file.name}: no draft: other blocks need what any of its blocks compute")
        return best

    def _can_go(self, blocks: Sequence[str]) -> bool:
        """Whether drafts can do without these blocks."""
        try:
            shorten(self.file, ",".join(blocks))
        except EditError:
            return False
        return True

    def _harm(self, id: str) -> float:
        """The share of tokens that are wrong without a block."""
        return 1 - float(np.mean(np.concatenate([one.right for one in self._traces([id])])))

    def _draft(self, skipped: Sequence[str]) -> Draft:
        """The best way to draft without these blocks."""
        traces, cost = self._traces(skipped), self.costs.draft(skipped)
        speeds = {
            (tokens, confidence): speed(traces, self.costs, cost, tokens, confidence)
            for tokens, confidence in product(_LENGTHS, _CONFIDENCES)
        }
        tokens, confidence = max(speeds, key=lambda way: speeds[way])
        skip = ",".join(id for id in self.scorer.blocks if id in skipped)
        return Draft(Drafting(skip, tokens, confidence), speeds[tokens, confidence])

    def _traces(self, skipped: Sequence[str]) -> list[Trace]:
        outputs = (one[self.logits][0] for one in self.scorer.outputs(skipped))
        traces = []
        for scores, one in zip(outputs, self.made, strict=True):
            told = scores[len(one.prompt) - 1 :].astype(np.float32)
            traces.append(Trace(told.argmax(axis=-1) == np.array(one.tokens), softmax(told).max(axis=-1)))
        return traces
