"""A CSV file as columns of text, turned into checked numbers; every refusal names file, row and cell.

Rows are line numbers: the header is row 1. The standard library's reader and NumPy are enough for that, so reading a
trace needs no extra package.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import TraceError

from .trace import COLUMNS, Column

FIRST_ROW = 2
"""line number of the first request in a file"""
TIME = re.compile(r"(19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?")

Stamp = tuple[int, int]


def file_stamp(path: Path) -> Stamp:
    """Time of change (ns) and size of a file, to tell a cached reading from a changed file.

    Raises
    ------
    TraceError
        There is no such file.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise TraceError(f"{path}: {found}; accepted: a CSV file")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class Table:
    """A CSV file's cells by column; cell i of every column is in row i + 2."""

    path: Path
    columns: dict[str, tuple[str, ...]]

    def numbers(self, name: str, column: Column | None = None) -> NDArray[np.float64]:
        """[N] the column as numbers in the range of `column`, by default that of the trace column of this name."""
        column = column or COLUMNS[name]
        values = np.array([_number(cell) for cell in self.columns[name]])
        self.refuse(column.bad(values), name, column.accepted)
        return values

    def tokens(self, name: str, min_tokens: int) -> NDArray[np.float64]:
        """[N] a column of lengths; zero is refused unless `min_tokens` says what it becomes (see `ReplayConfig`)."""
        accepted = "a whole number >= 1 (workload.min_tokens=1 turns zeros into ones)"
        return self.numbers(name, Column(np.int32, 0 if min_tokens else 1, accepted))

    def times(self, name: str) -> NDArray[np.int64]:
        """[N] the column of wall-clock times as nanoseconds since 1970."""
        values = np.array([_time(cell) for cell in self.columns[name]])
        self.refuse(np.isnat(values), name, "a time such as 2023-11-16 18:15:46.6805900")
        return values.astype(np.int64)

    def indices(self, name: str, names: Sequence[str]) -> NDArray[np.int64]:
        """[N] the column of names as indices into `names`."""
        index = {entry: i for i, entry in enumerate(names)}
        values = np.array([index.get(cell, -1) for cell in self.columns[name]])
        self.refuse(values < 0, name, " or ".join(names))
        return values

    def refuse_unsorted(self, name: str, values: NDArray[np.float64] | NDArray[np.int64]) -> None:
        """Raise `TraceError` for the first time that lies before the one above it."""
        self.refuse(np.append(False, np.diff(values) < 0), name, "times sorted from early to late")

    def refuse(self, bad: NDArray[np.bool_], name: str, accepted: str) -> None:
        """Raise `TraceError` for the first row where `bad` is true."""
        if bad.any():
            i = int(bad.argmax())
            cell = self.columns[name][i]
            raise TraceError(f"{self.path}: row {i + FIRST_ROW}: {name} is '{cell}'; accepted: {accepted}")


def read_table(path: Path, required: Iterable[str]) -> Table:
    """Read a CSV file with a header that has at least the columns `required`.

    Raises
    ------
    TraceError
        No file, not text, no rows, a column missing or named twice, a row of another length or a blank one.
    """
    file_stamp(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(path, csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if not header:
        raise TraceError(f"{path}: empty; accepted: a header line and at least one request")
    missing = [name for name in required if name not in header]
    if missing:
        raise TraceError(f"{path}: row 1: no column {', '.join(missing)}; found: {', '.join(header)}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TraceError(f"{path}: row 1: column {', '.join(twice)} twice; accepted: each name once")
    if len(lines) == 1:
        raise TraceError(f"{path}: no requests after the header; accepted: at least one")
    for row, line in enumerate(lines[1:], FIRST_ROW):
        if len(line) != len(header):
            raise TraceError(f"{path}: row {row}: {len(line)} cells; accepted: {len(header)} as in the header")
    return Table(path, dict(zip(header, zip(*lines[1:], strict=True), strict=True)))


def _lines(path: Path, reader: Iterable[list[str]]) -> list[list[str]]:
    """All rows, without blank ones at the end."""
    lines = list(reader)
    while lines and not lines[-1]:
        lines.pop()
    for row, line in enumerate(lines, 1):
        if any("\n" in cell or "\r" in cell for cell in line):
            raise TraceError(f"{path}: row {row}: a cell runs over several lines; accepted: one line a request")
    return lines


def _number(cell: str) -> float:
    """A cell's value: NaN if empty, minus infinity (which no column accepts) for text."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        return -math.inf


def _time(cell: str) -> np.datetime64:
    try:
        return np.datetime64(cell if TIME.fullmatch(cell) else "NaT", "ns")
    except ValueError:
        return np.datetime64("NaT", "ns")
