"""Templates: Jinja2 with autoescape, because names of models, nodes and values are anybody's text."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import MissingExtraError
from graphprune.report.numbers import clip

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def require_extra() -> None:
    """Raise `MissingExtraError` where what pages and plots are made with is not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"a report needs {' and '.join(missing)}: pip install 'graphprune[report]'")


def render(template: str, /, **values: Any) -> str:
    """The HTML of a template in `templates`."""
    return _environment().get_template(template).render(**values)


def static(name: str) -> str:
    """A style sheet or script of the page."""
    return (_HERE / "static" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["clip"] = clip
    return found
