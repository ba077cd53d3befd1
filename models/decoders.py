"""The two demo decoders: their shapes, and how well they predict held-out text."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch.nn import functional

from models import layer_skip
from models.corpus import VOCABULARY, WINDOW

NAMES = ("gpt2-shakespeare", "llama-shakespeare")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def build(name: str) -> Any:
    """An untrained model, its weights drawn from torch's generator. About 4 million parameters each.

    The vocabulary is small so that nearly all of the work is in the layers.
    """
    if name == "gpt2-shakespeare":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=WINDOW, n_embd=192, n_layer=8, n_head=6,
            activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            initializer_range=0.06, **SPECIAL,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        positions = model.transformer.wpe.weight.requires_grad_(False)
        positions.copy_(waves(WINDOW, config.n_embd, config.initializer_range))
        return model
    if name == "llama-shakespeare":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCABULARY, max_position_embeddings=WINDOW, hidden_size=192, num_hidden_layers=10,
                num_attention_heads=6, num_key_value_heads=2, intermediate_size=384,
                tie_word_embeddings=True, **SPECIAL,
            )
        )  # fmt: skip
    raise ValueError(f"unknown model {name!r}; known: {', '.join(NAMES)}")


def waves(positions: int, width: int, scale: float) -> torch.Tensor:
    """Sines and cosines of positions (Vaswani et al. 2017, 3.5) of this root mean square."""
    pace = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(positions)[:, None] * pace
    return torch.cat([angles.sin(), angles.cos()], dim=1) * (scale * math.sqrt(2))


def plain_loss(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of windows [batch, length + 1] in nats per token."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def nats_per_token(model: Any, rows: torch.Tensor, batch: int = 8) -> float:
    """The mean cross-entropy of a model in eval mode over windows [rows, length + 1]."""
    model.eval()
    total = sum(plain_loss(model, part).item() * len(part) for part in rows.split(batch))
    return total / len(rows)


@torch.no_grad()
def exit_perplexities(model: Any, rows: torch.Tensor, batch: int = 8) -> list[float]:
    """The perplexity per token when a Llama leaves after its first, second, … and last layer."""
    model.eval()
    depth = model.config.num_hidden_layers
    totals = [0.0] * depth
    for part in rows.split(batch):
        labels = part[:, 1:].flatten()
        with layer_skip.recording(model) as recorder:
            model.model(input_ids=part[:, :-1], use_cache=False)
        for layer, hidden in enumerate(recorder.outputs):
            logits = layer_skip.exit_logits(model, hidden).flatten(0, 1)
            totals[layer] += functional.cross_entropy(logits, labels).item() * len(part)
    return [math.exp(total / len(rows)) for total in totals]
