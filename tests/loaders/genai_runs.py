"""Greedy generation in onnxruntime-genai, and what torch gives for the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

NEW = 20
EOS = 2
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Run:
    """The tokens made, [rows, steps], and the logits that each was chosen by, [rows, steps, words].

    The end token, which is never chosen here, has the logit 0.
    """

    tokens: np.ndarray
    logits: np.ndarray

    def gap(self, other: Run) -> float:
        """How far apart the logits are at most; fails where the tokens differ."""
        assert self.tokens.tolist() == other.tokens.tolist()
        return float(np.abs(self.logits - other.logits).max())


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random tokens, none of them special."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 112, length).tolist() for length in lengths]


def in_genai(folder: Path, rows: Prompts, steps: int = NEW) -> Run:
    """Generate from a folder on the CPU, whatever provider its config asks for.

    Shorter prompts are padded on the right, as GroupQueryAttention wants it.
    """
    import onnxruntime_genai as genai

    width = max(map(len, rows))
    config = genai.Config(str(folder))
    config.clear_providers()
    model = genai.Model(config)
    parameters = genai.GeneratorParams(model)
    length = width + steps  # and not a token less: the end token is ruled out
    parameters.set_search_options(max_length=length, min_length=length, batch_size=len(rows), do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32))
    tokens, logits = [], []
    for _ in range(steps):
        scores = np.array(generator.get_logits(), np.float32)
        logits.append(scores.reshape(len(rows), -1, scores.shape[-1])[:, -1])
        generator.generate_next_token()
        tokens.append(np.array(generator.get_next_tokens()))
    return _run(tokens, logits)


@torch.no_grad()
def in_torch(model: Any, rows: Prompts, steps: int = NEW) -> Run:
    """The same by full passes over each row alone: no cache, no padding."""
    runs = []
    for row in rows:
        ids, tokens, logits = torch.tensor([list(row)]), [], []
        for _ in range(steps):
            scores = model(input_ids=ids, use_cache=False).logits[:, -1]
            logits.append(scores.numpy().copy())
            scores[:, EOS] = -torch.inf
            tokens.append(scores.argmax(-1).numpy())
            ids = torch.cat([ids, torch.from_numpy(tokens[-1])[None]], dim=1)
        runs.append(_run(tokens, logits))
    return Run(np.concatenate([r.tokens for r in runs]), np.concatenate([r.logits for r in runs]))


def _run(tokens: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> Run:
    run = Run(np.stack(tokens, axis=1), np.stack(logits, axis=1))
    run.logits[..., EOS] = 0
    return run
