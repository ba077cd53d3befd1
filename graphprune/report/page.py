"""The page: all sections in one HTML file that needs nothing else and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.report.figures import PALETTE
from graphprune.report.render import render, static
from graphprune.report.sections import SECTIONS

if TYPE_CHECKING:
    from graphprune.report.subject import Section, Subject


def page(subject: Subject, extra: Iterable[Section] = ()) -> str:
    """The whole page: every section that has something to say, then `extra`.

    A script that stands in `extra` does not run: the page allows its own alone. Raises `RunError`
    where two sections have one id.
    """
    made = [section for one in SECTIONS if (section := one(subject)) is not None]
    sections = [*made, *extra]
    ids = [section.id for section in sections]
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice is not None:
        raise RunError(f"two sections of the report have the id {twice!r}: give the second another one")
    script = static("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "page.html", subject=subject, sections=sections, style=_style(), script=script,
        script_hash=f"sha256-{digest}", made=datetime.now().astimezone(),
    )  # fmt: skip


def _style() -> str:
    """The style sheet, and the plots' colours, which it builds on."""
    colours = "".join(f"--plot-{name}:light-dark({light},{dark});" for name, (light, dark) in PALETTE.items())
    return f":root{{{colours}}}\n{static('page.css')}"
