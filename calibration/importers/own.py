"""Measurement files of our own schema."""

from __future__ import annotations

from .. import schema
from .base import Draft, Importer, Reading


def recognises(text: str) -> bool:
    """By the first and the last columns of the header."""
    header = text.splitlines()[0].split(",") if text else []
    return {"series", "operation", "unit", "provenance"} <= set(header)


def read(text: str) -> Reading:
    """Every row. Raises ConfigError."""
    reading = Reading()
    for where, cells in schema.cells_of(text):
        reading.drafts.append(Draft(where, schema.values_of(cells)))
    return reading


IMPORTER = Importer("measurements", recognises, read)
