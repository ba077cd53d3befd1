"""Train a demo decoder on Shakespeare's plays and write it as a transformers folder.

    python -m models.train_decoder llama-shakespeare [--data FOLDER] [--out FOLDER]

The corpus is not part of this project; the folder that holds tinyshakespeare.txt is named with `--data`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from models import corpus, decoders, layer_skip, writing
from models.corpus import HERE

log = logging.getLogger("models")

SLICE = 16  # windows of the held-out text that tests measure again


@dataclass(frozen=True)
class Training:
    """The options of a training run; AdamW with a cosine schedule."""

    epochs: int = 3
    batch: int = 4
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 1
    threads: int = 2

    def rate_at(self, progress: float, step: int) -> float:
        """The learning rate: up in a line, down as a half cosine to a fiftieth."""
        down = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.rate * down * min(1.0, (step + 1) / self.warmup)


def optimizer(model: torch.nn.Module, options: Training) -> torch.optim.Optimizer:
    """AdamW; only matrices decay, and the embedding is none here."""
    named = list(model.named_parameters())
    decay = [
        p
        for name, p in named
        if p.ndim > 1 and "embed" not in name and "wte" not in name and "wpe" not in name
    ]
    known = {id(parameter) for parameter in decay}
    rest = [p for _, p in named if id(p) not in known]
    groups = [{"params": decay, "weight_decay": options.decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=True)


Loss = Callable[[torch.Tensor, int, float], torch.Tensor]


def fit(model: Any, ids: corpus.Ids, held_out: torch.Tensor, loss: Loss, options: Training) -> None:
    """Train in place; the progress goes to the log, with the loss on a slice of the held-out windows."""
    per_epoch = corpus.steps_per_epoch(ids, options.batch)
    steps = per_epoch * options.epochs
    adamw = optimizer(model, options)
    model.train()
    began, average = time.perf_counter(), math.nan
    for step, rows in enumerate(corpus.batches(ids, options.batch, options.epochs, options.seed)):
        for group in adamw.param_groups:
            group["lr"] = options.rate_at(step / steps, step)
        value = loss(rows, step, min(step / steps, 1.0))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        adamw.step()
        adamw.zero_grad()
        average = value.item() if step == 0 else 0.98 * average + 0.02 * value.item()
        if (step + 1) % 250 == 0:
            seen = decoders.nats_per_token(model, held_out[:SLICE])
            model.train()
            minutes = (time.perf_counter() - began) / 60
            log.info(
                "step %d of %d, %.1f min: loss %.3f, held out %.3f", step + 1, steps, minutes, average, seen
            )


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as transformers reads it."""
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=corpus.END_OF_TEXT,
        eos_token=corpus.END_OF_TEXT,
        pad_token=corpus.END_OF_TEXT,
        model_max_length=corpus.WINDOW,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def measure(folder: Path, text: str) -> dict[str, Any]:
    """How well the model in a folder predicts a text, as it is shipped and loaded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = corpus.encode(tokenizer, text)
    rows = corpus.windows(ids)
    nats = decoders.nats_per_token(model, rows)
    characters = len(tokenizer.decode(rows[:, 1:].flatten().tolist(), skip_special_tokens=False))
    found: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "held_out_tokens": rows[:, 1:].numel(),
        "held_out_characters": characters,
        "perplexity_per_token": round(math.exp(nats), 4),
        "nats_per_character": round(nats * rows[:, 1:].numel() / characters, 4),
        "bits_per_character": round(nats * rows[:, 1:].numel() / characters / math.log(2), 4),
        "slice_windows": SLICE,
        "slice_perplexity_per_token": round(math.exp(decoders.nats_per_token(model, rows[:SLICE])), 4),
    }
    if model.config.model_type == "llama":
        found["perplexity_by_exit"] = [round(p, 3) for p in decoders.exit_perplexities(model, rows)]
    return found


def train(name: str, data: Path, out: Path, options: Training) -> dict[str, Any]:
    """Train one model, write it to `out`, and return what is in its metrics.json.

    Raises `FileNotFoundError` where the corpus is missing.
    """
    text = corpus.read(data)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    clock = writing.Clock.start()
    tokenizer = corpus.train_tokenizer(text.train)
    ids = corpus.encode(tokenizer, text.train)
    held_out = corpus.windows(corpus.encode(tokenizer, text.held_out))
    model = decoders.build(name)
    skip = layer_skip.LayerSkip() if name.startswith("llama") else None
    log.info("%s: %d parameters, %d tokens to train on", name, model.num_parameters(), len(ids))

    def loss(rows: torch.Tensor, step: int, progress: float) -> torch.Tensor:
        if skip is None:
            return decoders.plain_loss(model, rows)
        return layer_skip.loss(model, rows, skip, step, progress)

    fit(model, ids, held_out, loss, options)
    spent = clock.spent(options.threads)
    writing.save(model, out)
    save_tokenizer(tokenizer, out)
    metrics = measure(out, text.held_out) | {
        "command": f"python -m models.train_decoder {name} --threads {options.threads}",
        "training": asdict(options),
        "layer_skip": asdict(skip) if skip else None,
        "train_tokens": len(ids),
        **spent,
    }
    writing.save_json(out / "metrics.json", metrics)
    return metrics


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a demo decoder.")
    parser.add_argument("name", choices=decoders.NAMES)
    parser.add_argument("--data", type=Path, default=corpus.DATA, help=f"the folder that holds {corpus.TEXT}")
    parser.add_argument("--out", type=Path, help="the folder to write (models/NAME)")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--rate", type=float, default=Training.rate, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=Training.threads)
    given = parser.parse_args(arguments)
    options = Training(epochs=given.epochs, rate=given.rate, seed=given.seed, threads=given.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        metrics = train(given.name, given.data, given.out or HERE / given.name, options)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(metrics, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
