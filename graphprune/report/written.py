"""What a command wrote beside the model that it made, read back. The file may be a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from graphprune.report.ancestry import Origin

_LARGEST = 1 << 25  # bytes
Number = Annotated[float, Field(ge=-1e18, le=1e18)]


class Frozen(BaseModel):
    """A part of what was written."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Written(Frozen):
    """What was written about a model, with the hash of the model that it was made from."""

    format: int = Field(ge=1)
    source_sha256: str


W = TypeVar("W", bound=Written)


def read_written(path: Path, kind: type[W], origin: Origin, who: str) -> tuple[W | None, str]:
    """What `who` wrote to a file; None where it is about another model, with a note where it is nothing such.

    One of another model, such as that from which this one was pruned on, is none.
    """
    if not path.is_file():
        return None, ""
    try:
        if path.stat().st_size > _LARGEST:
            return None, f"{path.name} is too large to be what {who} wrote."
        found = kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        return None, f"{path.name} cannot be read as what {who} wrote: {problem}"
    hashes = [file.source_sha256 for file in origin.files]
    return (found if found.source_sha256 in hashes else None), ""
