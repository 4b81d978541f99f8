"""``python -m mmsched_env.calibration.carry FOLDER OUT``: the four collected tables of a folder, in the schema.

Prints what it left out and why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .collected import HEADERS
from .importers import load
from .schema import Measurement, write


def main(arguments: Sequence[str]) -> int:
    """Carry every table over. Returns the exit status."""
    source, out = (Path(argument) for argument in arguments)
    for table in HEADERS:
        found = load(source / f"{table}.csv")
        rows = [_named_memory(row, found.rows) for row in found.rows]
        write(out / f"{table}.csv", rows)
        left = sum(len(where) for where in found.ignored.values())
        print(f"{table}: {len(rows)} rows, {left} left out")
        for reason, where in found.ignored.items():
            print(f"  {len(where):4d} {reason}")
    return 0


def _named_memory(row: Measurement, rows: Sequence[Measurement]) -> Measurement:
    """A row of several GPUs with the memory that the same source states of one."""
    if row.num_gpus <= 1 or row.gpu_mem_gb is not None:
        return row
    own = {r.gpu_mem_gb for r in rows if (r.gpu, r.source) == (row.gpu, row.source) and r.num_gpus == 1}
    return replace(row, gpu_mem_gb=own.pop()) if len(own) == 1 else row


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
