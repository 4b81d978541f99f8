"""A file out of the page cache, so that its next load is cold. Needs no root."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np

from mmsched_env.errors import ConfigError

PAGE = mmap.PAGESIZE
MAX_LEFT = 0.02
"""share of a file that may stay cached for a load to count as cold"""

TRIES, WAIT_S = 20, 0.1


def evict(path: Path) -> None:
    """Drop the file's pages from the page cache.

    Raises
    ------
    ConfigError
        They are still there: a file system in memory, or one that does not let go; or it is not permitted.
    """
    for _ in range(TRIES):
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # pages not yet written stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be dropped from the page cache: {error.strerror}; accepted: cold=false"
            ) from None
        left = cached_share(path)
        if left <= MAX_LEFT:
            return
        time.sleep(WAIT_S)  # a server that has just ended may still map them
    else:
        raise ConfigError(
            f"{path}: {left:.0%} of it cannot be dropped from the page cache; accepted: models=FOLDER on a disk, or cold=false"
        )


def warm(path: Path) -> None:
    """Read the file once, so that its next load comes from the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def cached_share(path: Path) -> float:
    """Share of the file's pages in the page cache, by mincore(2)."""
    size = path.stat().st_size
    if size == 0:
        return 0.0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as pages:
        view = np.frombuffer(pages, np.uint8)
        held = (ctypes.c_ubyte * -(-size // PAGE))()
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), held
        )
        del view
        return 1.0 if failed else float((np.frombuffer(bytes(held), np.uint8) & 1).mean())
