"""Readers of what other tools write, as measurements.

To add one: a file with an `Importer` and a line in `IMPORTERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsched_env.errors import ConfigError

from ..schema import CPU_ONLY, Measurement, MissingColumn, from_values
from . import (
    llama_batched,
    llama_bench,
    llama_metrics,
    llama_server,
    nvbandwidth,
    ollama,
    ollama_log,
    own,
    published,
    vllm,
)
from .base import Draft, Importer

IMPORTERS: tuple[Importer, ...] = (
    own.IMPORTER,
    published.IMPORTER,
    llama_bench.IMPORTER,
    llama_batched.IMPORTER,
    llama_server.IMPORTER,
    llama_metrics.IMPORTER,
    ollama.IMPORTER,
    ollama_log.IMPORTER,
    vllm.SERVE,
    vllm.LATENCY,
    vllm.THROUGHPUT,
    nvbandwidth.IMPORTER,
)
"""asked in this order whether a file is theirs"""


@dataclass(frozen=True)
class Imported:
    """What was read from one file."""

    format: str
    rows: tuple[Measurement, ...]
    ignored: Mapping[str, tuple[str, ...]]
    """reason -> what was left out for it"""


def detect(path: Path) -> Importer:
    """The importer of a file, by what is in it.

    Raises
    ------
    ConfigError
        No such file, not text, or a format that no importer knows.
    """
    return _detect(path, _text(path))


def load(path: Path, given: Mapping[str, Any] | None = None) -> Imported:
    """The measurements in a file, with the columns in `given` put in the place of the file's.

    Raises
    ------
    ConfigError
        As `detect`; a broken file, with its place in it; a column that the file does not say and `given` neither.
    """
    text = _text(path)
    importer = _detect(path, text)
    try:
        reading = importer.read(text)
        rows = tuple(_measurement(draft, path, given or {}) for draft in reading.drafts)
    except ConfigError as error:
        raise ConfigError(f"{path}: {importer.name}: {error}") from None
    return Imported(importer.name, rows, {reason: tuple(what) for reason, what in reading.ignored.items()})


def _measurement(draft: Draft, path: Path, given: Mapping[str, Any]) -> Measurement:
    columns = {"provenance": "imported", "source": path.name, **draft.columns, **_count(draft, given), **given}
    try:
        return from_values(columns)
    except ConfigError as error:
        where = f"{draft.where}: " if draft.where else ""
        hint = f" (the file does not say: --{error.column})" if isinstance(error, MissingColumn) else ""
        raise ConfigError(f"{where}{error}{hint}") from None


def _count(draft: Draft, given: Mapping[str, Any]) -> dict[str, int]:
    """Number of GPUs where one is named by hand: a tool that saw none gives 0."""
    if "gpu" not in given:
        return {}
    return {"num_gpus": 0 if given["gpu"] == CPU_ONLY else draft.columns.get("num_gpus") or 1}


def _detect(path: Path, text: str) -> Importer:
    for importer in IMPORTERS:
        if importer.recognises(text):
            return importer
    raise ConfigError(f"{path}: no format known; accepted: {', '.join(i.name for i in IMPORTERS)}")


def _text(path: Path) -> str:
    """UTF-8, or what Windows PowerShell writes for ``> file``: UTF-16 with a byte-order mark."""
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        text = data.decode(encoding)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text; accepted: UTF-8, or UTF-16 with a byte-order mark") from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty; accepted: {', '.join(i.name for i in IMPORTERS)}")
    return text
