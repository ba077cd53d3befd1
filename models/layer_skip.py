"""Training for early exits: layer dropout and an early-exit loss (LayerSkip, Elhoushi et al. 2024).

arXiv 2404.16710; names in brackets are the paper's. Layers count from 0; `depth` is the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True)
class LayerSkip:
    """How much is skipped, and what exits weigh."""

    dropout: float = 0.1  # the last layer's rate, reached at the last step [p_max]
    scale: float = 0.2  # what early exits weigh against the last layer [e_scale]
    rotation: int = 5  # every how many layers an exit is trained in one step [R]

    def rates(self, depth: int, progress: float) -> list[float]:
        """Each layer's dropout rate [p(l, t)]: exponential in depth, and in `progress` from 0 to 1."""
        grown = math.expm1(progress * math.log(2))
        return [self.dropout * grown * math.expm1(math.log(2) * i / (depth - 1)) for i in range(depth)]

    def weights(self, depth: int, step: int) -> dict[int, float]:
        """The weights of the exits after these layers at this step [ẽ(t, l)]; they add up to 1.

        The others take turns, one in `rotation` layers a step; the last layer is trained at every step.
        """
        last = depth - 1
        raw = {
            i: self.scale * i * (i + 1) / 2 for i in range(last) if i % self.rotation == step % self.rotation
        }
        raw[last] = last + self.scale * (last - 1) * last / 2
        total = sum(raw.values())
        return {layer: weight / total for layer, weight in raw.items() if weight}


@dataclass
class Recorder:
    """What every layer put out in the last forward pass, and at what rates rows skip layers."""

    rates: Sequence[float] = ()
    outputs: list[torch.Tensor] = field(default_factory=list)

    def hook(
        self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """A forward hook: rows that skip this layer keep the stream as it came in."""
        index = len(self.outputs)
        if layer.training and self.rates and self.rates[index]:
            keep = torch.rand(len(output), 1, 1) >= self.rates[index]
            output = torch.where(keep, output, inputs[0])
        self.outputs.append(output)
        return output


@contextmanager
def recording(model: Any, rates: Sequence[float] = ()) -> Iterator[Recorder]:
    """Record the layers of a Llama-like causal model of transformers, rows skipping at these rates."""
    recorder = Recorder(rates)
    hooks = [layer.register_forward_hook(recorder.hook) for layer in model.model.layers]
    try:
        yield recorder
    finally:
        for handle in hooks:
            handle.remove()


def exit_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The logits of an exit: the model's own last norm and head, shared by all."""
    logits: torch.Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def loss(model: Any, rows: torch.Tensor, skip: LayerSkip, step: int, progress: float) -> torch.Tensor:
    """The early-exit loss of windows [batch, length + 1] in nats per token."""
    depth = model.config.num_hidden_layers
    with recording(model, skip.rates(depth, progress)) as recorder:
        model.model(input_ids=rows[:, :-1], use_cache=False)
    labels = rows[:, 1:].flatten()
    total = torch.zeros(())
    for layer, weight in skip.weights(depth, step).items():
        logits = exit_logits(model, recorder.outputs[layer])
        total = total + weight * functional.cross_entropy(logits.flatten(0, 1), labels)
    return total
