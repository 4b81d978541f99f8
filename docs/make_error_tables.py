"""Writes the measured errors into docs/cost_model.md, between its marks, and the pictures beside it.

``python docs/make_error_tables.py``; the numbers are those of ``mmsched calibrate validate``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsched_env.calibration import validate

DOCS = Path(__file__).parent
PAGE = DOCS / "cost_model.md"
BEGIN, END = "<!-- errors: written by make_error_tables.py -->\n", "<!-- end of errors -->\n"
PICTURES = {"sweeps": "calibration_sweeps.png", "measured_predicted": "calibration_left_out.png"}


def main() -> None:
    """Validate, then write page and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        validate.main([f"out={out}"])
        PAGE.write_text(written(PAGE.read_text(), json.loads((out / "validation.json").read_text())))
        for name, picture in PICTURES.items():
            shutil.copyfile(out / f"{name}.png", DOCS / picture)


def written(page: str, found: dict[str, Any]) -> str:
    """The page with the tables of a validation."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + errors_table(found["errors"]) + "\n" + sweeps_table(found["sweeps"]) + END + after


def errors_table(errors: dict[str, list[dict[str, Any]]]) -> str:
    """One row for each thing left out and each kind of row."""
    head = "| relative error on time | rows | median | p90 | max |\n|---|---|---|---|---|\n"
    rows = []
    for name, lines in errors.items():
        for line in lines:
            shares = " | ".join(f"{line[key]:.1%}" for key in ("median", "p90", "max"))
            rows.append(f"| {name}: {line['part']} | {line['rows']} | {shares} |")
    return head + "\n".join(rows) + "\n"


def sweeps_table(sweeps: Sequence[dict[str, Any]]) -> str:
    """One row for each sweep, one setting left out at a time."""
    head = "| sweep | GPU | model | settings | mean | max | all on the CPU |\n|---|---|---|---|---|---|---|\n"
    rows = [
        f"| {s['series']} | {s['GPU']} | {s['model']} | {s['settings']} | {s['mean']:.1%} | {s['max']:.1%} | "
        + (f"{s['all on the CPU']:.0%} |" if s["all on the CPU"] is not None else "|")
        for s in sweeps
    ]
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
