"""The one table of measurements: a row is one measured figure, in SI units (columns: docs/importers.md).

Rows are checked when they are made, wherever they come from, so that whoever holds a `Measurement` holds a usable one.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmsched_env.errors import ConfigError, unknown_name

from .atomic import write_atomic

CPU_ONLY = "none (CPU)"
"""`gpu` of what was measured without a GPU; `num_gpus` is then 0"""

ALL_LAYERS = -1
"""`n_gpu_layers` of a model wholly on the GPU: all layers and the output head (so is any number above the layers)"""

TIERS = ("ram", "page_cache", "disk", "network")
"""where a load reads from, or a save writes to; empty: not stated"""

PROVENANCES = ("measured", "imported")
"""measured by `mmsched calibrate`, or imported from someone else's figures"""

SECONDS, RATE, BYTE_RATE = "s", "tokens/s", "B/s"

UNITS: dict[str, tuple[str, ...]] = {
    "decode": (RATE,),  # generated tokens of the whole batch
    "prefill": (RATE,),
    "load": (SECONDS,),  # weights to where they are used, engine already running
    "unload": (SECONDS,),
    "start": (SECONDS,),  # the whole engine, until it serves
    "sleep": (SECONDS,),  # engine gives up GPU memory, process stays
    "wake": (SECONDS,),
    "preempt": (SECONDS,),  # one request put aside and another model in its place
    "save": (SECONDS, BYTE_RATE),  # KV cache, GPU to `tier`
    "restore": (SECONDS, BYTE_RATE),
    "copy_h2d": (SECONDS, BYTE_RATE),
    "copy_d2h": (SECONDS, BYTE_RATE),
    "disk_read": (SECONDS, BYTE_RATE),
    "serve": (RATE,),  # output tokens of a whole serving run over its duration; batch: highest concurrency
    "throughput": (RATE,),  # the same with the prompts' tokens
    "ttft": (SECONDS,),  # the following: mean over the requests of a serving run, queueing included
    "tpot": (SECONDS,),
    "itl": (SECONDS,),
    "e2e": (SECONDS,),
}
"""operation -> units it can be given in"""

WITHOUT_MODEL = ("save", "restore", "copy_h2d", "copy_d2h", "disk_read")
"""operations that need name no model"""

WITHOUT_GPU = ("disk_read",)

DATE = re.compile(r"(\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?)?")


class MissingColumn(ConfigError):
    """A row without a column that it needs."""

    def __init__(self, column: str, accepted: str) -> None:
        super().__init__(f"{column} is ''; accepted: {accepted}")
        self.column = column


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured figure.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its column and what is accepted.
    """

    series: str = ""
    """what was measured together, with one thing varied: a sweep; empty: on its own"""
    gpu: str = ""
    """as its vendor calls it, without the vendor (RTX 3090); CPU_ONLY without one"""
    gpu_mem_gb: float | None = None
    """of one GPU, as sold (24)"""
    num_gpus: int = 1
    host: str = ""
    """CPU and memory, as far as known"""
    link: str = ""
    """between host and GPU: pcie4x16"""
    engine: str = ""
    """with its backend: llama.cpp CUDA"""
    engine_version: str = ""
    model: str = ""
    quant: str = ""
    params_b: float | None = None
    """10^9 parameters"""
    num_layers: int | None = None
    n_gpu_layers: int | None = None
    """llama.cpp's: repeating layers, then the output head; ALL_LAYERS: everything"""
    n_cpu_moe: int | None = None
    """layers whose experts stay on the CPU"""
    operation: str
    tier: str = ""
    pinned: bool | None = None
    tokens: int | None = None
    """generated (decode), of the prompt (prefill), of the saved cache (save, restore), output per request (serving)"""
    depth: int | None = None
    """tokens in the KV cache before the first one timed; serving: prompt per request"""
    batch: int | None = None
    """sequences at once; serving: the highest concurrency"""
    ubatch: int | None = None
    """tokens of a prompt computed at once"""
    size_bytes: int | None = None
    """copied, loaded or saved; decode and prefill: of the model's weights"""
    value: float
    """> 0, in `unit`"""
    unit: str
    spread: float | None = None
    """standard deviation of a repeat, in `unit`"""
    repeats: int | None = None
    date: str = ""
    """of the measurement: YYYY, YYYY-MM or YYYY-MM-DD"""
    source: str
    """where the figure is published, or the file it was read from"""
    provenance: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.operation not in UNITS:
            raise unknown_name("operation", self.operation, UNITS)
        _require(self.unit in UNITS[self.operation], "unit", self.unit, " or ".join(UNITS[self.operation]))
        for column, low in LOWEST.items():
            value = getattr(self, column)
            if value is not None:
                _require(math.isfinite(value) and value >= low, column, value, f"a finite number >= {low}")
        for column in ("value", "gpu_mem_gb", "params_b"):
            value = getattr(self, column)
            if value is not None:
                _require(0 < value < math.inf, column, value, "a finite number > 0")
        _require(self.tier in ("", *TIERS), "tier", self.tier, f"{', '.join(TIERS)} or nothing")
        _require(self.provenance in PROVENANCES, "provenance", self.provenance, " or ".join(PROVENANCES))
        _require(DATE.fullmatch(self.date) is not None, "date", self.date, "YYYY, YYYY-MM, YYYY-MM-DD or nothing")
        _require(bool(self.source.strip()), "source", self.source, "where the figure comes from")
        if not self.model and self.operation not in WITHOUT_MODEL:
            raise MissingColumn("model", f"the model, for {self.operation}")
        if not self.gpu and self.operation not in WITHOUT_GPU:
            raise MissingColumn("gpu", f"a GPU, or {CPU_ONLY!r}")
        alone = self.gpu == CPU_ONLY
        _require(
            not self.gpu or alone == (self.num_gpus == 0),
            "num_gpus",
            self.num_gpus,
            "0 without a GPU" if alone else ">= 1",
        )


LOWEST = {
    "num_gpus": 0,
    "num_layers": 1,
    "n_gpu_layers": ALL_LAYERS,
    "n_cpu_moe": 0,
    "tokens": 1,
    "depth": 0,
    "batch": 1,
    "ubatch": 1,
    "size_bytes": 1,
    "spread": 0,
    "repeats": 1,
}
"""column -> smallest number accepted"""

COLUMNS = tuple(field.name for field in fields(Measurement))
"""header of a measurement file, in this order"""


def read(path: Path) -> list[Measurement]:
    """Rows of a measurement file.

    Raises
    ------
    ConfigError
        No such file, another header, or a cell that cannot be used: one line with file, row (the header is row 1) and
        column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return [_row(where, cells) for where, cells in cells_of(text)]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _row(where: str, cells: dict[str, str]) -> Measurement:
    try:
        return from_cells(cells)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def cells_of(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(``row N``, its cells by column) of each row of a measurement file's text.

    Raises
    ------
    ConfigError
        Text that is no CSV, another header, a row of another width.
    """
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ConfigError(f"is not CSV: {error}") from None
    if not lines:
        raise ConfigError(f"is empty; accepted: a header with the columns {', '.join(COLUMNS)}")
    header = lines[0]
    missing, unknown = [c for c in COLUMNS if c not in header], [c for c in header if c not in COLUMNS]
    if missing or unknown or len(header) != len(COLUMNS):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown) or 'a column twice'}"
        raise ConfigError(f"row 1 {wrong}; accepted: the columns {', '.join(COLUMNS)}")
    for number, cells in enumerate(lines[1:], start=2):
        if cells and len(cells) != len(header):
            raise ConfigError(f"row {number} has {len(cells)} cells; accepted: {len(header)}, as in the header")
        if cells:
            yield f"row {number}", dict(zip(header, cells, strict=True))


def write(path: Path, rows: Iterable[Measurement]) -> None:
    """Write a measurement file in one step; the same rows give the same bytes, and are read back equal.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(getattr(row, column)) for column in COLUMNS] for row in rows)
    write_atomic(path, text.getvalue())


def from_cells(cells: Mapping[str, str]) -> Measurement:
    """A row out of the text of its cells; empty ones are left at their defaults.

    Raises
    ------
    ConfigError
        A cell that cannot be used, with its column and what is accepted.
    """
    return from_values(values_of(cells))


def values_of(cells: Mapping[str, str]) -> dict[str, Any]:
    """The values of the cells that are not empty. Raises ConfigError for one that is no value of its column."""
    return {column: PARSERS[column](column, text.strip()) for column, text in cells.items() if text.strip()}


def from_values(values: Mapping[str, Any]) -> Measurement:
    """A row out of some of its columns. Raises ConfigError for one that is missing or cannot be used."""
    for column in REQUIRED:
        _require(column in values, column, "", "a value: the column cannot be empty")
    return Measurement(**values)


REQUIRED = ("operation", "value", "unit", "source", "provenance")


def whole(column: str, text: str) -> int:
    """Text as a whole number. Raises ConfigError."""
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{column} is {text!r}; accepted: a whole number") from None


def number(column: str, text: str) -> float:
    """Text as a number. Raises ConfigError."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{column} is {text!r}; accepted: a number") from None


def _yes_no(column: str, text: str) -> bool:
    _require(text in ("y", "n"), column, text, "y, n or nothing")
    return text == "y"


def _text(column: str, text: str) -> str:
    return text


_PARSER_OF_TYPE: dict[str, Callable[[str, str], object]] = {
    "str": _text,
    "int": whole,
    "int | None": whole,
    "float": number,
    "float | None": number,
    "bool | None": _yes_no,
}
PARSERS = {field.name: _PARSER_OF_TYPE[str(field.type)] for field in fields(Measurement)}
"""column -> its text to its value"""


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "y" if value else "n"
    if isinstance(value, float) and value.is_integer() and value < 1e15:
        return str(int(value))
    return str(value)


def _require(ok: bool, column: str, value: object, accepted: str) -> None:
    if not ok:
        raise ConfigError(f"{column} is {value!r}; accepted: {accepted}")
