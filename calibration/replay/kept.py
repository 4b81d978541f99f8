"""Runs in files: what happened once can be compared again, with another version of the simulator too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import Kind
from mmsched_env.errors import ConfigError

from .mirror import Decision, Log
from .real import Operation, Outcome

COLUMNS = ("time_s", "kind", "request", "model", "gpu", "level", "scope", "after")
DECISION = np.dtype([(name, "f8" if name == "time_s" else "i4") for name in COLUMNS])
"""`after`: how many of the log's milestones had happened"""

OPERATION = np.dtype(
    [("what", "U8"), ("model", "i4"), ("request", "i4"), ("begin_s", "f8"), ("seconds", "f8"), ("size_bytes", "i8")]
)


def write(path: Path, outcome: Outcome) -> None:
    """One ``.npz``, in one step: records, log, decisions and operations as arrays with named columns."""
    decisions = [(*(getattr(d, name) for name in COLUMNS[:-1]), len(d.after)) for d in outcome.decisions]
    operations = list(map(dataclasses.astuple, outcome.operations))
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                records=outcome.records,
                log=outcome.log,
                decisions=np.array(decisions, DECISION),
                operations=np.array(operations, OPERATION),
                summary=np.array(json.dumps(outcome.summary)),
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Outcome:
    """What `write` wrote.

    Raises
    ------
    ConfigError
        Another file.
    """
    try:
        with np.load(path) as arrays:
            records, log, decisions, operations = (
                arrays[name] for name in ("records", "log", "decisions", "operations")
            )
            summary = json.loads(str(arrays["summary"]))
    except (OSError, EOFError, BadZipFile, ValueError, KeyError):
        raise ConfigError(f"{path}: is no run; accepted: a file that calibrate replay wrote") from None
    return Outcome(records, log, summary, _decisions(decisions, log), [Operation(*row) for row in operations.tolist()])


def _decisions(rows: NDArray[np.void], log: NDArray[np.void]) -> list[Decision]:
    seen = Log()
    after = [seen.read(log[:0])]
    for end in range(1, len(log) + 1):
        found = seen.read(log[:end])
        if len(found) > len(after[-1]):
            after.append(found)
    made: list[Decision] = []
    for row in rows:
        fields: dict[str, Any] = {name: row[name].item() for name in COLUMNS}
        made.append(Decision(**fields | {"kind": Kind(fields["kind"]), "after": after[fields["after"]]}))
    return made
