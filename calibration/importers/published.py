"""Collected tables of published figures: decode and prefill rates, offload sweeps, load times, transfers.

Which columns belong to which table, and what each row becomes: `collected`.
"""

from __future__ import annotations

import csv
import io

from mmsched_env.errors import ConfigError

from .. import collected
from ..schema import PARSERS
from .base import Draft, Fields, Importer, Reading

RATES = {"gpu", "backend", "model", "quant", "params_b", "n_layers", "n_gpu_layers", "test", "n_tokens", "depth"}
NEEDED = {
    "decode_prefill": {*RATES, "batch", "gpu_mem_gb", "tokens_per_s", "stddev", "source_url", "source_date", "note"},
    "load_times": {"gpu", "storage", "model", "size_gb", "quant", "engine", "operation", "seconds", "source_date"},
    "transfer": {"link", "gpu", "direction", "pinned", "message_size", "gb_per_s", "seconds", "source_url", "date"},
}
NEEDED["offload_sweeps"] = {*NEEDED["decode_prefill"], "series_id", "n_cpu_moe", "usable_for_fit"}


def recognises(text: str) -> bool:
    """By the header of one of the tables."""
    return collected.table_of(_header(text)) is not None


def _header(text: str) -> list[str]:
    return next(csv.reader(io.StringIO(text)), [])


def read(text: str) -> Reading:
    """The rows that have a place in the schema. Raises ConfigError."""
    header = _header(text)
    table = collected.table_of(header)
    assert table is not None
    missing = sorted((NEEDED[table] | {"note", "source_url"}) - set(header))
    if missing:
        raise ConfigError(f"row 1 lacks {', '.join(missing)}; accepted: the columns of {table}")
    reading = Reading()
    for number, cells in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        where = f"row {number}"
        if None in cells or None in cells.values():
            raise ConfigError(f"{where} has not {len(header)} cells; accepted: as many as the header")
        _row(Fields(cells, where), table, reading)
    return reading


def _row(fields: Fields, table: str, reading: Reading) -> None:
    _check(fields, table)
    try:
        cells = collected.CARRY[table](dict(fields.data))
    except collected.LeftOut as reason:
        reading.ignore(fields.where, str(reason))
    except StopIteration:
        reading.ignore(fields.where, f"no operation of the schema: {fields.data['operation']}")
    else:
        columns = {name: PARSERS[name](name, cell) for name, cell in cells.items() if cell}
        reading.drafts.append(Draft(fields.where, columns))


def _check(fields: Fields, table: str) -> None:
    """What the row's own columns call it, before the schema's names."""
    if table == "transfer":
        rate, seconds = fields.positive("gb_per_s", None), fields.positive("seconds", None)
        if rate is None and seconds is None and fields.data["direction"] in collected.COPIES:
            raise fields.error("gb_per_s", "a number > 0, here or in seconds")
    elif table == "load_times":
        fields.positive("seconds")
        fields.positive("size_gb", None)
    else:
        fields.positive("tokens_per_s")
        fields.number("stddev", None, low=0)
        if fields.data["test"] not in collected.TESTS:
            raise fields.error("test", " or ".join(collected.TESTS))


IMPORTER = Importer("published table", recognises, read)
