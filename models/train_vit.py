"""Train a small vision transformer on scikit-learn's 8×8 digits and write it as a transformers folder.

python -m models.train_vit [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from models import digits, writing

log = logging.getLogger("models")

NAME = "vit-digits"


@dataclass(frozen=True)
class Training:
    """The options of a training run; AdamW, one cycle of the learning rate."""

    epochs: int = 60
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 1
    threads: int = 2


def build() -> Any:
    """An untrained model of 6 layers: 16 patches of 2×2 pixels, one channel, ten classes."""
    config = transformers.ViTConfig(
        image_size=digits.SIZE, patch_size=2, num_channels=1, num_labels=10, hidden_size=64,
        num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, initializer_range=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@torch.no_grad()
def accuracy(model: Any, data: digits.Digits) -> float:
    """The share of images that a model in eval mode names rightly."""
    model.eval()
    found = model(pixel_values=data.images).logits.argmax(-1)
    return float((found == data.labels).float().mean())


def fit(model: Any, data: digits.Digits, held_out: digits.Digits, options: Training) -> None:
    """Train in place; the progress goes to the log."""
    generator = torch.Generator().manual_seed(options.seed)
    steps = len(data.labels) // options.batch
    adamw = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.decay, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adamw, options.rate, total_steps=steps * options.epochs)
    for epoch in range(options.epochs):
        model.train()
        order = torch.randperm(len(data.labels), generator=generator)[: steps * options.batch]
        for rows in order.split(options.batch):
            logits = model(pixel_values=digits.shifted(data.images[rows], generator)).logits
            functional.cross_entropy(logits, data.labels[rows]).backward()
            adamw.step()
            adamw.zero_grad()
            cycle.step()
        if (epoch + 1) % 10 == 0:
            log.info("epoch %d of %d: held out %.4f", epoch + 1, options.epochs, accuracy(model, held_out))


def train(out: Path, options: Training) -> dict[str, Any]:
    """Train, write to `out`, and return what is in its metrics.json."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    clock = writing.Clock.start()
    data, held_out = digits.read()
    model = build()
    log.info("%s: %d parameters, %d images", NAME, model.num_parameters(), len(data.labels))
    fit(model, data, held_out, options)
    spent = clock.spent(options.threads)
    writing.save(model, out)
    writing.save_image_processor(out, digits.SIZE)
    metrics = {
        "parameters": model.num_parameters(),
        "held_out_images": len(held_out.labels),
        "accuracy": round(
            accuracy(transformers.AutoModelForImageClassification.from_pretrained(out), held_out), 4
        ),
        "command": f"python -m models.train_vit --threads {options.threads}",
        "training": asdict(options),
        **spent,
    }
    writing.save_json(out / "metrics.json", metrics)
    return metrics


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo vision transformer.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / NAME, help="the folder to write")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=Training.threads)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    metrics = train(given.out, Training(epochs=given.epochs, seed=given.seed, threads=given.threads))
    print(json.dumps(metrics, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
