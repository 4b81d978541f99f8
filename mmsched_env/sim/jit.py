"""Compilation settings, and a disk cache that notices an edit in any compiled source file.

Numba's own cache looks only at the file of the cached function, not at the functions it calls (numba issue 3588).
Here the cache folder is named by a hash over every source file that can end up in compiled code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).resolve().parent.parent


def compiled_sources() -> list[Path]:
    """Source files whose code can be compiled into a cached function."""
    return sorted([*PACKAGE.glob("sim/**/*.py"), PACKAGE / "observation.py"])


def source_hash() -> str:
    """First 16 hex digits of the SHA-256 over names and bytes of `compiled_sources`."""
    digest = hashlib.sha256()
    for path in compiled_sources():
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """``$NUMBA_CACHE_DIR`` or the user's cache folder, then a folder per state of the sources."""
    base = os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "mmsched" / "numba"
    return Path(base) / f"mmsched-{source_hash()}"


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function called from other compiled functions only: nothing of it is cached by itself."""
    return numba.njit(error_model="numpy")(function)


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls; it and everything it calls is cached on disk."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        return numba.njit(error_model="numpy", cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before
