"""Texts from files: a text a line, or columns of a CSV or TSV file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from graphprune.data.labels import read_labels
from graphprune.data.texts import Texts
from graphprune.errors import LoadError, SelectionError

Column = str | int

_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def decoded(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; line ends as they are.

    Raises `LoadError` where it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise LoadError(
            f"{path}: line {line} is not in UTF-8 (byte {error.object[error.start]:#04x}): convert the file"
        ) from error


def read_lines(path: Path) -> Texts:
    """A text a line; lines that are blank go with the text before them. Raises `LoadError`."""
    return lines_of(decoded(path), path.name)


def lines_of(text: str, name: str) -> Texts:
    """As `read_lines`, of a text that was read already from the file `name`."""
    pieces: list[str] = []
    begin, prose = "", False
    for line in io.StringIO(text, newline=None):
        if line.strip():
            pieces.append(begin + line)
            begin = ""
        elif pieces:
            pieces[-1] += line
            prose = True
        else:
            begin += line
    if not pieces:
        raise LoadError(f"{name} is empty: give a text a line")
    return Texts((tuple(piece.strip() for piece in pieces),), tuple(pieces), prose)


@dataclass(frozen=True)
class Table:
    """Rows of cells with the lines that they stand on; `header` is empty where there is none."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def cells(self, column: Column) -> tuple[str, ...]:
        """The cells of a column, by its name or its number from 0. Raises `SelectionError`."""
        index = self._index(column)
        return tuple(row[index] for row in self.rows)

    def places(self) -> list[str]:
        """Where each row stands, for errors."""
        return [f"{self.path}: line {line}" for line in self.lines]

    def _index(self, column: Column) -> int:
        if column in self.header:
            return self.header.index(str(column))
        width = len(self.rows[0])
        number = int(column) if str(column).isdecimal() and len(str(column)) < 10 else width
        if number < width:
            return number
        names = f" or {', '.join(self.header)}" if self.header else "; the file has no header"
        raise SelectionError(f"{self.path}: there is no column {column}: name one of 0 … {width - 1}{names}")


def read_table(path: Path, text: Sequence[Column], label: Column | None) -> tuple[Texts, NDArray[Any] | None]:
    """Texts and labels of a CSV or TSV file; without `text` the first column is taken.

    Raises `LoadError` where it cannot be read, `SelectionError` where it has no such column.
    """
    chosen = tuple(text) or (0,)
    rows = list(_rows(path))
    table = _table(path, rows, header=bool(rows) and _has_header([row for _, row in rows], chosen, label))
    columns = tuple(table.cells(column) for column in chosen)
    for cells in columns:
        for cell, place in zip(cells, table.places(), strict=True):
            if not cell.strip():
                raise LoadError(f"{place}: the text is empty: fill it in or leave the row out")
    labels = None if label is None else read_labels(table.cells(label), table.places())
    return Texts(columns), labels


def read_cells(path: Path, label: Column | None, names: Callable[[str], bool]) -> Table:
    """A table whose first column holds names that `names` knows, and whose header, if any, does not.

    Raises `LoadError`.
    """
    rows = list(_rows(path))
    known = not rows or names(rows[0][1][0])
    return _table(path, rows, header=not known or (label is not None and not str(label).isdecimal()))


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The rows of a file, as long as each other, with the lines that they begin on. Raises `LoadError`."""
    tabs = path.suffix.lower() == ".tsv"
    text = io.StringIO(decoded(path), newline="")
    # Files of tabs have no quotes around cells, as those of GLUE; what is a quote there is part of the text.
    if tabs:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(text, strict=True)
    width, line = 0, 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise LoadError(f"{path}: the row on line {line} cannot be read: {error}") from error
        if row is None:
            break
        width = width or len(row)
        if row and len(row) != width:
            raise LoadError(
                f"{path}: line {line} has {len(row)} columns, and the first row has {width}: put quotes "
                "around cells with a separator in them"
            )
        if row:
            yield line, tuple(row)
        line = reader.line_num + 1


def _table(path: Path, rows: Sequence[tuple[int, tuple[str, ...]]], *, header: bool) -> Table:
    if len(rows) <= header:
        raise LoadError(f"{path} is empty: give a row for every example")
    lines, cells = zip(*rows, strict=True)
    names = tuple(cell.strip() for cell in cells[0]) if header else ()
    return Table(path, names, cells[header:], lines[header:])


def _has_header(rows: Sequence[tuple[str, ...]], text: Sequence[Column], label: Column | None) -> bool:
    """Whether the first row names the columns.

    It does where a column is asked for by a name, where it counts the columns from 0, where it alone has no
    number for a label, and where all of it are different words such as names are and below them there are
    texts of several. That a number which is asked for stands in it says nothing: labels are numbers too.
    """
    first = [cell.strip() for cell in rows[0]]
    names = [column for column in (*text, label) if column is not None and not str(column).isdecimal()]
    if names or (len(first) > 1 and first == [str(number) for number in range(len(first))]):
        return True
    numbers = [int(column) for column in text]
    if label is not None and int(label) < len(first):
        kinds = [_is_number(row[int(label)]) for row in rows]
        if len(rows) > 1 and all(kinds[1:]):
            return not kinds[0]
    words = len(set(first)) == len(first) and all(_IDENTIFIER.fullmatch(cell) for cell in first)
    spaced = [" " in row[number].strip() for row in rows[1:] for number in numbers if number < len(row)]
    return words and any(spaced)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
