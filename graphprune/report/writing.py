"""`write_report`: measure, make the page, and put it in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import SaveError

if TYPE_CHECKING:
    from graphprune.importance.results import Ranking
    from graphprune.play import Source
    from graphprune.report.subject import Section
    from graphprune.settings import Settings

CELLS = ((1, 32), (8, 128))


def write_report(
    model: str | Path,
    out: str | Path,
    *,
    dense: str | Path | None = None,
    source: Source | None = None,
    settings: Settings | None = None,
    rounds: int = 12,
    steps: int = 0,
    cells: Sequence[tuple[int, int]] = CELLS,
    extra: Iterable[Section] = (),
    ranking: Ranking | None = None,
    command: str = "",
    on_step: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write one self-contained HTML file about a model; return its path.

    With `dense`, the model that it was made from, the page compares the two and shows what was removed.
    Blocks are timed on `source` (by default random inputs of batch 1 and length 128), with `steps` further
    tokens for models that take a cache; whole calls also at each of `cells`, (batch, length), unless
    `source` holds arrays. `settings` are those of all runs, one thread on the CPU by default; everything
    that is timed runs `rounds` times. `extra` sections stand at the end; scripts in them do not run.
    `ranking` is what `rank` found of the dense model, or of this one. `command` is shown as the way to make
    the page again. `on_step` is told what is measured next.

    What cannot be measured is noted on the page. An existing page is replaced, whole or not at all, and no
    file of another kind.
    Raises `MissingExtraError` without the extra `report`, `LoadError` and `GraphError` where a model
    cannot be read, `SaveError`.
    """
    from graphprune.play import Source
    from graphprune.report.gather import Wanted, gather
    from graphprune.report.page import page
    from graphprune.report.render import require_extra
    from graphprune.settings import Settings
    from graphprune.storage import write_text

    require_extra()
    target = Path(out)
    _require_place(target)
    wanted = Wanted(
        source or Source(sequence=128), settings or Settings(threads=1), rounds, steps, tuple(cells)
    )
    subject = gather(
        Path(model), None if dense is None else Path(dense), wanted,
        command=command, ranking=ranking, on_step=on_step,
    )  # fmt: skip
    on_step("writing the page")
    write_text(target, page(subject, extra))
    return target


def _require_place(target: Path) -> None:
    """Raise `SaveError` where nothing could be written, before minutes are spent on what to write."""
    if target.is_dir():
        raise SaveError(f"{target} is a folder: name a file in it, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise SaveError(f"{target.parent}: no such folder: make it first, or name another file")
    if target.exists() and target.suffix.lower() not in (".html", ".htm"):
        raise SaveError(f"{target} exists and is no .html file: name another one")
