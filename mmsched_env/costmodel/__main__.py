"""`mmsched catalogue`: the shipped GPU, host and model profiles, what their numbers rest on and their stated errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..hydra_app import fail
from .profile import catalogue_rows


def main(arguments: Sequence[str]) -> None:
    """Print the catalogue."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: mmsched catalogue\n\n" + (__doc__ or ""))
        raise SystemExit(0)
    if arguments:
        fail(f"unknown argument '{arguments[0]}'; accepted: none")
    table = Table(caption="error: median relative error of the fitted laws on left-out measurements")
    for column in ("kind", "name", "memory, GB", "numbers by provenance", "error"):
        table.add_column(column, justify="right" if "GB" in column else "left", no_wrap=column == "name")
    for row in catalogue_rows():
        provenance = ", ".join(f"{count} {name}" for name, count in row["provenance"].items())
        errors = ", ".join(f"{law} {100 * error:.1f} %" for law, error in row["error"].items())
        table.add_row(row["kind"], row["name"], f"{row['memory_bytes'] / 1e9:.1f}", provenance, errors)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
