"""The report in a real browser: with a mouse, with keys, on a phone, on paper, in both themes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.report.conftest import HOSTILE, MAKERS

if TYPE_CHECKING:
    from playwright.sync_api import Page

Reports = Callable[[str], Path]
Open = Callable[..., "Page"]
SECTIONS = {
    "At a glance",
    "The stream",
    "What it holds",
    "Latency",
    "Where the time goes",
    "Memory and loading",
}
SECTIONS |= {"Block by block", "How to repeat it"}
LARGEST = 5_000_000
each = pytest.mark.parametrize("name", MAKERS)
both = pytest.mark.parametrize("scheme", ["light", "dark"])


def luminance(page: Page, selector: str, what: str) -> float:
    """How light a colour is as the browser draws it, 0 to 1."""
    painted = """([selector, what]) => {
        const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        context.fillStyle = getComputedStyle(document.querySelector(selector))[what];
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    }"""
    red, green, blue, _ = page.evaluate(painted, [selector, what])
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@each
def test_every_section_is_there_and_the_page_is_quiet(name: str, reports: Reports, opened: Open) -> None:
    page = opened(reports(name))
    headings = page.get_by_role("main").get_by_role("heading", level=2).all_inner_texts()
    compared = SECTIONS - {"What it holds"} | {"Before and after", "Agreement"}
    assert set(headings) == (compared if name == "bert" else SECTIONS)
    assert page.get_by_role("heading", level=1).count() == 1
    for link in page.get_by_role("navigation").get_by_role("link").all():
        target = link.get_attribute("href")
        assert target and page.locator(target).count() == 1, target
    assert page.locator("#layers").get_by_role("img").count() == 2, "times, and the roofline"
    assert reports(name).stat().st_size < LARGEST


@each
def test_ids_are_unique_and_what_refers_to_them_finds_them(name: str, reports: Reports, opened: Open) -> None:
    page = opened(reports(name))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    refer = """['aria-labelledby', 'aria-describedby', 'aria-controls', 'for'].flatMap(
        key => [...document.querySelectorAll(`[${key}]`)].flatMap(one => one.getAttribute(key).split(' ')))"""
    assert len(ids) == len(set(ids))
    assert set(page.evaluate(refer)) <= set(ids)


@each
def test_nothing_is_wider_than_the_window(name: str, reports: Reports, opened: Open) -> None:
    page = opened(reports(name))
    page.locator("button.block").first.click()
    page.locator("#blocks details").first.locator("summary").click()
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_on_a_block_shows_its_details(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"))
    panel = page.get_by_role("complementary", name="Details of the block")
    assert not panel.is_visible()
    block = page.get_by_role("button", name=re.compile(r"encoder\.2\.ffn"))
    block.click()
    assert panel.get_by_role("heading").inner_text() == "encoder.2.ffn"
    assert block.get_attribute("aria-pressed") == "true"
    said = panel.inner_text()
    assert all(
        what in said
        for what in (
            "Time",
            "Bytes moved",
            "Influence",
            "Kernels",
            "Multiply-accumulates",
            "Parameters",
            "GFLOP/s",
        )
    ), said
    page.get_by_role("button", name="Close the details").click()
    assert not panel.is_visible() and block.get_attribute("aria-pressed") == "false"
    assert block.evaluate("one => one === document.activeElement")


def test_removed_blocks_are_struck_out_and_say_so(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"))
    removed = page.get_by_role("button", name=re.compile("removed"))
    assert removed.count() == 2 == page.locator(".stream del").count()
    removed.first.click()
    assert "removed" in page.get_by_role("complementary").inner_text().lower()


def test_blocks_are_reached_and_opened_by_keys(reports: Reports, opened: Open) -> None:
    page = opened(reports("tiny"))
    focused = "document.activeElement.dataset.block"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate(focused) is not None:
            break
    first = page.evaluate(focused)
    assert first is not None
    panel = page.get_by_role("complementary", name="Details of the block")
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
        assert panel.is_visible()
        page.keyboard.press("Escape")
        assert not panel.is_visible()
    blocks = page.locator("button.block").evaluate_all("all => all.map(one => one.dataset.block)")
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == blocks[at], key
    page.keyboard.press("Tab")
    assert page.evaluate(focused) is None, "one stop of the tab key for all blocks"


def test_arrow_keys_go_to_the_next_row_where_blocks_stand_in_several(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"), 390)
    page.locator("button.block").first.focus()
    top = "document.activeElement.getBoundingClientRect().top + scrollY"
    first = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    second = page.evaluate(top)
    page.keyboard.press("ArrowUp")
    assert second > first == page.evaluate(top)


def test_blocks_are_coloured_by_what_is_chosen(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"))
    shown: dict[str, tuple[list[str], list[str]]] = {}
    for metric in ("Time", "Parameters", "Importance"):
        page.get_by_role("radio", name=metric).check()
        values = page.locator("button.block .value:visible").all_inner_texts()
        colours = page.locator("button.block").evaluate_all(
            "a => a.map(b => getComputedStyle(b).backgroundColor)"
        )
        assert len(values) == page.locator("button.block").count(), "a number is written in every block"
        shown[metric] = values, colours
    assert len({tuple(values) for values, _ in shown.values()}) == 3
    assert len({tuple(colours) for _, colours in shown.values()}) == 3


@both
def test_the_theme_follows_the_system_and_the_switch(scheme: str, reports: Reports, opened: Open) -> None:
    page = opened(reports("tiny"), color_scheme=scheme)
    dark = {"light": False, "dark": True}
    for choice in ("System", "Dark", "Light", "System"):
        page.get_by_role("radio", name=choice).check()
        wanted = dark.get(choice.lower(), scheme == "dark")
        assert (luminance(page, "body", "backgroundColor") < 0.2) == wanted
        assert (luminance(page, "body", "color") > 0.5) == wanted
        assert (luminance(page, "svg.plot text", "fill") > 0.5) == wanted, "plots go with the page"


@pytest.mark.parametrize(
    ("name", "scheme"), [("bert", "light"), ("bert", "dark"), ("tiny", "light"), ("hostile", "light")]
)
def test_accessible_by_the_rules(name: str, scheme: str, reports: Reports, opened: Open) -> None:
    """WCAG 2.2 A and AA as far as a program can tell (axe-core)."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe checks accessibility")
    page = opened(reports(name), 390, color_scheme=scheme)
    page.locator("button.block").first.click()
    page.locator("#blocks details").first.locator("summary").click()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
    assert not found.response["violations"], found.generate_report()


def test_names_are_text_and_run_nothing(reports: Reports, opened: Open) -> None:
    page = opened(reports("hostile"))
    for block in page.locator("button.block").all():
        block.click()
    for details in page.locator("details summary").all():
        details.click()
    assert page.title() != "taken"
    assert HOSTILE in page.content().replace("&lt;", "<").replace("&gt;", ">").replace("∕", "/")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1


def test_reads_without_javascript(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"), java_script_enabled=False)
    assert page.get_by_role("table").count() > 3
    block = page.locator("details", has_text="encoder.2.ffn").first
    block.locator("summary").click()
    assert "Parameters" in block.inner_text()
    assert not page.get_by_role("complementary").is_visible()
    assert page.get_by_text("Details of the blocks are in").is_visible()


def test_prints_in_black_on_white_without_controls(reports: Reports, opened: Open) -> None:
    page = opened(reports("bert"), color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page, "body", "backgroundColor") > 0.9 or page.evaluate(
        "getComputedStyle(document.body).backgroundColor"
    ).endswith(", 0)")
    assert luminance(page, "body", "color") < 0.2 and luminance(page, "svg.plot text", "fill") < 0.5
    assert not page.get_by_role("group", name="Theme").is_visible()
    assert not page.get_by_role("navigation").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_moves_nothing_for_those_who_asked_for_that(reports: Reports, opened: Open) -> None:
    page = opened(reports("tiny"), reduced_motion="reduce")
    moving = """[document.documentElement, ...document.querySelectorAll('*')].filter(one => {
        const style = getComputedStyle(one);
        return style.scrollBehavior === 'smooth' || style.animationName !== 'none'
            || style.transitionDuration.split(',').some(time => parseFloat(time) > 0.01);
    }).map(one => one.tagName)"""
    assert page.evaluate(moving) == []
