"""An episode in Chrome's Trace Event Format, for ui.perfetto.dev or chrome://tracing.

A process per GPU (a thread per instance slot, one for KV over the host link), one per host (its CPU: iterations of
instances with units there), one for the requests: a span from arrival to finish each, with an arrow through its
dispatches. Format: "Trace Event Format", chromium's catapult project. Times in microseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import Simulation
from ..errors import MmschedError
from ..sim import events
from .timeline import Activity, Interval, Timeline, timeline

Record = dict[str, Any]
REQUESTS = 0
"""process of the requests; GPU g is process 1 + g, host h comes after the GPUs"""
WORDS = {
    Activity.LOADING: "load",
    Activity.IDLE: "idle",
    Activity.BUSY: "run",
    Activity.UNLOADING: "unload",
    Activity.RESIZING: "resize",
}
_SPAN_ENDS = (events.FINISH, events.DROP)
_STEPS = {events.DISPATCH: "dispatch", events.FIRST_TOKEN: "first token", events.PREEMPT: "preempt"}


def chrome_trace(simulation: Simulation, env: int) -> Record:
    """The episode of environment `env` so far, to be written as JSON.

    Raises
    ------
    MmschedError
        The simulation keeps no event log, or has no episode.
    """
    if simulation.traces[env] is None:
        raise MmschedError("no episode to export; accepted: a simulation after reset()")
    names = simulation.config.models.names
    lines = timeline(simulation, env)
    log = simulation.event_log(env)
    found = [
        *_headings(simulation),
        *_slots(simulation, lines, names),
        *_host_cpus(simulation, lines, names),
        *_kv_transfers(simulation, lines),
        *_counters(lines, names),
        *_requests(simulation, log, float(lines.end_s), names),
    ]
    return {"displayTimeUnit": "ms", "traceEvents": found}


def _us(seconds: float) -> float:
    return round(1e6 * float(seconds), 3)


def _span(name: str, category: str, pid: int, tid: int, start_s: float, end_s: float, **args: Any) -> Record:
    place = {"pid": pid, "tid": tid, "ts": _us(start_s), "dur": max(0.0, _us(end_s) - _us(start_s))}
    return {"name": name, "cat": category, "ph": "X", **place, "args": args}


# ---------------------------------------------------------------- tracks


def _headings(simulation: Simulation) -> Iterator[Record]:
    """Names of processes and threads."""
    cluster, slots = simulation.config.cluster, simulation.dims.S
    yield from _heading(REQUESTS, "requests", {0: "served in order of arrival"})
    for g, name in enumerate(cluster.gpus):
        yield from _heading(
            1 + g, f"GPU {g}: {name}", {**{s: f"slot {s}" for s in range(slots)}, slots: "KV over the link"}
        )
    for h, name in enumerate(cluster.hosts):
        yield from _heading(
            _host(simulation, h), f"host {h}: {name}", {s: f"CPU {s}" for s in range(simulation.dims.I)}
        )


def _heading(pid: int, process: str, threads: dict[int, str]) -> Iterator[Record]:
    yield {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": process}}
    yield {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, name in threads.items():
        yield {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _host(simulation: Simulation, h: int) -> int:
    return 1 + len(simulation.config.cluster.gpus) + h


def _slots(simulation: Simulation, lines: Timeline, names: Sequence[str]) -> Iterator[Record]:
    for interval in lines.intervals:
        g, slot = divmod(interval.instance, simulation.dims.S)
        word = WORDS[interval.activity]
        name = names[interval.model] if interval.activity == Activity.BUSY else f"{word} {names[interval.model]}"
        yield _span(name, word, 1 + g, slot, interval.start_s, interval.end_s, level=_level(simulation, interval))


def _level(simulation: Simulation, interval: Interval) -> float:
    return float(simulation.config.limits.levels[interval.level])


def _host_cpus(simulation: Simulation, lines: Timeline, names: Sequence[str]) -> Iterator[Record]:
    """Iterations of instances that have units in host RAM."""
    tables = simulation.tables
    for interval in lines.intervals:
        on_gpu = tables.units_on_gpu[interval.model, interval.level]
        if interval.activity == Activity.BUSY and on_gpu < tables.num_units[interval.model]:
            host = int(tables.gpu_host[interval.instance // simulation.dims.S])
            span = interval.start_s, interval.end_s
            yield _span(names[interval.model], "cpu", _host(simulation, host), interval.instance, *span)


def _kv_transfers(simulation: Simulation, lines: Timeline) -> Iterator[Record]:
    slots = simulation.dims.S
    for transfer in lines.transfers:
        word = "save" if transfer.is_save else "restore"
        name, span = f"{word} request {transfer.request}", (transfer.start_s, transfer.end_s)
        yield _span(name, word, 1 + transfer.instance // slots, slots, *span, tokens=transfer.tokens)


def _counters(lines: Timeline, names: Sequence[str]) -> Iterator[Record]:
    for time_s, row in zip(lines.queued.times_s, lines.queued.values, strict=True):
        counts = {name: int(count) for name, count in zip(names, row, strict=False)}
        yield {"name": "waiting", "ph": "C", "pid": REQUESTS, "tid": 0, "ts": _us(time_s), "args": counts}


# ---------------------------------------------------------------- requests


def _requests(simulation: Simulation, log: NDArray[np.void], end_s: float, names: Sequence[str]) -> Iterator[Record]:
    """Asynchronous spans (they overlap) with their steps, and an arrow from slot to slot of each request."""
    slots = simulation.dims.S
    order = np.argsort(log["request"], kind="stable")
    rows = log[order][log["request"][order] >= 0]
    edges = np.flatnonzero(np.diff(rows["request"], prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        mine = rows[start:stop]
        request = int(mine["request"][0])
        same = {"cat": "request", "id": request, "pid": REQUESTS, "tid": 0, "name": f"{names[mine['model'][0]]}"}
        last = mine[np.isin(mine["kind"], _SPAN_ENDS)]
        until = float(last["time_s"][-1]) if len(last) else end_s
        yield {"ph": "b", "ts": _us(mine["time_s"][0]), "args": {"request": request}, **same}
        for row in mine[np.isin(mine["kind"], list(_STEPS))]:
            yield {"ph": "n", "ts": _us(row["time_s"]), "args": {"step": _STEPS[int(row["kind"])]}, **same}
        yield {"ph": "e", "ts": _us(until), **same}
        yield from _arrow(mine[np.isin(mine["kind"], (events.DISPATCH, events.START, events.FINISH))], request, slots)


def _arrow(rows: NDArray[np.void], request: int, slots: int) -> Iterator[Record]:
    """Flow events: they bind to the slice of the slot that encloses them."""
    if len(rows) < 2:
        return
    phases = ["s", *["t"] * (len(rows) - 2), "f"]
    for phase, row in zip(phases, rows, strict=True):
        g, slot = divmod(int(row["instance"]), slots)
        flow = {"name": "request", "cat": "flow", "id": request, "bp": "e"}
        yield {"ph": phase, "ts": _us(row["time_s"]), "pid": 1 + g, "tid": slot, **flow}
