"""Real llama-servers driven by a policy: dispatch, load, unload, preempt with saved KV caches.

One thread asks the policy and books what happens; loads, unloads and saves of a device run in its own thread one after the
other, as its server process does them; every completion is read in a thread of its own. A request keeps the number of its
seat as its slot in the server.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmsched_env import metrics
from mmsched_env.core import Simulation
from mmsched_env.errors import MmschedError
from mmsched_env.policy import Policy
from mmsched_env.sim.state import (
    DECODE,
    NO_OP,
    NO_PENDING,
    OP_EVICT,
    OP_LOAD,
    OP_SAVE_REQUEST,
    PREFILL,
    SAVING,
)
from mmsched_env.workload.trace import RequestTrace

from ..measure import llama_http, pagecache
from ..measure.backend import ServerDied
from ..measure.launchers import READ, Launcher, Settings
from ..measure.llama_http import FIRST_TOKEN
from ..measure.points import ALL
from . import moves
from .mirror import Decision, Mirror

CLEAR_S = 10.0
"""longest an unload may take when everything is cleared away"""

IDLE_S = 300.0
"""longest silence of the servers while something runs"""


@dataclass(frozen=True)
class Operation:
    """A load, unload, save or restore that was carried out."""

    what: str
    model: int
    request: int
    """-1: none"""
    begin_s: float
    seconds: float
    size_bytes: int


@dataclass
class Outcome:
    """What came of an episode, real or simulated."""

    records: Any
    """REQUEST records (N,)"""
    log: Any
    """EVENT rows"""
    summary: dict[str, float]
    decisions: list[Decision]
    operations: list[Operation] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, Any]:
        """Columns of `metrics.per_request`."""
        return metrics.per_request(self.records)


@dataclass
class Device:
    """A server process and the thread that tells it what to do."""

    launcher: Launcher
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))


@dataclass
class Reader:
    """A completion that is being read."""

    request: int
    slot: int
    url: str
    stream: llama_http.Stream | None = None
    closing: bool = False


class RealSystem:
    """Servers on some devices.

    Parameters
    ----------
    simulation
        Whose records mirror them; its configuration says how many seats an instance has and what memory there is.
    launchers
        One a GPU of the configuration.
    files
        A model file for each model of the configuration.
    settings
        How they are served: as many slots as an instance has seats.
    """

    def __init__(
        self, simulation: Simulation, launchers: Sequence[Launcher], files: Sequence[Path], settings: Settings
    ) -> None:
        self.simulation, self.files, self.settings = simulation, list(files), settings
        self.devices = [Device(launcher) for launcher in launchers]
        self._events: queue.SimpleQueue[tuple[float, Callable[[], None]]] = queue.SimpleQueue()

    def run(self, policy: Policy, trace: RequestTrace, seed: int, cold: bool = True) -> Outcome:
        """Let `policy` serve `trace` from empty devices; with `cold` from a page cache without the models too.

        Raises
        ------
        MmschedError
            The policy took an illegal action, or a server died or fell silent.
        """
        self.mirror = Mirror(self.simulation, trace)
        policy.reset(self.simulation.layout, seed)
        policy.act(*self.mirror.observation())  # what it compiles at first must not take time while servers run
        policy.reset(self.simulation.layout, seed)
        self._prompts = prompts_of(trace, seed)
        self._generated: list[list[int]] = [[] for _ in range(len(trace))]
        self._servers: dict[int, tuple[str, str]] = {}  # instance -> (URL, name)
        self._busy: set[int] = set()  # instances with an operation under way
        self._restoring: set[int] = set()
        self._readers: dict[int, Reader] = {}  # request -> its completion
        self._free_at: dict[tuple[int, int], float] = {}
        self.operations: list[Operation] = []
        self.decisions: list[Decision] = []
        if cold:
            for path in self.files:
                pagecache.evict(path)
        self._begun = time.perf_counter()
        arrivals = np.asarray(trace.arrival_s)
        try:
            self._serve(policy, arrivals)
        finally:
            self._clear()
        summary = metrics.summary(self.mirror.requests[: len(trace)], self.mirror.state)
        records = self.mirror.requests[: len(trace)].copy()
        log = self.simulation.event_log(0).copy()
        return Outcome(records, log, summary, self.decisions, self.operations)

    def close(self) -> None:
        """End the servers. May be called twice."""
        for device in self.devices:
            device.launcher.close()  # first: what hangs in a server ends with it
            device.thread.shutdown(wait=True, cancel_futures=True)

    # ---------------------------------------------------------------- the loop

    def _serve(self, policy: Policy, arrivals: Any) -> None:
        arrived = 0
        while not self.mirror.drained:
            arrived = self._wait(arrivals, arrived)
            while int(self.mirror.state["decision"]) and not self.mirror.drained and self._decide(policy):
                self._reconcile()
            self.mirror.state["decision"] = 0
            self._reconcile()

    def _wait(self, arrivals: Any, arrived: int) -> int:
        """Until the next thing happens; book it and all that has happened by then. Returns the requests arrived."""
        next_s = arrivals[arrived] if arrived < len(arrivals) else np.inf
        try:
            left = min(IDLE_S, max(0.0, next_s - self._now()))
            self._book(*self._events.get(timeout=left))
        except queue.Empty:
            if self._now() < next_s - IDLE_S / 2 or next_s == np.inf:
                raise ServerDied(f"the servers were silent for {IDLE_S:.0f} s") from None
        while not self._events.empty():
            self._book(*self._events.get())
        while arrived < len(arrivals) and arrivals[arrived] <= self._now():
            self.mirror.happen(arrivals[arrived], moves.ARRIVAL, -1)
            arrived += 1
        return arrived

    def _decide(self, policy: Policy) -> bool:
        """Ask the policy once. Returns False if it waits, or has no choice."""
        if self.mirror.legal == 0:
            return False
        observation, mask = self.mirror.observation()
        action = policy.act(observation, mask)
        if not mask[action]:
            what = self.simulation.layout.decode(action)
            raise MmschedError(f"policy {type(policy).__name__} chose an illegal action: {what}")
        if action == 0:
            return False
        self.decisions.append(self.mirror.act(action))
        return True

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    def _book(self, time_s: float, what: Callable[[], None]) -> None:
        self._event_s = time_s
        what()

    def _tell(self, what: Callable[[], None]) -> None:
        """From any thread: have the main thread book something that happened now."""
        self._events.put((self._now(), what))

    def _happen(self, kind: int, index: int) -> None:
        self.mirror.happen(self._event_s, kind, index)

    # ---------------------------------------------------------------- what the records ask for

    def _reconcile(self) -> None:
        """Begin what the records say is under way and is not yet, stop what should not run any more."""
        state = self.mirror.state
        for i in np.flatnonzero(state["op"] != NO_OP):
            if int(i) not in self._busy:
                self._busy.add(int(i))
                self._operate(int(i), int(state["op"][i]))
        for i in np.flatnonzero(state["restore_request"] >= 0):
            if int(i) not in self._restoring:
                self._restoring.add(int(i))
                self._start_restore(int(i), int(state["restore_request"][i]))
        for i in np.flatnonzero(state["num_seated"] > 0):
            for slot, request in enumerate(state["seat"][i]):
                if request >= 0:
                    self._reconcile_request(int(i), slot, int(request))
        for i in np.flatnonzero(state["inst_pending"] != NO_PENDING):
            self._drain(int(i))

    def _reconcile_request(self, i: int, slot: int, request: int) -> None:
        runs = int(self.mirror.requests["phase"][request]) in (PREFILL, DECODE)
        pending = int(self.mirror.state["inst_pending"][i]) != NO_PENDING
        if runs and request not in self._readers and not pending:
            self._start_reader(i, slot, request)

    def _drain(self, i: int) -> None:
        """Stop the instance's completions; the pending action is carried out when all have stopped."""
        mine = [r for r in self._readers.values() if int(self.mirror.requests["instance"][r.request]) == i]
        for reader in mine:
            if not reader.closing and reader.stream is not None:
                reader.closing = True
                reader.stream.close()
        if not mine:
            self._event_s = self._now()
            self._happen(moves.DRAINED, i)
            self._reconcile()

    # ---------------------------------------------------------------- operations

    def _operate(self, i: int, operation: int) -> None:
        model, device = int(self.mirror.state["inst_model"][i]), self._device(i)
        if operation == OP_LOAD:
            self._submit(device, lambda: self._load(i, model, device))
            return
        if operation not in (OP_EVICT, OP_SAVE_REQUEST):
            raise MmschedError(f"operation {operation} cannot be carried out; accepted: sim.allow_offload=false")
        seats = self.mirror.state["seat"][i]
        phases = self.mirror.requests["phase"]
        saved = [(slot, int(j)) for slot, j in enumerate(seats) if j >= 0 and phases[j] == SAVING]
        unload = operation == OP_EVICT
        self._submit(device, lambda: self._put_aside(i, model, device, saved, unload))

    def _load(self, i: int, model: int, device: Device) -> None:
        path, begin_s = self.files[model], self._now()
        seconds, url, name = device.launcher.load(path, READ, ALL, self.settings)
        operation = Operation("load", model, -1, begin_s, seconds, path.stat().st_size)
        self._tell(lambda: self._loaded(i, url, name, operation))

    def _loaded(self, i: int, url: str, name: str, operation: Operation) -> None:
        self._servers[i] = url, name
        self._end(i, operation)

    def _put_aside(self, i: int, model: int, device: Device, saved: list[tuple[int, int]], unload: bool) -> None:
        url, name = self._servers[i]
        for slot, request in saved:
            begin_s = self._now()
            seconds, answer = llama_http.slot_action(url, slot, "save", f"{request}.bin")
            done = Operation("save", model, request, begin_s, seconds, int(answer["n_written"]))
            self._tell(lambda done=done: self.operations.append(done))  # type: ignore[misc]
        if unload and saved:
            self._tell(lambda: self._happen(moves.SAVED, i))
        if not unload:
            self._tell(lambda: self._saved_request(i))
            return
        begin_s = self._now()
        seconds = device.launcher.unload(name)
        self._tell(lambda: self._end(i, Operation("unload", model, -1, begin_s, seconds, 0)))

    def _saved_request(self, i: int) -> None:
        self._busy.discard(i)
        self._happen(moves.SAVED, i)
        self._happen(moves.OPERATION, i)

    def _end(self, i: int, operation: Operation) -> None:
        self.operations.append(operation)
        self._busy.discard(i)
        if operation.what == "unload":
            del self._servers[i]
        self._happen(moves.OPERATION, i)

    def _start_restore(self, i: int, request: int) -> None:
        url = self._servers[i][0]
        slot = self._slot(i, request)
        model = int(self.mirror.requests["model"][request])

        def restore() -> None:
            begin_s = self._now()
            seconds, answer = llama_http.slot_action(url, slot, "restore", f"{request}.bin")
            done = Operation("restore", model, request, begin_s, seconds, int(answer["n_read"]))
            self._tell(lambda: self._restored(i, done))

        threading.Thread(target=self._guarded(restore), daemon=True).start()

    def _restored(self, i: int, operation: Operation) -> None:
        self.operations.append(operation)
        self._restoring.discard(i)
        (Path(self.settings.slots) / f"{operation.request}.bin").unlink(missing_ok=True)
        self._happen(moves.RESTORED, i)

    def _submit(self, device: Device, action: Callable[[], None]) -> None:
        device.thread.submit(self._guarded(action))

    def _guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """Errors of other threads end the run."""

        def run() -> None:
            try:
                action()
            except Exception as error:
                self._tell(lambda error=error: _fail(error))  # type: ignore[misc]

        return run

    # ---------------------------------------------------------------- completions

    def _start_reader(self, i: int, slot: int, request: int) -> None:
        reader = Reader(request, slot, self._servers[i][0])
        self._readers[request] = reader
        generated = self._generated[request]
        left = int(self.mirror.requests["output_tokens"][request]) - len(generated)
        prompt = [*self._prompts[request], *generated]
        reader.stream = llama_http.Stream(reader.url, prompt, left, slot, reuse=True)
        threading.Thread(target=self._guarded(lambda: self._read(reader, left)), daemon=True).start()

    def _read(self, reader: Reader, left: int) -> None:
        assert reader.stream is not None
        try:
            for token in reader.stream:
                left -= 1
                at_s, number, last = token.at_s - self._begun, token.id, left == 0
                self._events.put((at_s, lambda number=number, last=last: self._token(reader, number, last)))  # type: ignore[misc]
        except ServerDied:
            if not reader.closing:
                raise
        if reader.closing and left > 0:
            llama_http.wait_idle(reader.url, reader.slot)
        if left > 0:
            self._tell(lambda: self._closed(reader))

    def _token(self, reader: Reader, number: int, last: bool) -> None:
        self._generated[reader.request].append(number)
        if last:
            del self._readers[reader.request]
        self._happen(moves.TOKEN, reader.request)

    def _closed(self, reader: Reader) -> None:
        del self._readers[reader.request]

    # ---------------------------------------------------------------- small things

    def _device(self, i: int) -> Device:
        return self.devices[i // self.simulation.dims.S]

    def _slot(self, i: int, request: int) -> int:
        return int(np.flatnonzero(self.mirror.state["seat"][i] == request)[0])

    def _clear(self) -> None:
        """Nothing of an episode stays: completions, models, saved caches."""
        for reader in self._readers.values():
            reader.closing = True
            if reader.stream is not None:
                reader.stream.close()
        for i, (_, name) in list(self._servers.items()):
            try:
                self._device(i).thread.submit(self._device(i).launcher.unload, name).result(CLEAR_S)
            except (MmschedError, RuntimeError, KeyError, TimeoutError):  # closing the device ends it anyway
                continue
        shutil.rmtree(self.settings.slots, ignore_errors=True)
        Path(self.settings.slots).mkdir(parents=True, exist_ok=True)
        self._events = queue.SimpleQueue()


def prompts_of(trace: RequestTrace, seed: int) -> list[list[int]]:
    """Random token ids for every request: prompts that share nothing."""
    rng = np.random.default_rng([seed, 5])
    return [[int(x) for x in rng.integers(FIRST_TOKEN, FIRST_TOKEN + 1000, int(n))] for n in trace.prompt_tokens]


def _fail(error: Exception) -> None:
    raise error if isinstance(error, MmschedError) else MmschedError(f"{type(error).__name__}: {error}")
