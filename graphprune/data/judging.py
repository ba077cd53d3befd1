"""What a model's outputs are worth: scores by a metric, beside that of the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from graphprune.data.dataset import Batch, Data
from graphprune.data.labels import numbered, require_ranks
from graphprune.data.metrics import BETTER, Better, Metric
from graphprune.data.questions import PERFECT, NotFiniteError, Outputs, Questions, Side, paired, side_of
from graphprune.data.task import LOGITS, Task
from graphprune.errors import RunError, SelectionError


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores outputs by a metric; `dense` is the score of the dense model's own outputs.

    `better` says whether a higher or a lower score is better.
    """

    metric: str
    better: Better
    dense: float
    questions: Questions

    def score(self, outputs: Iterable[Outputs]) -> float:
        """What outputs are worth: one mapping a batch, in the order of the batches.

        NaN where they are not finite. Raises `RunError` where they do not fit the batches.
        """
        try:
            return self.questions.score(outputs)
        except NotFiniteError:
            return math.nan

    def kept(self, score: float) -> float:
        """The share of the dense model's quality that a score keeps; 1 is as good as dense, NaN keeps 0.

        score / dense where higher is better, dense / score where lower is; exp(−score) of a divergence.
        """
        if math.isnan(score):
            return 0.0
        if self.metric == "kl":
            return math.exp(-score)
        part, whole = (score, self.dense) if self.better == "higher" else (self.dense, score)
        if self.dense <= 0 or whole <= 0:
            as_good = score >= self.dense if self.better == "higher" else score <= self.dense
            return 1.0 if as_good else 0.0
        return part / whole


def open_judge(data: Data, batches: Sequence[Batch], dense: Iterable[Outputs]) -> Judge:
    """A judge of models on `batches` of `data`; `dense` is what the dense model puts out for each of them.

    What it must remember of that lies in temporary files beyond 256 MB, and goes with the judge. Raises
    `RunError` where the dense model's outputs are not finite, or constant where ranks are asked for, and
    `SelectionError` where outputs or labels do not fit the metric.
    """
    questions, parts = None, []
    sides: list[Side] = []
    for number, (batch, outputs) in enumerate(paired(batches, dense)):
        if questions is None:
            questions = _questions(data, batch, outputs)
        sides.append(side_of(batch, questions))
        try:
            if questions.metric.compares:
                questions.remember(number, sides[-1], outputs)
            else:
                parts.append(questions.part(number, sides[-1], outputs))
        except NotFiniteError as error:
            raise RunError(f"the model itself is not sound on {data.name}: {error}") from error
    if questions is None:
        raise RunError(f"{data.name}: there is no batch to judge by")
    questions = replace(questions, sides=tuple(sides))
    metric = questions.metric
    score = PERFECT[metric.name] if metric.compares else questions.total(parts)
    if math.isnan(score):
        why = "it puts out the same for all" if metric.name == "spearman" else "it gives NaN"
        raise RunError(f"{metric.name} says nothing of the model itself on {data.name}: {why}")
    return Judge(metric.name, metric.better, score, questions)


def _questions(data: Data, batch: Batch, outputs: Outputs) -> Questions:
    """What is asked of each batch, told by the first one. Raises `SelectionError`."""
    metric = batch.task.metric if batch.task else data.metric
    if metric is None:
        name = "kl" if LOGITS in outputs else "cosine"
        metric = Metric(name, BETTER[name])
    labels = batch.labels if batch.task else numbered(data, Task(metric))
    if metric.needs_labels and labels is None:
        raise SelectionError(f"{data.name}: {metric.name} needs labels")
    if metric.name == "spearman" and labels is not None:
        require_ranks(data.name, labels)
    return Questions(metric, labels)
