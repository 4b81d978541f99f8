"""What else the machine did beside a sample: foreign CPU use, stolen time, and waiting for a core (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")

SHORTEST_S = 0.5
"""processor time is counted in ticks of 10 ms: in a shorter window foreign use means nothing"""

MAX_WAITED = 0.02
MAX_STEAL = 0.01


@dataclass(frozen=True)
class Disturbance:
    """Shares of the sample's seconds."""

    seconds: float
    foreign_cores: float
    """cores that other processes used"""
    steal: float
    """of all cores together, taken by other virtual machines"""
    waited: float
    """that the busiest thread of the measured processes was ready but had no core; the sharpest of the three"""

    def over(self, max_foreign: float, shared: bool = False) -> bool:
        """Is the sample to be done again? `shared`: the processes had to wait for each other."""
        busy = self.seconds >= SHORTEST_S and (self.foreign_cores > max_foreign or self.steal > MAX_STEAL)
        return busy or (self.waited > MAX_WAITED and not shared)


class Watch:
    """Counts from its making to `stop`, for this process and the ones that `pids` names at either end: a load may start one, an unload end one."""

    def __init__(self, pids: Callable[[], Sequence[int]] = tuple) -> None:
        self.pids = pids
        self.begun = time.perf_counter()
        self.machine = _machine_ticks()
        self.own = {pid: _own_ticks(pid) for pid in (os.getpid(), *pids())}
        self.threads = _threads(pids())

    def stop(self) -> Disturbance:
        """What happened since."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        busy, steal = (after - before for after, before in zip(_machine_ticks(), self.machine, strict=True))
        ran = {pid: _own_ticks(pid) for pid in {*self.own, *self.pids()}}
        own = sum(max(0, ticks - self.own.get(pid, 0)) for pid, ticks in ran.items())
        waited = _waited_by_busiest(self.threads, _threads(self.pids()))
        cores = os.cpu_count() or 1
        return Disturbance(
            seconds,
            max(0.0, (busy - own) / TICK / seconds),
            steal / TICK / seconds / cores,
            waited / 1e9 / seconds,
        )


def _machine_ticks() -> tuple[int, int]:
    """(busy, stolen) ticks of all cores."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq, steal


def _own_ticks(pid: int) -> int:
    """User and system ticks of a process; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _threads(pids: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Thread -> nanoseconds that it ran and that it was ready without a core; empty where the kernel does not count."""
    counts: dict[str, tuple[int, int]] = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                ran, waited = file.read_text().split()[:2]
            except (OSError, ValueError):  # a thread that has just ended
                continue
            counts[file.parent.name] = int(ran), int(waited)
    return counts


def _waited_by_busiest(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int:
    """Nanoseconds the thread that ran most waited. The others may wait for it, on its own core: no disturbance."""
    grown = [(ran - before.get(t, (0, 0))[0], waited - before.get(t, (0, 0))[1]) for t, (ran, waited) in after.items()]
    return max(0, max(grown, default=(0, 0))[1])
