"""What the event log says happened, as intervals and counts over time. The one place that interprets the log.

The text view, the Gantt chart and trace exports draw from here. Instances are numbered GPU by GPU, ``gpu * S + slot``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import Simulation
from ..errors import MmschedError
from ..sim import events


class Activity(IntEnum):
    """What an instance slot with a model in it does."""

    LOADING = 0
    IDLE = 1
    """loaded, nothing to iterate on (its requests, if any, wait for their KV)"""
    BUSY = 2
    """iterating: prefill, decoding or both; the log does not tell every prefill's end"""
    UNLOADING = 3
    """the KV of its requests is saved, then the model unloaded"""
    RESIZING = 4
    """changing its level"""


class Interval(NamedTuple):
    """One slot doing one thing with one model."""

    instance: int
    activity: Activity
    model: int
    level: int
    """while RESIZING the new level"""
    start_s: float
    end_s: float
    """end of the timeline if it is still going on"""


class Transfer(NamedTuple):
    """KV of a preempted request on its way to host RAM (save) or back (restore)."""

    instance: int
    request: int
    is_save: bool
    tokens: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Counts:
    """Columns of counts over time: row i holds from ``times_s[i]`` until the next row's time."""

    times_s: NDArray[np.float64]  # [T] rising
    values: NDArray[np.int64]  # [T, columns]

    def at(self, time_s: float) -> NDArray[np.int64]:
        """The columns at an instant, everything of that instant included; zeros before the first row."""
        row = int(np.searchsorted(self.times_s, time_s, side="right")) - 1
        return self.values[row] if row >= 0 else np.zeros_like(self.values, shape=self.values.shape[1:])


@dataclass(frozen=True)
class Timeline:
    """An episode until ``end_s``."""

    start_s: float
    """first event"""
    end_s: float
    intervals: tuple[Interval, ...]
    """by slot, then by time; those of a slot never overlap. Idle and busy ones of no duration are left out"""
    transfers: tuple[Transfer, ...]
    """in the order they started"""
    queued: Counts
    """waiting requests, one column a model"""
    seated: Counts
    """requests dispatched to each instance and not finished or taken off, one column an instance"""


def timeline(simulation: Simulation, env: int) -> Timeline:
    """The episode of environment `env` so far; what is going on ends at the present clock.

    Raises
    ------
    MmschedError
        The simulation keeps no event log.
    """
    if not simulation.logging:
        raise MmschedError("this simulation keeps no event log; accepted: Simulation(..., logging=True)")
    dims = simulation.dims
    return read_log(simulation.event_log(env), float(simulation.state["now"][env]), dims.I, dims.M)


def read_log(log: NDArray[np.void], end_s: float, num_instances: int, num_models: int) -> Timeline:
    """A timeline from EVENT rows (N,) in the order they happened; what is still open ends at `end_s`."""
    return Timeline(
        start_s=float(log["time_s"][0]) if len(log) else end_s,
        end_s=end_s,
        intervals=tuple(_intervals(log, end_s, num_instances)),
        transfers=tuple(_transfers(log, end_s)),
        queued=_counts(log, (events.ARRIVE, events.PREEMPT), (events.DISPATCH, events.DROP), "model", num_models),
        seated=_counts(log, (events.DISPATCH,), (events.FINISH, events.PREEMPT), "instance", num_instances),
    )


# ---------------------------------------------------------------- instance slots

_PHASE_AFTER = {
    events.LOAD_START: Activity.LOADING,
    events.LOAD_END: Activity.IDLE,
    events.UNLOAD_START: Activity.UNLOADING,
    events.RESIZE_START: Activity.RESIZING,
    events.RESIZE_END: Activity.IDLE,
    events.UNLOAD_END: None,
}
_SLOT_EVENTS = (*_PHASE_AFTER, events.BUSY_START, events.BUSY_END)


@dataclass
class _Slot:
    """An instance slot as the log has told it so far."""

    instance: int
    phase: Activity | None = None
    iterating: bool = False
    model: int = -1
    level: int = -1
    since_s: float = 0.0
    intervals: list[Interval] = field(default_factory=list)

    @property
    def activity(self) -> Activity | None:
        """The BUSY events come just before time moves on: the end of one may follow the UNLOAD_START of its instant."""
        return Activity.BUSY if self.phase == Activity.IDLE and self.iterating else self.phase

    def take(self, time_s: float, kind: int, model: int, level: int, value: float) -> None:
        """Apply one event. Starts and ends of operations close an interval, those of iterations only if they show."""
        if kind in _PHASE_AFTER:
            self.close(time_s)
            self.phase = _PHASE_AFTER[kind]
            self.model = model
            self.level = int(value) if kind == events.RESIZE_START else level
            return
        if self.phase == Activity.IDLE:
            self.close(time_s)
        self.iterating = kind == events.BUSY_START

    def close(self, time_s: float) -> None:
        activity = self.activity
        operation = activity not in (Activity.IDLE, Activity.BUSY)
        if activity is not None and (operation or time_s > self.since_s):
            self.intervals.append(Interval(self.instance, activity, self.model, self.level, self.since_s, time_s))
        self.since_s = time_s


def _intervals(log: NDArray[np.void], end_s: float, num_instances: int) -> Iterator[Interval]:
    slots = [_Slot(instance) for instance in range(num_instances)]
    for row in log[np.isin(log["kind"], _SLOT_EVENTS)]:
        slots[row["instance"]].take(
            float(row["time_s"]), int(row["kind"]), int(row["model"]), int(row["level"]), float(row["value"])
        )
    for slot in slots:
        slot.close(end_s)
        yield from slot.intervals


# ---------------------------------------------------------------- KV transfers

_TRANSFER_STARTS = (events.PREEMPT, events.RESTORE_START)
_TRANSFER_ENDS = (events.SAVE_END, events.RESTORE_END)


def _transfers(log: NDArray[np.void], end_s: float) -> list[Transfer]:
    found: list[Transfer] = []
    open_of: dict[int, int] = {}  # request -> its open transfer
    for row in log[np.isin(log["kind"], (*_TRANSFER_STARTS, *_TRANSFER_ENDS))]:
        request, kind, time_s = int(row["request"]), int(row["kind"]), float(row["time_s"])
        if kind in _TRANSFER_ENDS:
            if request in open_of:
                at = open_of.pop(request)
                found[at] = found[at]._replace(end_s=time_s)
        elif kind == events.RESTORE_START or row["value"] > 0:
            open_of[request] = len(found)
            is_save = kind == events.PREEMPT
            found.append(Transfer(int(row["instance"]), request, is_save, int(row["value"]), time_s, end_s))
    return found


# ---------------------------------------------------------------- counts


def _counts(log: NDArray[np.void], plus: Iterable[int], minus: Iterable[int], column: str, num_columns: int) -> Counts:
    """Running counts of the `plus` events less the `minus` events, by the log's field `column`."""
    sign = np.isin(log["kind"], list(plus)).astype(np.int64) - np.isin(log["kind"], list(minus))
    rows = np.flatnonzero(sign)
    change = np.zeros((len(rows), num_columns), np.int64)
    change[np.arange(len(rows)), log[column][rows]] = sign[rows]
    times_s = log["time_s"][rows]
    last = np.append(times_s[1:] != times_s[:-1], True)[: len(rows)]  # one row an instant: its outcome
    return Counts(times_s[last].astype(np.float64), change.cumsum(axis=0)[last])
