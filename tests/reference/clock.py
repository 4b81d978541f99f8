"""R1, R2: the clock and the events to come, kept by SimPy and read one instant at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import simpy

SAME_INSTANT_S = 1e-9
# R2: the order in which the events of one instant happen
ITERATION, STAGE, RESTORE, DROP, ARRIVAL = range(5)


@dataclass(eq=False)
class Alarm:
    """One event to come: at `when`, in its class `order`, `index` deciding among events of one class."""

    when: float
    order: int
    index: int
    happen: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """SimPy orders events by time and, among equal times, by when they were scheduled.

    R2 wants all events within 1e-9 s at one clock reading, by class and index. So a SimPy timeout only says that its
    alarm has rung; the simulator asks for all alarms of an instant and makes them happen in the rule's order. SimPy's
    own clock may be up to 1e-9 s ahead of `now`.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._env = simpy.Environment()
        self._rung: list[Alarm] = []

    def set(self, when: float, order: int, index: int, happen: Callable[[], None]) -> Alarm:
        alarm = Alarm(when, order, index, happen)
        timeout = self._env.timeout(max(0.0, when - self._env.now))
        timeout.callbacks.append(lambda _: self._rung.append(alarm))
        return alarm

    def earliest(self) -> float | None:
        """Time of the earliest event, None if there is none."""
        while not self._waiting():
            if self._env.peek() == float("inf"):
                return None
            self._env.step()
        return max(self.now, min(alarm.when for alarm in self._rung))

    def move_to(self, when: float) -> list[Alarm]:
        """Set the clock; returns the events that happen now, in R2's order."""
        self.now = when
        until = when + SAME_INSTANT_S
        while self._env.peek() <= until:
            self._env.step()
        happening = [alarm for alarm in self._waiting() if alarm.when <= until]
        self._rung = [alarm for alarm in self._rung if alarm not in happening]
        return sorted(happening, key=lambda alarm: (alarm.order, alarm.index))

    def _waiting(self) -> list[Alarm]:
        self._rung = [alarm for alarm in self._rung if not alarm.cancelled]
        return self._rung
