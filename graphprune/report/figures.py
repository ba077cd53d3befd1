"""From a matplotlib figure to an SVG that is part of a page: its colours, its text, its ids.

Colours are those of `PALETTE`: in the SVG each is `var(--plot-NAME, …)`, so that the page, which sets
these properties, takes its plots along from light to dark. Alone, a plot is for light paper.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For each name the colour on light and on dark paper. Kinds of blocks have three shades each, from what
# comes first in a branch to what comes last. Blue and orange are told apart with any colour vision,
# shades by their lightness.
PALETTE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ink": ("#1f2328", "#e6e8eb"),
        "muted": ("#59616b", "#a3abb5"),
        "line": ("#d5d9de", "#3a4048"),
        "paper": ("#ffffff", "#16181d"),
        "attention-1": ("#3f7fc9", "#6ea5e8"),
        "attention-2": ("#1c4a85", "#4479bd"),
        "attention-3": ("#6f9fd8", "#9cc4f4"),
        "cross_attention-1": ("#8a63b8", "#b18ade"),
        "cross_attention-2": ("#573182", "#8760b3"),
        "cross_attention-3": ("#a788cb", "#cdb2ee"),
        "ffn-1": ("#c2691c", "#e39a4f"),
        "ffn-2": ("#7d3f08", "#b9712a"),
        "ffn-3": ("#d2823c", "#f2c087"),
        "conv-1": ("#238573", "#4db8a4"),
        "conv-2": ("#0f5347", "#318877"),
        "conv-3": ("#489c8c", "#82d1c1"),
        "other-1": ("#7a828c", "#8b939e"),
        "other-2": ("#4d545d", "#707883"),
        "other-3": ("#8d949d", "#c3c8cf"),
    }
)
# Units of a plot's width; it is scaled to its place on the page, and is readable on a phone.
WIDTH = 390
FONT = 11.0
_SENTINELS = {name: f"#fe01{index:02x}" for index, name in enumerate(PALETTE)}
_NAMES = {sentinel: name for name, sentinel in _SENTINELS.items()}
# A matplotlib `gid` that begins so becomes what is shown when the mouse is over the mark.
_HOVER = "hover:"
# Spaces around the letters of a path.
_SPACE = re.compile(r"\s*([MLQCz])\s*")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_HREF = "{http://www.w3.org/1999/xlink}href"
_LINK = re.compile(r"url\(#([^)]+)\)")
# A colour of the page with the one for light paper.
_VARIABLE = re.compile(r"var\(--plot-[a-z_0-9-]+,(#[0-9a-f]{6})\)")
_INHERITED = ("font-family", "stroke-linejoin", "text-anchor: start")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": FONT,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


def colour(name: str) -> str:
    """The colour of `PALETTE` as matplotlib is to be told it."""
    return _SENTINELS[name]


def canvas(height: float) -> Figure:
    """An empty figure, `WIDTH` by `height` units; no state is shared with any other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")


def hover(text: str) -> str:
    """The `gid` of a mark that says `text` when the mouse is over it."""
    return _HOVER + clean(text)


def clean(text: str) -> str:
    """A label as it can be drawn: one line, without characters that are no text (XML 1.0, 2.2)."""
    one_line = " ".join(str(text).split())
    return "".join("�" if unicodedata.category(c) in {"Cc", "Cs", "Cn"} else c for c in one_line)


def short(text: str, width: int) -> str:
    """A label of at most `width` characters; the middle goes, since names differ at their ends."""
    label = clean(text)
    if len(label) <= width:
        return label
    tail = (width - 1) // 2
    return f"{label[: width - 1 - tail]}…{label[len(label) - tail :]}"


def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element for HTML; `name` begins all its ids.

    A screen reader says `title`, then `description`. Equal figures give equal text, with no date in it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style), warnings.catch_warnings():
        # The text is drawn by the browser, with fonts that have what matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    root = _parsed(buffer.getvalue())
    _tidy(root)
    _rename(root, name)
    _unwrap(root)
    _label(root, name, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def standalone(text: str) -> str:
    """An `<svg>` element of a page as a file of its own, in the colours for light paper."""
    plain = _VARIABLE.sub(r"\1", text)
    start = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"'
    return f"{plain.replace('<svg', start, 1)}\n"


def _parsed(text: str) -> ElementTree.Element:
    """The root, without namespaces: in HTML an `<svg>` has its own."""
    body = text[text.index("<svg") :]
    head, rest = body.split(">", 1)
    return ElementTree.fromstring(re.sub(r'\sxmlns="[^"]*"', "", head) + ">" + rest)


def _tidy(root: ElementTree.Element) -> None:
    """Short numbers, the page's font and colours, and marks that say what they are."""
    for parent in root.iter():
        parent.tail = None
        for child in [one for one in parent if one.tag == "style"]:
            parent.remove(child)  # it would hold for the whole page
        _attributes(parent)
        if parent.tag not in {"text", "title"}:
            parent.text = None
        if parent.get("id", "").startswith(_HOVER):
            said = ElementTree.Element("title")
            said.text = parent.attrib.pop("id").removeprefix(_HOVER)
            (parent[0] if len(parent) == 1 else parent).insert(0, said)


def _attributes(element: ElementTree.Element) -> None:
    for key, value in list(element.attrib.items()):
        if key == "transform" and value.startswith("rotate(-0 "):
            del element.attrib[key]
        elif key == _HREF:
            element.set("href", element.attrib.pop(key))
        elif key in {"d", "x", "y", "transform", "width", "height"}:
            element.set(key, _LONG_NUMBER.sub(_rounded, _SPACE.sub(r"\1", value)).strip())
        elif key == "style":
            element.set(key, _style(value))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".rstrip("0").rstrip(".")


def _style(value: str) -> str:
    kept = [part.replace(": ", ":") for part in value.split("; ") if not part.startswith(_INHERITED)]
    return re.sub(r"#[0-9a-f]{6}", lambda match: _variable(match[0]), ";".join(kept))


def _variable(sentinel: str) -> str:
    name = _NAMES.get(sentinel)
    return f"var(--plot-{name},{PALETTE[name][0]})" if name else sentinel


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to are numbered after `name`; the others go."""
    used: dict[str, str] = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            found = [value[1:]] if key == "href" else _LINK.findall(value)
            for one in found:
                used.setdefault(one, f"{name}-{len(used)}")
    for element in root.iter():
        own = element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            if key == "href":
                element.set(key, "#" + used[value[1:]])
            else:
                element.set(key, _LINK.sub(lambda match: f"url(#{used[match[1]]})", value))
        if own in used:
            element.set("id", used[own])


def _unwrap(element: ElementTree.Element) -> None:
    """Groups that only hold something, and say nothing of it, give way to it."""
    for child in element:
        _unwrap(child)
    element[:] = [one for child in element for one in (child if _needless(child) else [child])]


def _needless(element: ElementTree.Element) -> bool:
    return element.tag == "g" and not element.attrib and element.find("title") is None


def _label(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    root.attrib |= {
        "class": "plot",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
        "style": "max-width:100%;height:auto;stroke-linejoin:round",
        "width": str(WIDTH),
    }
    for tag, key, text in (("desc", "description", description), ("title", "title", title)):
        element = ElementTree.Element(tag, {"id": f"{name}-{key}"})
        element.text = clean(text)
        root.insert(0, element)
