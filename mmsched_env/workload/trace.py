"""`RequestTrace`: the requests of one episode as equally long arrays."""

from __future__ import annotations

import csv
import dataclasses
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmsched_env.errors import ConfigError, TraceError, unknown_name

CLASS_NAMES = ("interactive", "batch")
SLO_SCALES = {"interactive": 5.0, "batch": 20.0}
"""default SLO of a class: this multiple of the request's own unloaded latency"""


@dataclass(frozen=True)
class Column:
    """Type and accepted range of one column: ``low <= value`` (``<`` if `exclusive`), finite unless `nan_ok`."""

    dtype: type[np.generic]
    low: float
    accepted: str
    exclusive: bool = False
    nan_ok: bool = False

    def bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """[N] true where a value is out of range."""
        with np.errstate(invalid="ignore"):
            ok: NDArray[np.bool_] = np.isfinite(values) & (values > self.low if self.exclusive else values >= self.low)
            if issubclass(self.dtype, np.integer):
                ok &= (values == np.floor(values)) & (values <= np.iinfo(self.dtype).max)
            elif self.dtype is np.float32:
                ok &= values <= np.finfo(np.float32).max
        return ~(ok | np.isnan(values)) if self.nan_ok else ~ok


COLUMNS: dict[str, Column] = {
    "arrival_s": Column(np.float64, 0, "seconds >= 0"),
    "model": Column(np.int32, 0, "an index into model_names"),
    "prompt_tokens": Column(np.int32, 1, "a whole number >= 1, below 2^31"),
    "image_tokens": Column(np.int32, 0, "a whole number >= 0, below 2^31"),
    "max_tokens": Column(np.int32, 1, "a whole number >= output_tokens, below 2^31"),
    "output_tokens": Column(np.int32, 1, "a whole number >= 1, below 2^31"),
    "predicted_tokens": Column(np.float32, 1, "a number >= 1"),
    "slo_class": Column(np.int32, 0, "an index into class_names"),
    "weight": Column(np.float32, 0, "a number > 0", exclusive=True),
    "tenant": Column(np.int32, 0, "a whole number >= 0, below 2^31"),
    "slo_scale": Column(np.float32, 0, "a number > 0", exclusive=True),
    "slo_ttft_s": Column(np.float64, 0, "seconds > 0, or NaN for none", exclusive=True, nan_ok=True),
    "slo_e2e_s": Column(np.float64, 0, "seconds > 0, or NaN for none", exclusive=True, nan_ok=True),
}
"""every column of a trace, in the order of the fields below and of our CSV format"""
LONGEST_S = 1e8
"""three years: no record is longer, and what counts arrivals by the second would need all memory"""


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """N requests in order of arrival. Make one with `from_columns`, which checks and fills in defaults."""

    arrival_s: NDArray[np.float64]  # [N] seconds since the start of the episode, sorted
    model: NDArray[np.int32]  # [N] index into model_names
    prompt_tokens: NDArray[np.int32]  # [N] text tokens, >= 1
    image_tokens: NDArray[np.int32]  # [N] >= 0, on top of prompt_tokens
    max_tokens: NDArray[np.int32]  # [N] what the scheduler sees and reserves KV cache for, >= output_tokens
    output_tokens: NDArray[np.int32]  # [N] true output length, hidden from the scheduler, >= 1
    predicted_tokens: NDArray[np.float32]  # [N] predicted output length, >= 1
    slo_class: NDArray[np.int32]  # [N] index into class_names
    weight: NDArray[np.float32]  # [N] > 0
    tenant: NDArray[np.int32]  # [N] >= 0
    slo_scale: NDArray[np.float32]  # [N] SLO as a multiple of the request's own unloaded latency, > 0
    slo_ttft_s: NDArray[np.float64]  # [N] absolute target in seconds; NaN: use slo_scale
    slo_e2e_s: NDArray[np.float64]  # [N] absolute target in seconds; NaN: use slo_scale
    model_names: tuple[str, ...]
    class_names: tuple[str, ...] = CLASS_NAMES
    notes: tuple[str, ...] = ()
    """what was done to the data on the way here, such as prompts clipped, with counts"""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def from_columns(
        cls,
        model_names: Sequence[str],
        *,
        class_names: Sequence[str] = CLASS_NAMES,
        notes: Sequence[str] = (),
        source: str = "",
        first_row: int = 0,
        **columns: ArrayLike,
    ) -> RequestTrace:
        """Copy `columns` into a checked trace.

        ``arrival_s`` and ``output_tokens`` are needed; a scalar is repeated for every request. Defaults: model 0, one
        prompt token, no image tokens, ``max_tokens`` = the largest output of the trace for all, ``predicted_tokens`` =
        ``max_tokens``, class 0, weight 1, tenant 0, ``slo_scale`` of the class (`SLO_SCALES`, else 5), no absolute
        targets. `source` and `first_row` are for error messages, as in `validate`.

        Raises
        ------
        ConfigError
            A column that does not exist.
        TraceError
            A column is missing or `validate` refuses the data.
        """
        for name in columns:
            if name not in COLUMNS:
                raise unknown_name("trace column", name, COLUMNS)
        where = source or "trace"
        for name in ("arrival_s", "output_tokens"):
            if name not in columns:
                raise TraceError(f"{where}: column {name} is missing")
        size = np.size(columns["arrival_s"])
        if size == 0:
            raise TraceError(f"{where}: no requests; accepted: at least one")

        def column(name: str, default: ArrayLike) -> NDArray[Any]:
            if name not in columns:
                return np.array(np.broadcast_to(default, (size,)), COLUMNS[name].dtype)
            return _column(name, columns[name], size, where, first_row)

        output = column("output_tokens", 0)
        max_tokens = column("max_tokens", output.max())
        slo_class = column("slo_class", 0)
        _below(slo_class, len(class_names), "slo_class", "class_names", where, first_row)
        scales = np.array([SLO_SCALES.get(name, 5.0) for name in class_names])
        filled = {
            "output_tokens": output,
            "max_tokens": max_tokens,
            "slo_class": slo_class,
            "predicted_tokens": column("predicted_tokens", max_tokens),
            "slo_scale": column("slo_scale", scales[slo_class]),
            "arrival_s": column("arrival_s", 0),
            "prompt_tokens": column("prompt_tokens", 1),
            "weight": column("weight", 1),
            **{name: column(name, 0) for name in ("model", "image_tokens", "tenant")},
            **{name: column(name, np.nan) for name in ("slo_ttft_s", "slo_e2e_s")},
        }
        trace = cls(**filled, model_names=tuple(model_names), class_names=tuple(class_names), notes=tuple(notes))
        trace._validate_relations(where, first_row)  # each column by itself has been checked
        return trace

    def validate(self, source: str = "", first_row: int = 0) -> None:
        """Refuse a trace the simulator cannot run.

        Messages name `source` and the row, which is the request's index plus `first_row` (2 for a file whose line 1 is
        the header).

        Raises
        ------
        TraceError
            No request, unequal lengths, a wrong dtype, a value out of its column's range (NaN, infinite, no tokens),
            unsorted arrivals, an index past ``model_names`` or ``class_names``, more output than ``max_tokens``.
        """
        where = source or "trace"
        if len(self) == 0:
            raise TraceError(f"{where}: no requests; accepted: at least one")
        for name, column in COLUMNS.items():
            values = getattr(self, name)
            if values.shape != (len(self),):
                raise TraceError(f"{where}: {name} has shape {values.shape}; accepted: {(len(self),)} like arrival_s")
            if values.dtype != column.dtype:
                raise TraceError(f"{where}: {name} is {values.dtype}; accepted: {np.dtype(column.dtype)}")
            _refuse(column.bad(values), values, name, column.accepted, where, first_row)
        self._validate_relations(where, first_row)

    def _validate_relations(self, where: str, first_row: int) -> None:
        late = np.append(False, np.diff(self.arrival_s) < 0)
        _refuse(late, self.arrival_s, "arrival_s", "times sorted from early to late", where, first_row)
        far = self.arrival_s - self.arrival_s[0] > LONGEST_S
        _refuse(far, self.arrival_s, "arrival_s", f"at most {LONGEST_S:g} s after the first", where, first_row)
        _below(self.model, len(self.model_names), "model", "model_names", where, first_row)
        _below(self.slo_class, len(self.class_names), "slo_class", "class_names", where, first_row)
        over = self.output_tokens > self.max_tokens
        _refuse(over, self.max_tokens, "max_tokens", COLUMNS["max_tokens"].accepted, where, first_row)

    def select(self, rows: slice | NDArray[np.bool_] | NDArray[np.integer[Any]] | Sequence[int]) -> RequestTrace:
        """The requests in `rows` (slice, mask or indices), copied, with their arrival times as they are.

        Raises
        ------
        TraceError
            Nothing is selected, or the rows are out of the order of arrival.
        """
        index = np.arange(len(self))[rows]
        picked = dataclasses.replace(self, **{name: getattr(self, name)[index] for name in COLUMNS})
        picked.validate("selected requests")
        return picked

    def shift_time(self, offset_s: float) -> RequestTrace:
        """The same requests, every arrival `offset_s` seconds later (earlier if negative).

        Raises
        ------
        TraceError
            A request would arrive before second 0.
        """
        shifted = dataclasses.replace(self, arrival_s=self.arrival_s + offset_s)
        shifted.validate("shifted requests")
        return shifted

    def rescale_time(self, factor: float) -> RequestTrace:
        """The same requests with every arrival time multiplied by `factor`; 0.5 doubles the load.

        Raises
        ------
        ConfigError
            `factor` is not a finite number > 0.
        """
        if not 0 < factor < np.inf:
            raise ConfigError(f"time factor is {factor!r}; accepted: a finite number > 0")
        return dataclasses.replace(self, arrival_s=self.arrival_s * factor)

    def write_csv(self, path: str | Path) -> None:
        """Write the trace as CSV (``.csv.gz``: compressed), atomically: one row a request, models and classes by name, an absent target as an empty cell.

        `CsvFileConfig` reads it back to the same bits. Notes are not written.
        """
        cells = {name: [_cell(value) for value in getattr(self, name).tolist()] for name in COLUMNS}
        for name in ("predicted_tokens", "weight", "slo_scale"):
            cells[name] = [str(value) for value in getattr(self, name)]  # shortest text that gives this float32
        path, cells = Path(path), cells | self._names()
        part = path.with_name(path.name + ".part")
        opener: Any = gzip.open if path.suffix == ".gz" else Path.open
        with opener(part, "wt", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(cells)
            writer.writerows(zip(*cells.values(), strict=True))
        part.replace(path)

    def write_parquet(self, path: str | Path) -> None:
        """Write the trace as Parquet, columns as in `write_csv`; needs pyarrow. `CsvFileConfig` reads it back."""
        from .parquet import write_parquet

        write_parquet(Path(path), {name: getattr(self, name) for name in COLUMNS} | self._names())

    def _names(self) -> dict[str, list[str]]:
        """Columns of names instead of indices."""
        return {
            "model": [self.model_names[i] for i in self.model],
            "slo_class": [self.class_names[i] for i in self.slo_class],
        }


def _column(name: str, values: ArrayLike, size: int, where: str, first_row: int) -> NDArray[Any]:
    """[size] own copy of `values` in the column's dtype, checked before it is narrowed."""
    column = COLUMNS[name]
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TraceError(f"{where}: {name} holds {array.dtype}; accepted: numbers")
    if array.ndim > 1 or array.size not in (1, size):
        raise TraceError(f"{where}: {name} has shape {array.shape}; accepted: ({size},) like arrival_s")
    _refuse(column.bad(array.reshape(-1)), array.reshape(-1), name, column.accepted, where, first_row)
    return np.array(np.broadcast_to(array, (size,)), dtype=column.dtype)


def _below(values: NDArray[Any], count: int, name: str, names: str, where: str, first_row: int) -> None:
    _refuse(values >= count, values, name, f"0..{count - 1}, an index into {names}", where, first_row)


def _refuse(bad: NDArray[np.bool_], values: NDArray[Any], name: str, accepted: str, where: str, first_row: int) -> None:
    if bad.any():
        i = int(bad.argmax())
        raise TraceError(f"{where}: row {i + first_row}: {name} is {values[i]}; accepted: {accepted}")


def _cell(value: float) -> str:
    return "" if value != value else repr(value)
