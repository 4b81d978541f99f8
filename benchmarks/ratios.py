"""The regression check: ratios within one run of a few seconds, on any machine. Never absolute times."""

from __future__ import annotations

from mmsched_env.config import EnvConfig

from .environment import kernel_task, memcpy_task, single_task
from .memory import measure as measure_memory
from .timing import rates

MOST_MEMCPY = 30.0
"""a step's processor time over that of copying its observation, batch 256"""
LEAST_BATCHING = 5.0
"""batch 256 over the single environment through Gymnasium"""
MOST_KIB = 68.0
"""an environment with its trace: 63.0 at the default size (docs/speed.md; the aim is 64)"""


def measure(config: EnvConfig, rounds: int = 3, steps: int = 20_000) -> dict[str, float]:
    """The ratios, and 1 or 0 for whether each holds."""
    tasks = {
        "kernel": kernel_task(config, 256, steps),
        "memcpy": memcpy_task(config, 256, 10 * steps),
        "single": single_task(config, 1000),
    }
    measured = rates(tasks, rounds)
    kib = measure_memory(config)["KiB per environment"]
    memcpy = measured["memcpy"].cpu / measured["kernel"].cpu
    batching = measured["kernel"].cpu / measured["single"].cpu
    return {
        "step: times the time of memcpy": memcpy,
        "batch 256: times the rate of the single environment": batching,
        "KiB per environment": kib,
        "holds": float(memcpy <= MOST_MEMCPY and batching >= LEAST_BATCHING and kib <= MOST_KIB),
    }
