"""Processes that work for this one and end with it, however it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

LOOK_EVERY_S = 1.0


@contextmanager
def worker_pool(
    count: int, begin: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """`count` processes, each of which calls ``begin(*arguments)`` first. An exception ends them after what they are at.

    They are spawned: the same in every system, and no half-copied threads of torch or Numba.
    """
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (os.getpid(), begin, arguments))
    try:
        yield pool
    except BaseException:
        # waiting, and not within `with pool`: else the pool is gone or has forgotten it before anything is cancelled
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin(parent: int, begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with(parent: int) -> None:
    """A process that was killed tells its workers nothing: they would work on, for nobody."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)
