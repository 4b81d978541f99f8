"""JSON Lines as columns of checked numbers; every refusal names file, row and key. Rows are line numbers, from 1."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import TraceError

from .lines import MAX_ROWS, file_stamp, text_lines
from .table import BLOCK, Rising
from .trace import Column


def read_jsonl(path: Path, columns: Mapping[str, Column], rising: str) -> dict[str, NDArray[np.float64]]:
    """Columns [N] of a file with one object of numbers a line; the key `rising` never falls. Other keys are ignored.

    Raises
    ------
    TraceError
        No file, damaged, not JSON, no rows, too many, a key missing, a value out of its column's range.
    """
    order = Rising()
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}
    objects = json_objects(path)
    row = 1
    while block := [tuple(map(entry.get, columns)) for entry in islice(objects, BLOCK)]:  # the rest is dropped here
        if row + len(block) > MAX_ROWS:
            raise TraceError(f"{path}: row {MAX_ROWS}: too many; accepted: at most {MAX_ROWS} rows, in several files")
        for (name, column), cells in zip(columns.items(), zip(*block, strict=True), strict=True):
            values = _numbers(cells)
            bad, accepted = column.bad(values), column.accepted
            if name == rising and not bad.any():
                bad, accepted = order.late(values), "times sorted from early to late"
            if bad.any():
                i = int(bad.argmax())
                found = "missing" if cells[i] is None else json.dumps(cells[i])[:80]
                raise TraceError(f"{path}: row {row + i}: {name} is {found}; accepted: {accepted}")
            parts[name].append(values)
        row += len(block)
    if row == 1:
        raise TraceError(f"{path}: empty; accepted: one JSON object a line")
    return {name: np.concatenate(values) for name, values in parts.items()}


def json_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line; blank lines at the end are left out."""
    file_stamp(path)
    blank = 0
    for row, line in enumerate(text_lines(path, "JSONL"), 1):
        if not line.strip():
            blank = blank or row
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}: row {row}: not JSON ({str(error)[:80]}); accepted: one object a line") from error
        if blank or not isinstance(entry, dict):
            what = f"row {blank}: blank" if blank else f"row {row}: no JSON object"
            raise TraceError(f"{path}: {what}; accepted: one JSON object a line")
        yield entry


def _numbers(cells: Sequence[object]) -> NDArray[np.float64]:
    """[n] floats; minus infinity (which no column accepts) for what is no number."""
    if set(map(type, cells)) <= {int, float}:
        try:
            return np.array(cells, np.float64)
        except OverflowError:
            pass
    return np.array([_number(cell) for cell in cells])


def _number(value: object) -> float:
    """A float; minus infinity (which no column accepts) for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -math.inf
    try:
        return float(value)
    except OverflowError:
        return math.inf
