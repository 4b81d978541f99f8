"""Measuring rates: tasks take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Adds up the time of its ``with`` blocks: wall clock, and processor time of this thread."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    _begun: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> None:
        self._begun = (time.perf_counter(), time.thread_time())

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._begun[0]
        self.cpu_s += time.thread_time() - self._begun[1]


Task = Callable[[Stopwatch], int]
"""does some work, times what is to be timed with the stopwatch, and returns how many units it was"""


@dataclass(frozen=True)
class Rate:
    """Units per second: medians over the rounds, and the slowest and fastest round by wall clock."""

    wall: float
    cpu: float
    """by processor time of one thread: what a core to oneself would give"""
    slowest: float
    fastest: float

    def values(self, name: str, unit: str) -> dict[str, float]:
        """Figures for the results file."""
        return {
            f"{name} {unit}/s": self.wall,
            f"{name} {unit}/s of processor time": self.cpu,
            f"{name} {unit}/s slowest round": self.slowest,
            f"{name} {unit}/s fastest round": self.fastest,
        }


def rates(tasks: Mapping[str, Task], rounds: int) -> dict[str, Rate]:
    """Every task once for warming up, then `rounds` times in turn."""
    for task in tasks.values():
        task(Stopwatch())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            watch = Stopwatch()
            units = task(watch)
            taken[name].append((units / watch.wall_s, units / max(watch.cpu_s, 1e-9)))
    out = {}
    for name, pairs in taken.items():
        walls = [wall for wall, _ in pairs]
        cpu = statistics.median(cpu for _, cpu in pairs)
        out[name] = Rate(statistics.median(walls), cpu, min(walls), max(walls))
    return out
