"""Options for the data that a command fits to and judges by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graphprune.data.dataset import Data

_DATA: dict[str, Any] = {"rich_help_panel": "Data"}
_FILES = "Text, CSV or TSV, .npz, or a folder of arrays or images; without it a sample of English sentences."
_TEXT = "Columns of texts, by name or number from 0: 0 or 0,1; two are a pair."
_LABEL = "The column of labels, or the array of a .npz file."
_METRIC = "cosine, kl, top1, perplexity, accuracy, spearman, or module:function; else what fits."


@dataclass(frozen=True)
class DataOptions:
    """What a model is fitted to and judged by."""

    files: Annotated[Path | None, typer.Option("--data", help=_FILES, **_DATA)] = None
    text: Annotated[str | None, typer.Option(help=_TEXT, **_DATA)] = None
    label: Annotated[str | None, typer.Option(help=_LABEL, **_DATA)] = None
    metric: Annotated[str | None, typer.Option(help=_METRIC, **_DATA)] = None
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text, at most.", **_DATA)] = 128
    limit: Annotated[int | None, typer.Option(min=1, help="Examples, at most.", **_DATA)] = None

    def data(self, seed: int = 0) -> Data:
        """The data that the options name. Raises `LoadError`, `RunError`, `SelectionError`."""
        from graphprune.data.dataset import read_data

        columns = [part.strip() for part in (self.text or "").split(",") if part.strip()]
        return read_data(
            self.files, text=columns, label=self.label, metric=self.metric, length=self.length,
            limit=self.limit, seed=seed,
        )  # fmt: skip
