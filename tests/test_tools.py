"""The maintainers' programs run by hand: a change of what they import must not go unseen."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.parametrize("name", sorted(path.stem for path in TOOLS.glob("*.py")))
def test_a_tool_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"tools.{name}").__doc__
