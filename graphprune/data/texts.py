"""Texts as data: pairs or single ones, each a row of tokens; or one long text, cut into windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError, SelectionError
from graphprune.play import Source

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from graphprune.data.task import Task

    Ids = NDArray[np.int64]
    Row = tuple[Ids, Ids]  # ids and types of tokens
    Make = Callable[[], Source]

# Prose is drawn from in runs of lines, about this many in all, none longer than the second number.
_RUNS, _LONGEST_RUN = 256, 64


@dataclass(frozen=True, eq=False)
class Texts:
    """One text, or several, per example.

    Of a text file, `lines` has what stands there, line ends and blank lines too; a file with blank lines is
    `prose`, whose lines belong together.
    """

    columns: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...] = ()
    prose: bool = False

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def run(self) -> int:
        """How many examples in a row are drawn together."""
        return min(max(len(self) // _RUNS, 1), _LONGEST_RUN) if self.prose else 1

    def told(self, chosen: NDArray[np.int64]) -> Iterator[str]:
        """The texts."""
        columns = (self.lines,) if self.lines else self.columns
        return (column[number] for number in chosen for column in columns)

    def batches(
        self, path: str | Path, task: Task, chosen: NDArray[np.int64], size: int, length: int
    ) -> list[tuple[Make, NDArray[np.int64]]]:
        """Rows of similar lengths together. Raises `LoadError`, `RunError`, `SelectionError`."""
        from graphprune.text import load_tokenizer

        if task.metric.name == "spearman" and len(self.columns) != 2 and not task.together:
            raise SelectionError(
                f"spearman compares the two texts of a pair, and there are {len(self.columns)}: "
                "name two columns of texts"
            )
        tokenizer = load_tokenizer(path)
        length = task.tokens(length)
        if task.windows:
            rows = self._windows(tokenizer, chosen, length, Path(path))
        else:
            rows = self._rows(tokenizer, task, chosen, length)
        pad = _padding(tokenizer)
        order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
        parts = in_parts(order, task.fixed[0] or size, full=task.fixed[0] is not None)
        return [(partial(_batch, [rows[row] for row in part], pad, task.fixed[1]), part) for part in parts]

    def _rows(self, tokenizer: Tokenizer, task: Task, chosen: NDArray[np.int64], length: int) -> list[Row]:
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        texts = [tuple(column[number] for column in self.columns) for number in chosen]
        if not task.together:
            return _ids(tokenizer, [text for together in texts for text in together])
        if len(self.columns) > 2:
            raise RunError(f"a tokenizer takes two texts together, and there are {len(self.columns)}")
        return _ids(tokenizer, [one if len(one) > 1 else one[0] for one in texts])

    def _windows(self, tokenizer: Tokenizer, chosen: NDArray[np.int64], length: int, path: Path) -> list[Row]:
        """All texts in one, in windows of `length` tokens, each with what a text begins with."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        lines = [tuple(column[n] for column in self.columns) for n in chosen]
        text = "".join(self.lines[n] for n in chosen) if self.lines else "\n".join(map("\n".join, lines))
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        begin = np.array(_beginning(tokenizer), np.int64)
        step = length - len(begin)
        count = len(ids) // step if step > 0 else 0
        if length < 2 or not count:
            raise RunError(
                f"{path}: a text of {len(ids)} tokens gives no window of {length}: give more text or a "
                f"length between 2 and {len(ids)}"
            )
        pieces = [np.concatenate([begin, ids[at * step : (at + 1) * step]]) for at in range(count)]
        return [(piece, np.zeros_like(piece)) for piece in pieces]


def _ids(tokenizer: Tokenizer, texts: Sequence[Any]) -> list[Row]:
    encoded: list[Encoding] = tokenizer.encode_batch(list(texts))
    for text, one in zip(texts, encoded, strict=True):
        if not one.ids:
            raise RunError(f"the tokenizer makes no tokens of {text!r}")
    return [(np.array(one.ids, np.int64), np.array(one.type_ids, np.int64)) for one in encoded]


def _padding(tokenizer: Tokenizer) -> int:
    """The token to fill up with: the tokenizer's, or any, since it is masked."""
    configured = tokenizer.padding or {}
    known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
    return int(configured.get("pad_id", next((number for number in known if number is not None), 0)))


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """The tokens that are put before every text, such as <s>."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    return list(whole[: whole.index(plain[0])]) if plain and plain[0] in whole else []


def in_parts(order: NDArray[np.int64], size: int, *, full: bool = False) -> list[NDArray[np.int64]]:
    """Numbers of rows in parts of `size`; where all must be `full`, the last repeats its last row."""
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    if full:
        parts[-1] = np.pad(parts[-1], (0, size - len(parts[-1])), mode="edge")
    return parts


def _batch(rows: Sequence[Row], pad: int, length: int | None) -> Source:
    """Rows filled up on the right to the longest, or to the one length that the file takes."""
    longest = length or max(len(ids) for ids, _ in rows)
    ids, types, mask = (np.full((len(rows), longest), value, np.int64) for value in (pad, 0, 0))
    for row, (tokens, kinds) in enumerate(rows):
        ids[row, : len(tokens)], types[row, : len(tokens)], mask[row, : len(tokens)] = tokens, kinds, 1
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "input_mask": mask,
        "decoder_input_ids": ids,
        "decoder_attention_mask": mask,
    }
    return Source(arrays, len(rows), longest)
