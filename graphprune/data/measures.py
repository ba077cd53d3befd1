"""Metrics of outputs, position by position: arrays in, a number for each position out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.compare import cosines, divergences
from graphprune.data.metrics import Metric
from graphprune.data.task import LOGITS
from graphprune.errors import SelectionError
from graphprune.play import is_cache

Array = NDArray[Any]
Values = NDArray[np.float64]

# By these names outputs are the vector of a whole text (sentence-transformers), or of each token.
_SENTENCE, _TOKENS = "sentence_embedding", ("last_hidden_state", "token_embeddings")
# Numbers that are worked on in float64 at a time.
_CHUNK = 1 << 22


def choose_output(metric: Metric, outputs: Mapping[str, Array]) -> str:
    """The output that a metric reads. Raises `SelectionError` where none fits, or there is no such output."""
    names = [name for name in outputs if not is_cache(name)]
    if metric.output:
        if metric.output not in outputs:
            raise SelectionError(f"there is no output {metric.output}: name one of {', '.join(names)}")
        return metric.output
    fitting = [name for name in _liked(metric, outputs, names) if name in names]
    if not fitting:
        raise SelectionError(
            f"{metric.name} reads logits, and the model puts out {', '.join(names)}: name one of them as "
            f"{metric.name}:{names[0] if names else 'NAME'}, or choose another metric"
        )
    return fitting[0]


def _liked(metric: Metric, outputs: Mapping[str, Array], names: list[str]) -> list[str]:
    """Outputs, the one that fits best first; some may not be there."""
    if metric.name == "spearman":
        states = [name for name in (*_TOKENS, *names) if name in outputs and outputs[name].ndim == 3]
        scores = outputs.get(LOGITS)
        number = [LOGITS] if scores is not None and scores.size == len(scores) else []
        return [*number, _SENTENCE, *states, *names]
    if metric.name == "cosine":
        return [_SENTENCE, LOGITS, *_TOKENS, *names]
    return [LOGITS, *(names if len(names) == 1 else ())]


def positions(output: Array, mask: NDArray[np.bool_] | None) -> tuple[Array, NDArray[np.int64]]:
    """An output as [positions, width] without padding, and how many positions each row has.

    [rows, tokens, width] has a position for each token; anything else one for each row.
    """
    count = len(output)
    if output.ndim == 3:
        kept = _kept(output, mask)
        return output[kept], kept.sum(axis=1)
    if mask is not None and mask.shape == output.shape:
        output = np.where(mask, output, 0)
    return output.reshape(count, -1), np.ones(count, np.int64)


def pooled(output: Array, mask: NDArray[np.bool_] | None) -> Values:
    """A vector for each row: the mean over tokens that are no padding, or what is one already."""
    if output.ndim != 3:
        return output.reshape(len(output), -1).astype(np.float64)
    kept = _kept(output, mask)
    sums = np.where(kept[..., None], output, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(sums / np.maximum(kept.sum(axis=1), 1)[:, None])


def _kept(output: Array, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Which tokens of an output [rows, tokens, width] are no padding."""
    fits = mask is not None and mask.shape == output.shape[:2]
    return mask if mask is not None and fits else np.ones(output.shape[:2], bool)


def cosine(dense: Array, flat: Array) -> Values:
    """The cosine of each position with that of the dense model."""
    return _chunked(cosines, dense, flat)


def kl(dense: Array, flat: Array) -> Values:
    """The Kullback-Leibler divergence of each position from the dense model's distribution, in nats."""
    return _chunked(divergences, dense, flat)


def top1(dense: Array, flat: Array) -> Values:
    """1 where the highest score is the one with this number, else 0."""
    return np.asarray(dense == flat.argmax(axis=-1), np.float64)


def losses(tokens: Array, flat: Array) -> Values:
    """−ln of the probability that scores [positions, vocabulary] give to these tokens."""

    def lost(numbers: Array, scores: Array) -> Values:
        from scipy.special import logsumexp

        chosen = np.take_along_axis(scores, numbers.astype(np.int64), -1)[:, 0]
        return np.asarray(logsumexp(scores, axis=-1) - chosen, np.float64)

    return _chunked(lost, tokens[:, None], flat)


def _chunked(function: Callable[[Array, Array], Values], one: Array, two: Array) -> Values:
    return np.concatenate([np.zeros(0), *(function(*pair) for pair in _chunks(one, two))])


def _chunks(one: Array, two: Array) -> Iterator[tuple[Values, Values]]:
    step = max(_CHUNK // max(two.shape[-1], 1), 1)
    for at in range(0, len(two), step):
        yield one[at : at + step].astype(np.float64), two[at : at + step].astype(np.float64)
