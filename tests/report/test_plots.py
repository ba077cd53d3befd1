"""The plots: drawn where the numbers say, their text escaped, and at home on a page beside others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib")

from graphprune.report.figures import PALETTE, short
from graphprune.report.plots import (
    Dot,
    Footprint,
    Latency,
    Row,
    footprint_plot,
    latency_plot,
    parts_plot,
    roofline_plot,
)

HOSTILE = '<script>alert(1)</script> & "quoted" $x^2$ \x00\x1b[31m\nline 字 \udcff'
LATENCIES = (
    Latency("dense", "batch 1 × 32", 2.0),
    Latency("pruned", "batch 1 × 32", 1.5, 0.75, 0.7, 0.8),
    Latency("dense", "batch 8 × 128", 80.0),
    Latency("pruned", "batch 8 × 128", 80.0, 1.0, 0.95, 1.05),
)
FOOTPRINTS = (Footprint("dense", 80_000_000, 100.0, 200_000_000), Footprint("pruned", 60_000_000, 50.0, None))
PARTS = {("attention", "projections"): 200.0, ("attention", "norm"): 20.0, ("ffn", "up"): 380.0}
ROWS = (Row("layer 0", PARTS), Row("layer 1", {("ffn", "down"): 300.0}))
DOTS = (
    Dot("encoder.0.attention", "attention", 2e7, 2e6, 1000.0),
    Dot("encoder.0.ffn", "ffn", 4e7, 2e6, 1000.0),
)

PLOTS: dict[str, Callable[[str], str]] = {
    "latency": lambda name: latency_plot(LATENCIES, name=name),
    "milliseconds": lambda name: latency_plot([row for row in LATENCIES if row.model == "dense"], name=name),
    "footprint": lambda name: footprint_plot(FOOTPRINTS, name=name),
    "parts": lambda name: parts_plot(ROWS, name=name),
    "roofline": lambda name: roofline_plot(DOTS, 45e9, 12e9, name=name),
}
each = pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)


def marks(text: str, tag: str) -> dict[str, ElementTree.Element]:
    """The elements of a kind that say what they are, by what they say."""
    found = {}
    for element in ElementTree.fromstring(text).iter():
        said, inside = element.find("title"), element if element.tag == tag else element.find(tag)
        if element.get("role") is None and said is not None and inside is not None:
            found[said.text or ""] = inside
    return found


def width(path: ElementTree.Element) -> float:
    """How wide a bar is."""
    x = [float(one) for one in re.findall(r"[ML](-?[\d.]+)", path.attrib["d"])]
    return max(x) - min(x)


def words(text: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(text).iter("text")]


@each
def test_a_plot_is_one_small_element_with_a_name_and_a_description(plot: Callable[[str], str]) -> None:
    text = plot("mine")
    root = ElementTree.fromstring(text)
    by_id = {one.get("id"): one for one in root.iter()}
    named = root.attrib["aria-labelledby"].split()
    assert (root.tag, root.get("role")) == ("svg", "img")
    assert all(by_id[name].text for name in named)
    assert len(text) < 60_000
    assert not re.search(r"http|<style|<metadata|<!--|font-family|\n", text)


@each
def test_equal_numbers_give_equal_text(plot: Callable[[str], str]) -> None:
    assert plot("a") == plot("a")


@each
def test_ids_are_a_plots_own_and_what_is_referred_to_is_there(plot: Callable[[str], str]) -> None:
    ids = {name: re.findall(r'\sid="([^"]*)"', plot(name)) for name in ("one", "two")}
    assert len(ids["one"]) == len(set(ids["one"])) and not set(ids["one"]) & set(ids["two"])
    assert all(id.startswith("one-") for id in ids["one"])
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', plot("one"))) <= set(ids["one"])


@each
def test_all_colours_are_the_pages(plot: Callable[[str], str]) -> None:
    text = plot("a")
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", text))
    used = set(re.findall(r"var\(--plot-([\w-]+),", text))
    assert used <= set(PALETTE)


def test_bars_are_as_long_as_their_times() -> None:
    bars = {said.partition(":")[0]: width(bar) for said, bar in marks(parts_plot(ROWS), "path").items()}
    assert bars["ffn up"] / bars["attention projections"] == pytest.approx(380 / 200, rel=0.01)
    assert bars["ffn down"] / bars["attention projections"] == pytest.approx(300 / 200, rel=0.01)
    assert bars["norm"] / bars["attention projections"] == pytest.approx(20 / 200, rel=0.1)


def test_what_all_blocks_have_and_the_branches_of_parallel_blocks_are_told_apart() -> None:
    parts = {("parallel", "attention.scores"): 1.0, ("parallel", "ffn.up"): 2.0, ("ffn", "join"): 3.0}
    said = {one.partition(":")[0] for one in marks(parts_plot([Row("layer", parts)]), "path")}
    assert said == {"attention scores", "ffn up", "join"}


def test_ratios_stand_where_their_axis_says() -> None:
    places = {said: float(use.attrib["x"]) for said, use in marks(latency_plot(LATENCIES), "use").items()}
    one, three_quarters = (
        next(x for said, x in places.items() if said.startswith(start))
        for start in ("dense, batch 1", "pruned, batch 1")
    )
    assert next(x for said, x in places.items() if said.startswith("pruned, batch 8")) == one
    root = ElementTree.fromstring(latency_plot(LATENCIES))
    ticks = {
        text.text: float(text.attrib["x"])
        for text in root.iter("text")
        if re.fullmatch(r"\d\.\d+", text.text or "")
    }
    low, high = (min(ticks, key=float), max(ticks, key=float))
    scale = (ticks[high] - ticks[low]) / (float(high) - float(low))
    assert (one - three_quarters) / scale == pytest.approx(0.25, abs=0.005)
    assert one == pytest.approx(ticks[low] + (1 - float(low)) * scale, abs=0.2)


def test_numbers_are_written_beside_what_is_drawn() -> None:
    assert {"1.50 ms · 0.75×", "80.0 ms · 1.00×", "batch 8 × 128"} <= set(words(latency_plot(LATENCIES)))
    alone = words(PLOTS["milliseconds"]("a"))
    assert {"80.0 ms", "batch 8 × 128"} <= set(alone) and "dense" not in alone
    assert {"80.0 MB", "60.0 MB", "200 MB", "not measured", "50.0 ms"} <= set(
        words(footprint_plot(FOOTPRINTS))
    )
    assert {"600 µs", "300 µs", "projections", "layer 1"} <= set(words(parts_plot(ROWS)))


def test_roofline_dots_stand_by_their_intensity_and_speed() -> None:
    dots = marks(roofline_plot(DOTS, 45e9, 12e9), "use")
    assert "encoder.0.attention: 20.0 GMAC/s at 10.0 MACs a byte, 1.00 ms" in dots
    first, second = ({axis: float(use.attrib[axis]) for axis in "xy"} for use in dots.values())
    decade = (second["x"] - first["x"]) / np.log10(2), (first["y"] - second["y"]) / np.log10(2)
    assert min(decade) > 0
    # The roof bends at 3.75 MACs a byte, at 45 GMAC/s: a factor of 45/20 above the first dot.
    root = ElementTree.fromstring(roofline_plot(DOTS, 45e9, 12e9))
    bend = next(
        tuple(map(float, corner))
        for path in root.iter("path")
        if len(found := re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attrib["d"])) == 3
        for corner in found[1:2]
    )
    assert bend[0] == pytest.approx(first["x"] + np.log10(3.75 / 10) * decade[0], abs=1.5)
    assert bend[1] == pytest.approx(first["y"] - np.log10(45 / 20) * decade[1], abs=1.5)


def test_what_computes_nothing_is_not_in_the_roofline() -> None:
    dots = [*DOTS, Dot("norm", "other", 0.0, 100.0, 1.0), Dot("idle", "other", 1.0, 1.0, 0.0)]
    assert len(marks(roofline_plot(dots, 45e9, 12e9), "use")) == len(DOTS)
    assert roofline_plot([], 45e9, 12e9)


def test_a_deep_model_is_small_enough_too() -> None:
    parts = {(kind, part): 10.0 for kind in ("attention", "ffn") for part in ("norm", "join", "up", "scores")}
    assert len(parts_plot([Row(f"decoder {i}", parts) for i in range(48)])) < 60_000


@pytest.mark.parametrize("plot", ["latency", "footprint", "parts", "roofline"])
def test_labels_are_text_and_nothing_else(plot: str) -> None:
    made = {
        "latency": lambda: latency_plot([Latency(HOSTILE, HOSTILE, 1.0)]),
        "footprint": lambda: footprint_plot([Footprint(HOSTILE, 1, 1.0, 1)]),
        "parts": lambda: parts_plot([Row(HOSTILE, {(HOSTILE, HOSTILE): 1.0})]),
        "roofline": lambda: roofline_plot([Dot(HOSTILE, HOSTILE, 1.0, 1.0, 1.0)], 1.0, 1.0),
    }
    text = made[plot]()
    assert "<script" not in text and "alert(1)" in text
    assert text.encode() and not re.search(r"[\x00-\x1f\udc80-\udfff]", text)
    assert not any(one.tag == "script" for one in ElementTree.fromstring(text).iter())


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=60))
def test_any_label_can_be_drawn(label: str) -> None:
    ElementTree.fromstring(latency_plot([Latency(label, label, 1.0)]))


@given(st.text(max_size=80), st.integers(3, 40))
def test_short_labels_fit_and_keep_both_ends(label: str, room: int) -> None:
    cut = short(label, room)
    assert len(cut) <= room
    assert cut == label or "…" in cut or cut == short(label, 200)


def linear(colour: str) -> np.ndarray:
    """Linear RGB (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    dark, light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other))
    return light / dark


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_seen(theme: int) -> None:
    paper = PALETTE["paper"][theme]
    least = {"ink": 7.0, "muted": 4.5, "paper": 1.0, "line": 1.2}
    for name, pair in PALETTE.items():
        wanted = least.get(name, 2.6 if name.endswith("-3") and theme == 0 else 3.0)
        assert contrast(pair[theme], paper) >= wanted, (
            f"{name} {pair[theme]}: {contrast(pair[theme], paper):.2f}"
        )


# Machado, Oliveira, Fernandes 2009, severity 1: how colours look without one kind of cones.
BLIND = {
    "protan": "0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216  -0.003882 -0.048116 1.051998",
    "deutan": "0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413  -0.011820 0.042940 0.968881",
    "tritan": "1.255528 -0.076749 -0.178779  -0.078411 0.930809 0.147602  0.004733 0.691367 0.303900",
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, D65."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb / [0.95047, 1.0, 1.08883], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("blind", BLIND)
def test_kinds_and_shades_are_told_apart_with_any_colour_vision(blind: str, theme: int) -> None:
    cones = np.array(BLIND[blind].split(), dtype=float).reshape(3, 3)
    seen = {name: lab(np.clip(cones @ linear(pair[theme]), 0, 1)) for name, pair in PALETTE.items()}
    pairs = [("attention-1", "ffn-1"), ("attention-1", "conv-1"), ("cross_attention-1", "ffn-1")]
    kinds = ("attention", "cross_attention", "ffn", "conv")
    pairs += [
        (f"{kind}-{a}", f"{kind}-{b}") for kind in kinds for a, b in itertools.combinations((1, 2, 3), 2)
    ]
    for one, other in pairs:
        assert float(np.linalg.norm(seen[one] - seen[other])) > 8, (one, other)
