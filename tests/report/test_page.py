"""The page as a text: what it holds, what it asks for, and what becomes of names that are markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.errors import RunError
from graphprune.pipeline import sizes_of
from graphprune.report import sections as known
from graphprune.report.ancestry import origin_of
from graphprune.report.drawing import draw
from graphprune.report.numbers import clip
from graphprune.report.page import page
from graphprune.report.subject import Section, Side, Subject
from graphprune.settings import Settings
from tests import tiny
from tests.report.conftest import HOSTILE
from tools import zoo

Reports = Callable[[str], Path]
VOID = {"meta", "link", "input", "br", "hr", "img", "path", "use", "rect", "circle"}


class Read(HTMLParser):
    """All elements with their attributes, and the cells of all tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.cell: list[str] | None = None
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "table":
            self.rows: list[list[str]] = []
        elif tag in {"td", "th", "caption"}:
            self.cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in {"td", "th"}:
            self.rows[-1].append("".join(self.cell or []).strip())
            self.cell = None
        elif tag == "caption":
            self.caption, self.cell = "".join(self.cell or []), None
        elif tag == "table":
            self.tables.setdefault(self.caption, self.rows)

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]

    def table(self, caption: str) -> list[list[str]]:
        return next(rows for name, rows in self.tables.items() if name.startswith(caption))


def subject(path: Path) -> Subject:
    """A model of which nothing was measured."""
    bundle = gp.load(path)
    files = gp.inspect(bundle)
    side = Side(path.name, path, bundle, files, sizes_of(bundle, files))
    stacks, _ = draw(side, None, None, {}, {})
    return Subject(side, None, origin_of(bundle), None, stacks, Settings(), "nothing", "")


@pytest.fixture
def unmeasured(tmp_path: Path) -> Subject:
    return subject(tiny.save(tmp_path / "tiny.onnx"))


@pytest.mark.parametrize("name", ["tiny", "hostile", "bert"])
def test_the_page_is_well_formed_and_asks_nobody_for_anything(name: str, reports: Reports) -> None:
    text = reports(name).read_text(encoding="utf-8")
    read = Read(text)
    ids = read.all("id")
    assert len(ids) == len(set(ids))
    inner = {link[1:] for link in read.all("href") if link.startswith("#")}
    assert inner <= set(ids)
    outer = {link for link in read.all("href") + read.all("src") if not link.startswith("#")}
    assert outer == {"data:,"}
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert not {tag for tag, _ in read.elements} & {"iframe", "object", "embed", "base", "form"}
    assert not {a for _, attributes in read.elements for a in attributes if a.startswith("on")}


@pytest.mark.parametrize("name", ["tiny", "hostile", "bert"])
def test_only_the_pages_own_script_may_run(name: str, reports: Reports) -> None:
    text = reports(name).read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}'" in policy[1]


def test_names_that_are_markup_are_shown_as_they_are(reports: Reports) -> None:
    text = reports("hostile").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;script&gt;document.title" in text
    assert "onerror=document.title='taken'" not in {
        f"{name}={value}" for _, attributes in Read(text).elements for name, value in attributes.items()
    }


def test_tables_have_captions_and_heads(reports: Reports) -> None:
    text = reports("bert").read_text(encoding="utf-8")
    assert text.count("<table") == text.count("<caption")
    scopes = {attributes.get("scope") for tag, attributes in Read(text).elements if tag == "th"}
    assert scopes == {"col", "row"}


def test_the_numbers_of_a_model_counted_by_hand(reports: Reports) -> None:
    read = Read(reports("tiny").read_text(encoding="utf-8"))
    head, *rows = read.table("Blocks: ")
    at = {title: place for place, title in enumerate(head)}
    attention, ffn = 4 * 8 * 8, 2 * 8 * 24
    assert [row[at["Parameters"]] for row in rows] == [str(n) for n in (attention, ffn) * 3]
    assert [row[at["Norm"]] for row in rows] == ["none"] * 6
    # Of 8 tokens, the length that the tests run it at: products with weights, and two with each other.
    macs = [8 * attention + 2 * 8 * 8 * 8, 8 * ffn]
    assert [float(row[at["MMAC"]]) for row in rows] == pytest.approx([n / 1e6 for n in macs * 3], rel=0.02)
    shares = [float(row[at["Share"]].rstrip("%")) for row in rows]
    around = [float(row[2].rstrip("%")) for row in read.table("Time around the blocks")[1:]]
    assert sum(shares) + sum(around) == pytest.approx(100, abs=0.5)


def test_a_pruned_model_says_what_it_was_made_from(reports: Reports, request: pytest.FixtureRequest) -> None:
    text = reports("bert").read_text(encoding="utf-8")
    read = Read(text)
    removed = [row[0] for row in read.table("Blocks: ")[1:] if "removed" in row]
    assert len(removed) == 2
    assert len(read.table("What the recipe did")[1:]) == 2
    (head, *files) = read.table("Files and their hashes")
    digest = hashlib.sha256((reports("bert").parent / "bert-pruned" / "model.onnx").read_bytes()).hexdigest()
    assert any(digest in row for row in files) and head[0] == "File"
    assert "passes:" in text and "graphprune prune" in text


def test_what_was_not_measured_is_left_out(unmeasured: Subject) -> None:
    text = page(unmeasured)
    read = Read(text)
    sections = [
        attributes["id"] for tag, attributes in read.elements if tag == "section" and "id" in attributes
    ]
    assert sections == ["summary", "stream", "sizes", "blocks", "repeat"]
    assert {"metric-parameters"} == {id for id in read.all("id") if id.startswith("metric-")}


def test_a_model_without_blocks_has_a_page_too(tmp_path: Path) -> None:
    text = page(subject(tiny.save(tmp_path / "flat.onnx", layers=0)))
    assert 'id="stream"' not in text and 'id="sizes"' in text
    Read(text)


def test_further_sections_stand_at_the_end_and_need_ids_of_their_own(unmeasured: Subject) -> None:
    text = page(unmeasured, [Section("own", "My <own>", "<p>Here it is.</p>")])
    assert text.index('id="repeat"') < text.index('<section id="own"') < text.index("<p>Here it is.</p>")
    assert "My &lt;own&gt;" in text
    with pytest.raises(RunError, match="'stream'"):
        page(unmeasured, [Section("stream", "Again", "")])


def test_every_section_is_a_file_of_its_own() -> None:
    folder = Path(known.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {one.__module__.rpartition(".")[2] for one in known.SECTIONS} == files
    assert len(known.SECTIONS) == len(files)


def test_long_names_are_cut_in_their_middle() -> None:
    assert clip("short") == "short"
    cut = clip("a" * 500 + "z" * 500)
    assert len(cut) < 170 and cut.startswith("aaa") and cut.endswith("zzz")


def test_a_deep_model_makes_no_huge_page(tmp_path: Path) -> None:
    whole = subject(tiny.save(tmp_path / "deep.onnx", layers=300))
    assert len(page(whole).encode()) < 5_000_000


@pytest.mark.matrix
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.id) for entry in zoo.entries()])
def test_every_family_has_a_page_with_all_its_blocks(entry: zoo.Entry) -> None:
    try:
        whole = subject(entry.folder())
    except zoo.NotExportableError as refusal:
        pytest.skip(str(refusal))
    Read(page(whole))
    blocks = {block.id for file in whole.model.files for block in file.architecture.blocks}
    assert {block.name for stack in whole.stacks for block in stack.blocks} == blocks
