"""The text that the demo decoders learn from: its split, its tokenizer, its windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
TEXT = "tinyshakespeare.txt"
HELD_OUT = 0.1
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 512
WINDOW = 256

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """One text: its first nine tenths to train on, its last tenth held out."""

    train: str
    held_out: str


def read(data: Path = DATA) -> Corpus:
    """The corpus in the folder `data`. Raises `FileNotFoundError`, saying what is missing."""
    path = data / TEXT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name the folder that holds {TEXT}")
    text = path.read_bytes().decode("utf-8")  # line ends as they are
    cut = round(len(text) * (1 - HELD_OUT))
    return Corpus(text[:cut], text[cut:])


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2) of `VOCABULARY` tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Ids:
    """The tokens of a text, in one row."""
    return np.array(tokenizer.encode(text).ids, dtype=np.int64)


def windows(ids: Ids, length: int = WINDOW) -> torch.Tensor:
    """Rows of `length + 1` tokens, the last of each being the first of the next.

    So every token but the first is predicted once; what does not fill a row is left out.
    """
    rows = (len(ids) - 1) // length
    return torch.from_numpy(np.stack([ids[row * length : (row + 1) * length + 1] for row in range(rows)]))


def batches(ids: Ids, size: int, epochs: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of training windows: every epoch cuts the text at another offset, in another order."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        rows = windows(ids[generator.integers(WINDOW) :])
        order = torch.from_numpy(generator.permutation(len(rows)))
        yield from rows[order[: len(order) - len(order) % size]].split(size)


def steps_per_epoch(ids: Ids, size: int) -> int:
    """The fewest batches that an epoch of `batches` has."""
    return (len(ids) - WINDOW) // WINDOW // size
