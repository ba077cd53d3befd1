"""scikit-learn's handwritten digits, as a vision transformer wants them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SIZE = 8
BRIGHTEST = 16.0
HELD_OUT = 360  # of 1797 images


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8] from −1 to 1, with their digits [n]."""

    images: torch.Tensor
    labels: torch.Tensor


def read() -> tuple[Digits, Digits]:
    """The digits to train on and those held out: one shuffle, always the same.

    The data is UCI's "Optical Recognition of Handwritten Digits" test set (CC BY 4.0).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.float32))[:, None] / (BRIGHTEST / 2) - 1
    labels = torch.from_numpy(found.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by up to one pixel in each direction; what comes in is dark."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    moves = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(padded, moves, strict=True)]
    )
