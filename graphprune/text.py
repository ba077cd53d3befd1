"""Texts to token ids, by the tokenizer that lies beside a model."""

from __future__ import annotations

from collections.abc import Sequence
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

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    places = [place / "tokenizer.json" for place in (folder, folder.absolute().parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise LoadError(f"{folder}: no tokenizer.json here or one folder above: give npz or random inputs")
    try:
        return Tokenizer.from_file(str(found))
    except Exception as error:  # the library raises plain Exception
        raise LoadError(f"{found}: not a tokenizer: {error}") from error


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
