"""Lines of a text file or a gz of one, read one at a time and never more of it than a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mmsched_env.errors import TraceError

MAX_LINE = 1 << 20
"""characters of a line; a longer one is no request"""
MAX_ROWS = 20_000_000
"""requests of a file; more would need more memory than this is worth"""

Stamp = tuple[int, int]


def file_stamp(path: Path) -> Stamp:
    """Time of change (ns) and size of a file, to tell a cached reading from a changed file.

    Raises
    ------
    TraceError
        There is no such file.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise TraceError(f"{path}: {found}; accepted: a {kind_of(path)} file")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def kind_of(path: Path) -> str:
    """What the file's name says it is."""
    return {".jsonl": "JSONL", ".parquet": "Parquet", ".json": "JSON"}.get(path.suffix, "CSV")


def text_lines(path: Path, kind: str) -> Iterator[str]:
    """The lines of a file in UTF-8 (with or without byte order mark), ends included; `kind` is for messages.

    Raises
    ------
    TraceError
        Not UTF-8, a line too long, a gz file that is damaged or ends early.
    """
    row = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE):
                row += 1
                if len(line) == MAX_LINE:
                    raise TraceError(f"{path}: row {row}: over {MAX_LINE} characters; accepted: one line a request")
                yield line
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not a {kind} file in UTF-8 (after row {row}: {error})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: the gz file is damaged or ends early (after row {row}: {error})") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
