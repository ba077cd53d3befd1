"""Texts to token ids, by the tokenizer that lies beside a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Ids = NDArray[np.int64]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The `tokenizer.json` of a bundle: in its folder, or beside a file, or one folder above.

    Raises `LoadError` where there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    found = find_tokenizer(path)
    if found is None:
        raise LoadError(
            f"{path}: no tokenizer.json here or one folder above: give ids, arrays or random inputs"
        )
    try:
        return Tokenizer.from_file(str(found))
    except Exception as error:  # the library raises plain Exception
        raise LoadError(f"{found}: not a tokenizer: {error}") from error


def find_tokenizer(path: str | Path) -> Path | None:
    """Where the tokenizer of a bundle is, if it has one."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    places = [place / "tokenizer.json" for place in (folder, folder.absolute().parent)]
    return next((place for place in places if place.is_file()), None)


def encode(tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int = 512) -> dict[str, Ids]:
    """`input_ids`, `attention_mask` and `token_type_ids`, int64 [texts, longest], padded on the right."""
    import numpy as np

    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(**{k: v for k, v in (tokenizer.padding or {}).items() if k != "length"})
    encoded = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
    }


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of each text, as long as it is, with the special tokens that the tokenizer puts around it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [tuple(encoded.ids) for encoded in tokenizer.encode_batch(list(texts))]


@dataclass
class Transcript:
    """The text of tokens that come one by one.

    `text` only ever grows, by whole characters; what could be the beginning of one of `stops`
    is kept out of `safe` until it is known, and `stopped` is true once one of them is complete:
    the text ends before it. The tokenizers library has a DecodeStream for this, which fails on
    bytes that are no UTF-8, as models do put out.
    """

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    text: str = ""
    stopped: bool = False
    ended: bool = False
    _tokens: list[int] = field(default_factory=list)
    _known: int = 0  # tokens that are in the text

    @property
    def safe(self) -> str:
        """The text as far as nothing that comes can take it back."""
        if self.stopped or self.ended:
            return self.text
        ends = (
            size for stop in self.stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])
        )
        return self.text[: len(self.text) - max(ends, default=0)]

    def add(self, token: int) -> None:
        """Take the next token; a text that has stopped takes none."""
        self._tokens.append(token)
        self._read(self._fresh(), whole=False)

    def end(self) -> None:
        """No token comes any more: what is left of a character is put out as U+FFFD."""
        self._read(self._fresh(), whole=True)
        self.ended = True

    def _fresh(self) -> str:
        """What the tokens that are not in the text yet say, after the few that are."""
        known: str = self.tokenizer.decode(self._tokens[: self._known])
        together: str = self.tokenizer.decode(self._tokens)
        return together[len(known) :]

    def _read(self, fresh: str, *, whole: bool) -> None:
        if self.stopped or not fresh or (fresh.endswith("\ufffd") and not whole):
            return
        start = len(self.text)
        self.text += fresh
        self._tokens, self._known = self._tokens[self._known :], len(self._tokens) - self._known
        found = [
            at for stop in self.stops if (at := self.text.find(stop, max(start - len(stop) + 1, 0))) >= 0
        ]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
