"""`mmsched calibrate import`: files of other tools to one measurement file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmsched_env.errors import ConfigError
from mmsched_env.hydra_app import fail

from . import schema
from .importers import IMPORTERS, Imported, load

FIXED = ("operation", "value", "unit", "spread", "repeats", "provenance")
"""columns that only the file can say"""

GIVEN = tuple(column for column in schema.COLUMNS if column not in FIXED)
"""columns that options can say in the file's place"""

SHOWN = 6
"""things left out for one reason that are named, the others are counted"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"calibrate import: {message} (see `mmsched calibrate import --help`)")
        raise AssertionError


def main(arguments: Sequence[str]) -> int:
    """Read every file, print what was read and left out, write all rows at once. Returns the exit status.

    Raises
    ------
    ConfigError
        A file that cannot be read, with its place in it; an output that cannot be written. Nothing is written then.
    """
    args = _parser().parse_args(list(arguments))
    if args.out and args.out.resolve() in {path.resolve() for path in args.files}:
        raise ConfigError(f"--out {args.out} is one of the files to read; accepted: another file")
    given = {column: _value(column, text) for column, text in vars(args).items() if column in GIVEN and text}
    imported = [(path, load(path, given)) for path in args.files]
    for path, one in imported:
        print(report(path, one))
    rows = [row for _, one in imported for row in one.rows]
    if not rows:
        raise ConfigError("no figure in any of the files; accepted: at least one")
    if args.out is None:
        print(f"{_plural(len(rows), 'row')}, not written: no --out FILE.csv")
        return 0
    try:
        schema.write(args.out, rows)
    except OSError as error:
        raise ConfigError(f"--out {args.out}: cannot be written: {error.strerror}") from None
    print(f"{_plural(len(rows), 'row')} written to {args.out}")
    return 0


def report(path: Path, one: Imported) -> str:
    """What was read from a file and what was not, some lines."""
    counts = Counter(f"{row.operation} ({row.unit})" for row in one.rows)
    read = ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing"
    lines = [f"{path}: {one.format}: read {read}"]
    for reason, what in one.ignored.items():
        more = f" and {len(what) - SHOWN} more" if len(what) > SHOWN else ""
        lines.append(f"  left out {', '.join(what[:SHOWN])}{more}: {reason}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    formats = ", ".join(importer.name for importer in IMPORTERS)
    parser = _Parser(
        prog="mmsched calibrate import",
        description=f"Formats, told apart by content: {formats}.",
        epilog="An option says a column of the measurements in the place of the file, for every row.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what a tool wrote")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="measurement file to write; without: only report")
    for column in GIVEN:
        parser.add_argument(f"--{column.replace('_', '-')}", dest=column, default="", metavar="TEXT")
    return parser


def _value(column: str, text: str) -> Any:
    try:
        return schema.PARSERS[column](column, text.strip())
    except ConfigError as error:
        raise ConfigError(f"option --{column.replace('_', '-')}: {error}") from None


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
