"""Seconds from starting Python to the first observation, with an empty and with a full compilation cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

SCRIPT = "import gymnasium, mmsched_env; gymnasium.make('mmsched/Serving-v0').reset()"


def measure() -> dict[str, float]:
    """Cold once, warm as the middle of three."""
    with tempfile.TemporaryDirectory() as folder:
        cold = _seconds(folder)
        warm = sorted(_seconds(folder) for _ in range(3))[1]
    return {
        "cold start s": cold[0],
        "cold start s of processor time": cold[1],
        "warm start s": warm[0],
        "warm start s of processor time": warm[1],
    }


def _seconds(cache: str) -> tuple[float, float]:
    before = os.times()
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=os.environ | {"NUMBA_CACHE_DIR": cache})
    taken = time.perf_counter() - begun
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, used
