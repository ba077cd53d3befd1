"""Texts from lines and from tables, and what is said of those that cannot be read."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.data.dataset import Data, read_data
from graphprune.data.tables import lines_of, read_table
from graphprune.data.texts import Texts
from graphprune.errors import GraphpruneError, LoadError, SelectionError

PAIRS = 'first,second,score\nthe cat,the dog,1.5\nbig mat,"red, mat",4\na b,c d,0\n'


def texts(data: Data) -> tuple[tuple[str, ...], ...]:
    assert isinstance(data.contents, Texts)
    return data.contents.columns


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["d.txt", "d.md", "d"])
def test_lines(tmp_path: Path, name: str) -> None:
    data = read_data(write(tmp_path / name, "\ufeffone two\r\n\n  three\n \n four"))
    assert texts(data) == (("one two", "three", "four"),)
    assert (data.examples, data.labels, data.metric, data.name) == (3, None, None, name)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_the_lines_of_a_text_are_the_text(text: str) -> None:
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    if not any(line.strip() for line in plain.split("\n")):
        with pytest.raises(LoadError, match="is empty"):
            lines_of(text, "d")
        return
    found = lines_of(text, "d")
    assert "".join(found.lines) == plain
    assert found.columns[0] == tuple(line.strip() for line in plain.split("\n") if line.strip())


@pytest.mark.parametrize(("text", "label"), [((0, 1), 2), (("first", "second"), "score"), (("0", "1"), "2")])
def test_columns_by_name_and_number(tmp_path: Path, text: tuple[str | int, ...], label: str | int) -> None:
    path = write(tmp_path / "d.csv", PAIRS)
    data = read_data(path, text=text, label=label, metric="spearman")
    assert texts(data) == (("the cat", "big mat", "a b"), ("the dog", "red, mat", "c d"))
    assert data.labels is not None and data.labels.tolist() == [1.5, 4, 0]


def test_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", PAIRS.partition("\n")[2])
    assert texts(read_data(path, text=0, label=2)) == (("the cat", "big mat", "a b"),)
    words = write(tmp_path / "w.csv", "cat\ndog\n")
    assert texts(read_data(words)) == (("cat", "dog"),)


@pytest.mark.parametrize("columns", [(0, 1), ("0", "1")])
@pytest.mark.parametrize("first", ["0", "1"])
def test_a_label_that_is_the_number_of_a_column_makes_no_header(
    tmp_path: Path, first: str, columns: tuple[Any, Any]
) -> None:
    path = tmp_path / "data.tsv"
    path.write_text(f"a fine film\t{first}\na poor film\t1\n")
    data = read_data(path, text=[columns[0]], label=columns[1])
    assert data.examples == 2 and data.labels is not None and data.labels.tolist() == [int(first), 1]
    assert next(iter(data.contents.told(data.chosen))) == "a fine film"


def test_a_header_that_counts_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("0,1\na fine film,1\na poor film,0\n")
    data = read_data(path, text="0", label="1")
    assert data.examples == 2 and data.labels is not None and data.labels.tolist() == [1, 0]


def test_header_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "text,kind\nthe cat sat,x\na dog,y\n")
    assert texts(read_data(path)) == (("the cat sat", "a dog"),)
    named = read_data(path, label=1)
    assert named.labels is not None and named.labels.tolist() == ["x", "y"]


def test_tabs_have_no_quotes(tmp_path: Path) -> None:
    data = read_data(write(tmp_path / "d.tsv", 'a "b\t1\nc, "d" e\t0\n'), text=0, label=1)
    assert texts(data) == (('a "b', 'c, "d" e'),)
    assert data.labels is not None and data.labels.dtype == np.int64


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(CELL, CELL, st.floats(-9, 9)), min_size=1))
@settings(deadline=None)
def test_what_csv_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float]]
) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([("one", "two", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "d.csv", out.getvalue())
    found, labels = read_table(path, ("one", "two"), "label")
    assert found.columns == tuple(zip(*((a, b) for a, b, _ in rows), strict=True))
    assert labels is not None and labels.tolist() == [label for _, _, label in rows]


@given(
    st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".txt", ""]), st.sampled_from([None, 1, "x"])
)
@settings(deadline=None)
def test_any_bytes_are_read_or_declined(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, label: int | str | None
) -> None:
    path = write(tmp_path_factory.mktemp("bytes") / f"d{suffix}", content)
    try:
        data = read_data(path, label=label)
    except GraphpruneError as error:
        assert str(path.name) in str(error)
        return
    assert data.examples and all(text.strip() for column in texts(data) for text in column)


@pytest.mark.parametrize(
    ("name", "content", "options", "told"),
    [
        ("d.csv", PAIRS, {"text": "third"}, "no column third: name one of 0 … 2 or first, second, score"),
        ("d.csv", "a b,1\nc d,2\n", {"text": 7, "label": 1}, "no column 7: name one of 0 … 1; the file"),
        ("d.csv", PAIRS, {"text": 0, "label": "grade"}, "no column grade"),
        ("d.csv", "a b,1\nc d\n", {}, "line 2 has 1 columns, and the first row has 2"),
        ("d.csv", 'a b,1\n"c\nd",2\ne,f,3\n', {}, "line 4 has 3 columns"),
        ("d.csv", 'a b,1\n"c d,2\n', {}, "line 2 cannot be read: unexpected end of data"),
        ("d.csv", "", {}, "d.csv is empty"),
        ("d.csv", "text,label\n", {"text": "text"}, "d.csv is empty"),
        ("d.csv", "a b,1\n ,2\n", {"label": 1}, "line 2: the text is empty"),
        ("d.csv", "a b,1\nc d,\n", {"label": 1}, "line 2: the label is empty"),
        ("d.csv", "a b,1\nc d,nan\n", {"label": 1}, "line 2: the label nan is not finite"),
        ("d.txt", "\n \n", {}, "d.txt is empty"),
        ("d.txt", b"a b\nc \xff d\n", {}, "line 2 is not in UTF-8 .byte 0xff."),
        ("d.json", "{}", {}, "data comes as text"),
        ("d.txt", "a b", {"text": 0}, "has no columns of texts"),
        ("d.txt", "a b", {"label": 0}, "has no labels"),
        ("d.txt", "a b", {"length": 1}, "too short"),
        ("d.txt", "a b", {"limit": 0}, "0 examples are too few"),
        ("d.txt", "a b", {"metric": "accuracy"}, "d.txt: accuracy needs labels"),
        ("d.txt", "a b", {"metric": "bleu"}, "there is no metric 'bleu': choose among cosine, kl"),
        ("d.csv", PAIRS, {"text": (0, 1), "metric": "spearman"}, "spearman needs labels"),
        ("d.csv", PAIRS, {"text": 0, "label": 1, "metric": "spearman"}, "that are numbers, not the dog"),
        ("d.csv", "a,b,1\nc,d,2\n", {"text": (0, 1), "label": 2, "metric": "spearman"}, "2 pairs are too"),
        ("d.csv", "a,b,1\n" * 4, {"text": (0, 1), "label": 2, "metric": "spearman"}, "all 4 labels are 1"),
    ],
)  # fmt: skip
def test_what_is_declined(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, object], told: str
) -> None:
    with pytest.raises((LoadError, SelectionError), match=told):
        read_data(write(tmp_path / name, content), **options)  # type: ignore[arg-type]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        read_data(tmp_path / "d.csv")


def test_the_sample() -> None:
    data = read_data()
    assert data.examples == len(set(texts(data)[0])) == 300
