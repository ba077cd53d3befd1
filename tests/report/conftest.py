"""Reports of a few models, made once, and a browser to read them with: the system's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from graphprune import Source, load, prune, write_report
from tests import tiny
from tools import zoo

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUICK = dict(rounds=2, source=Source(sequence=8), cells=((1, 8), (2, 16)))


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The report of that name in `MAKERS`, made at the first call."""
    folder = tmp_path_factory.mktemp("reports")
    made: dict[str, Path] = {}

    def report(name: str) -> Path:
        if name not in made:
            made[name] = MAKERS[name](folder)
        return made[name]

    return report


def _tiny(folder: Path) -> Path:
    return write_report(tiny.save(folder / "tiny.onnx"), folder / "tiny.html", **QUICK)


def _hostile(folder: Path) -> Path:
    """A model whose names are markup: of its file, its nodes, its values, its recipe."""
    model = tiny.model(2)
    for node in model.graph.node:
        node.name = f"{HOSTILE}/{node.name}"
    model.producer_name = HOSTILE
    model.metadata_props.add(key=HOSTILE, value=HOSTILE)
    path = folder / HOSTILE.replace("/", "∕")
    path.mkdir()
    onnx.save(model, path / "model.onnx")
    return write_report(path, folder / "hostile.html", command=f"report {HOSTILE}", **QUICK)


def _bert(folder: Path) -> Path:
    """A pruned model beside the dense one."""
    dense = next(zoo.entries("bert", fast=True)).folder()
    pruned = folder / "bert-pruned"
    prune(load(dense), drop_ffn=[0], drop_attention=[1]).save(pruned)
    return write_report(pruned, folder / "bert.html", dense=dense, **QUICK)


MAKERS = {"tiny": _tiny, "hostile": _hostile, "bert": _bert}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium (or `$CHROMIUM`), without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: install the package chromium, or name a program in $CHROMIUM")
    # Chromium's sandbox refuses to work for root.
    options = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=program, args=options)
        except playwright.Error as error:
            pytest.skip(f"{program} does not start here: {error.message.splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file in a window of its own. A complaint of the page, or a request of its, fails the test."""
    troubles: list[str] = []
    contexts = []

    def open_file(path: Path, width: int = 1280, **options: object) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if beyond(request.url) else None)
        page.goto(path.as_uri())
        return page

    def beyond(url: str) -> bool:
        return not url.startswith(("file:", "data:"))

    yield open_file
    for context in contexts:
        context.close()
    assert not troubles
