"""CSV files as columns of checked numbers, a block of rows at a time; every refusal names file, row and cell.

Rows are line numbers: the header is row 1. The standard library's reader and NumPy are enough for that, so reading a
trace needs no extra package. Memory is that of the numbers: text is dropped block by block.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import TraceError

from .lines import MAX_ROWS, file_stamp, text_lines
from .trace import COLUMNS, Column

BLOCK = 1 << 12
"""rows converted at once: few enough for their text to stay in the processor's cache"""
MAX_NAMES = 100_000
"""distinct names in a column of names"""
TIME = re.compile(r"((?:19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?")

Parsed = tuple[NDArray[Any], NDArray[np.bool_]]
"""values [n] and which of them are refused, bool [n]"""


class Field(Protocol):
    """How the cells of one column become numbers."""

    accepted: str

    def parse(self, cells: Sequence[str]) -> Parsed:
        """Values of the next cells of the column, and which cells are refused."""
        ...


class Numbers:
    """Numbers in the range of a trace column; `rising`: none below the one before it."""

    def __init__(self, column: Column, rising: bool = False) -> None:
        self.column = column
        self.accepted = column.accepted
        self.order = Rising() if rising else None

    def parse(self, cells: Sequence[str]) -> Parsed:
        """float64 values; text is refused, an empty cell is NaN."""
        return self.check(_numbers(cells))

    def check(self, values: NDArray[np.float64]) -> Parsed:
        """The next values of the column, and which of them are refused."""
        bad = self.column.bad(values)
        if self.order is not None and not bad.any():
            bad = self.order.late(values)
            self.accepted = "times sorted from early to late" if bad.any() else self.accepted
        return values, bad


class WallClock:
    """Wall-clock times, sorted, as nanoseconds since 1970."""

    accepted = "a time such as 2023-11-16 18:15:46.6805900"

    def __init__(self) -> None:
        self.order = Rising()

    def parse(self, cells: Sequence[str]) -> Parsed:
        """int64 values."""
        found = [TIME.fullmatch(cell) for cell in cells]
        try:
            values = np.array([match[1] if match else "NaT" for match in found], "datetime64[ns]")
        except ValueError:  # a day 32: slowly, to find it
            values = np.array([_time(match) for match in found], "datetime64[ns]")
        bad = np.isnat(values)
        if not bad.any():
            bad = self.order.late(values.astype(np.int64))
            self.accepted = "times sorted from early to late" if bad.any() else self.accepted
        return values.astype(np.int64), bad


class Indices:
    """Names out of a given list, as indices into it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.accepted = " or ".join(names)
        self.index = {entry: i for i, entry in enumerate(names)}

    def parse(self, cells: Sequence[str]) -> Parsed:
        """int64 values."""
        values = np.fromiter((self.index.get(cell, -1) for cell in cells), np.int64, len(cells))
        return values, values < 0


class Names:
    """Any names, as indices into `names`, which lists them in the order of first appearance."""

    accepted = f"a name, at most {MAX_NAMES} different ones"

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self.index)

    def parse(self, cells: Sequence[str]) -> Parsed:
        """int64 values."""
        values = np.fromiter((self.index.setdefault(cell, len(self.index)) for cell in cells), np.int64, len(cells))
        bad = values >= MAX_NAMES
        if "" in self.index:
            bad |= values == self.index[""]
        return values, bad


class Ids:
    """Identifiers, none twice; their values are not kept."""

    accepted = "each id once"

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def parse(self, cells: Sequence[str]) -> Parsed:
        """No values: zeros, int64."""
        bad = np.zeros(len(cells), np.bool_)
        if len(set(cells)) < len(cells) or not self.seen.isdisjoint(cells):
            bad[_first_repeat(cells, self.seen)] = True
        self.seen.update(cells)
        return np.zeros(len(cells), np.int64), bad


class Rising:
    """Finds the first value below the one before it, across blocks."""

    def __init__(self) -> None:
        self.last: float = -math.inf

    def late(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """bool [n]"""
        bad: NDArray[np.bool_] = np.append(bool(values[0] < self.last), values[1:] < values[:-1])
        self.last = values[-1]
        return bad


def number_field(name: str, rising: bool = False) -> Numbers:
    """Field for numbers of the trace column `name`."""
    return Numbers(COLUMNS[name], rising)


def token_field(min_tokens: int) -> Numbers:
    """Field for lengths; zero is refused unless `min_tokens` says what it becomes (see `ReplayConfig`)."""
    accepted = "a whole number >= 1, below 2^31 (workload.min_tokens=1 turns zeros into ones)"
    return Numbers(Column(np.int32, 0 if min_tokens else 1, accepted))


def read_columns(
    path: Path, fields: Mapping[str, Field], optional: Collection[str] = (), header: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Columns [N] of a CSV file (``.gz`` too) whose header has at least the names in `fields` that are not `optional`.

    Other columns are ignored. `header` names the columns of a file that has no header line.

    Raises
    ------
    TraceError
        No file, damaged, not text, no rows, too many, a column missing or named twice, a row of another length or a
        blank one, a cell that its field refuses.
    """
    file_stamp(path)
    blocks = _blocks(path)
    if not header:
        header = _header(path, next(blocks)[1][0], [name for name in fields if name not in optional])
    used = {name: field for name, field in fields.items() if name in header}
    place = {name: header.index(name) for name in used}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in used}
    for first_row, rows in blocks:
        _refuse_widths(path, first_row, rows, len(header))
        cells = list(zip(*rows, strict=True))
        for name, field in used.items():
            values, bad = field.parse(cells[place[name]])
            if bad.any():
                i = int(bad.argmax())
                raise TraceError(
                    f"{path}: row {first_row + i}: {name} is '{shown(rows[i][place[name]])}'; "
                    f"accepted: {field.accepted}"
                )
            parts[name].append(values)
    if not next(iter(parts.values())):
        raise TraceError(f"{path}: no requests after the header; accepted: at least one")
    return {name: np.concatenate(values) for name, values in parts.items()}


def _blocks(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """(row number of the first, rows): the header alone, then blocks of requests. Blank lines at the end are left out."""
    reader = csv.reader(text_lines(path, "CSV"))
    rows: list[list[str]] = []
    first_row, blank_row, row, width = 1, 0, 0, 0
    try:
        for line in reader:
            row += 1
            if reader.line_num != row:
                raise TraceError(f"{path}: row {row}: a cell runs over several lines; accepted: one line a request")
            if not line:
                blank_row = blank_row or row
                continue
            if row > MAX_ROWS:
                raise TraceError(f"{path}: row {row}: too many; accepted: at most {MAX_ROWS} rows, in several files")
            if blank_row and row > 1:
                raise TraceError(f"{path}: row {blank_row}: 0 cells; accepted: {width} as in the header")
            rows.append(line)
            width = width or len(line)
            if len(rows) == BLOCK or row == 1:
                yield first_row, rows
                rows, first_row = [], row + 1
    except csv.Error as error:
        raise TraceError(f"{path}: row {row + 1}: not a line of a CSV file ({error})") from error
    if row == 0 or blank_row == 1:
        raise TraceError(f"{path}: empty; accepted: a header line and at least one request")
    if rows:
        yield first_row, rows


def _header(path: Path, line: list[str], required: list[str]) -> list[str]:
    header = [name.strip() for name in line]
    missing = [name for name in required if name not in header]
    if missing:
        other = next((mark for mark in (";", "\t", "|") if mark in "".join(line)), None)
        hint = f" (cells are separated by {other!r}; accepted: ',')" if other else ""
        found = shown(", ".join(header), 300)
        raise TraceError(f"{path}: row 1: no column {', '.join(missing)}; found: {found}{hint}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TraceError(f"{path}: row 1: column {', '.join(twice)} twice; accepted: each name once")
    return header


def _refuse_widths(path: Path, first_row: int, rows: list[list[str]], width: int) -> None:
    if {len(row) for row in rows} == {width}:
        return
    i = next(i for i, row in enumerate(rows) if len(row) != width)
    raise TraceError(f"{path}: row {first_row + i}: {len(rows[i])} cells; accepted: {width} as in the header")


def shown(cell: str, length: int = 80) -> str:
    """A cell for a message, cut short."""
    return cell if len(cell) <= length else cell[: length - 3] + "..."


def _numbers(cells: Sequence[str]) -> NDArray[np.float64]:
    """[n] values: NaN where empty, minus infinity (which no column accepts) where text."""
    try:
        if "_" not in "".join(cells):  # Python reads 1_000 as a number
            return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        pass
    return np.array([_number(cell) for cell in cells])


def _number(cell: str) -> float:
    try:
        return (float(cell) if "_" not in cell else -math.inf) if cell.strip() else math.nan
    except ValueError:
        return -math.inf


def _time(match: re.Match[str] | None) -> np.datetime64:
    try:
        return np.datetime64(match[1] if match else "NaT", "ns")
    except ValueError:
        return np.datetime64("NaT", "ns")


def _first_repeat(cells: Sequence[str], seen: set[str]) -> int:
    here: set[str] = set()
    for i, cell in enumerate(cells):
        if cell in seen or cell in here:
            return i
        here.add(cell)
    return 0
