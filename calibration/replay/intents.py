"""What the decisions of a real run were meant to do, and what that is in a simulation that is at another token.

A decision names an instance or a request in a certain state. A token sooner or later the state is another: the request to be
put off has finished, another one has the most left. Taken by their names alone, decisions then do something else, those that
follow cannot be taken, and nothing that comes out says anything about the simulator's seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmsched_env.action import Kind
from mmsched_env.core import Simulation
from mmsched_env.sim import events
from mmsched_env.sim.state import (
    BOUND,
    DECODE,
    EVICTING,
    FUTURE,
    LOADING,
    NO_PENDING,
    PREFILL,
    QUEUED,
    RESTORING,
    SAVING,
    SCOPE_INSTANCE,
)

from .mirror import Decision, Log
from .real import Outcome

MEANINGLESS = -1
"""verdict on a decision: what it was meant to do can never be done"""
NOT_YET = 0
"""the same: it has to wait"""


Place = tuple[int, int]
"""GPU, model"""


@dataclass(frozen=True)
class Intent:
    """A decision, and whom it took off."""

    decision: Decision
    victims: frozenset[int]
    """requests on the instance when it was to be unloaded; the one that was put off for PREEMPT of one request"""


def intents_of(real: Outcome, slots: int) -> Iterator[Intent]:
    """The decisions of a run with their victims, from its event log; `slots` a GPU."""
    seated: dict[Place, set[int]] = {}
    for decision, victim in zip(real.decisions, _put_off(real, slots), strict=True):
        here = seated.setdefault((decision.gpu, decision.model), set())
        here -= {request for kind, request, *_ in decision.after if kind == events.FINISH}
        victims: set[int] = set()
        if decision.kind == Kind.DISPATCH:
            here.add(decision.request)
        else:
            victims = set(here) if decision.scope == SCOPE_INSTANCE else victim
        here -= victims
        yield Intent(decision, frozenset(victims))


def _put_off(real: Outcome, slots: int) -> Iterator[set[int]]:
    """The request that each PREEMPT of one request took off: the next on that instance, before anything else is asked of it."""
    rows = real.log[real.log["kind"] == events.PREEMPT]
    unused: dict[Place, deque[tuple[float, int]]] = {}
    for row in rows:
        place = int(row["instance"]) // slots, int(row["model"])
        unused.setdefault(place, deque()).append((float(row["time_s"]), int(row["request"])))
    for number, decision in enumerate(real.decisions):
        place = decision.gpu, decision.model
        later = (d.time_s for d in real.decisions[number + 1 :] if d.kind == Kind.PREEMPT and (d.gpu, d.model) == place)
        found, end_s = unused.get(place, deque()), next(later, np.inf)
        while found and found[0][0] < decision.time_s:
            found.popleft()
        one = decision.kind == Kind.PREEMPT and decision.scope != SCOPE_INSTANCE and found and found[0][0] <= end_s
        yield {found.popleft()[1]} if one else set()


class Intents:
    """The decisions that are left, in a simulation that takes them.

    Parameters
    ----------
    simulation
        Of one environment, with the event log on, at the start of the episode.
    real
        Whose decisions they are.
    """

    def __init__(self, simulation: Simulation, real: Outcome) -> None:
        self.simulation = simulation
        self.left = deque(intents_of(real, simulation.dims.S))
        self.taken: list[Decision] = []
        self.meaningless = 0
        self._log = Log()
        self._read = 0
        self._awaited: dict[int, int] = {}  # instance -> request of the real run that is to be put off there
        self._role: dict[int, int] = {}  # request of the real run -> the one that plays its part here, if another

    def next_action(self, hopeless: bool = False) -> int:
        """The action that is to be taken now; 0: none. Decisions that mean nothing any more are left out.

        `hopeless`: nothing is left to wait for, so what has to wait means nothing either.
        """
        self._log.read(self.simulation.event_log(0))
        while self.left:
            action = self._verdict(self.left[0])
            if action == NOT_YET and not hopeless:
                break
            intent = self.left.popleft()
            if action > 0:
                self._await_victim(intent)
                return action
            self.meaningless += 1
        return self._straggler()

    def look_for_victims(self) -> None:
        """See who has been put off: the simulator takes the request with the most left, now and here. If that is another
        than in reality, the two change parts from here on."""
        log = self.simulation.event_log(0)
        for row in log[self._read :]:
            if int(row["kind"]) == events.PREEMPT and int(row["instance"]) in self._awaited:
                meant, here = self._awaited.pop(int(row["instance"])), int(row["request"])
                other = next((a for a, b in self._role.items() if b == here), here)
                self._role[meant], self._role[other] = here, self._played_by(meant)
        self._read = len(log)

    def _await_victim(self, intent: Intent) -> None:
        decision = intent.decision
        if decision.kind == Kind.PREEMPT and decision.scope != SCOPE_INSTANCE and intent.victims:
            instance = int(self.simulation.state[0]["inst_at"][decision.gpu, decision.model])
            self._awaited[instance] = next(iter(intent.victims))

    def _played_by(self, request: int) -> int:
        return self._role.get(request, request)

    def _verdict(self, intent: Intent) -> int:
        if any(self._under_way(*one) for one in intent.decision.after - self._log.seen):
            return NOT_YET
        return self._dispatch(intent) if intent.decision.kind == Kind.DISPATCH else self._preempt(intent)

    def _under_way(self, kind: int, request: int, model: int, _: int) -> bool:
        """Is it going to happen by itself? Else it has happened, or belongs to a decision that meant nothing here."""
        state = self.simulation.state[0]
        if kind in (events.LOAD_END, events.UNLOAD_END):
            there = state["inst_at"][:, model]
            there = there[there >= 0]
            phase = LOADING if kind == events.LOAD_END else EVICTING
            leaving = kind == events.UNLOAD_END and bool((state["inst_pending"][there] != NO_PENDING).any())
            return leaving or bool((state["inst_phase"][there] == phase).any())
        row = self.simulation.requests[0][self._played_by(request)]
        phase = int(row["phase"])
        if kind == events.ARRIVE:
            return phase == FUTURE
        if kind == events.FINISH:
            return phase in (BOUND, RESTORING, PREFILL, DECODE)
        if kind == events.RESTORE_END:
            return phase == RESTORING or (phase == BOUND and int(row["saved_host"]) >= 0)
        return phase == SAVING or self._leaves(row)

    def _leaves(self, row: np.void) -> bool:
        """Is a request on an instance from which somebody is about to be taken?"""
        on_one = int(row["phase"]) in (BOUND, RESTORING, PREFILL, DECODE)
        return on_one and int(self.simulation.state[0]["inst_pending"][int(row["instance"])]) != NO_PENDING

    def _dispatch(self, intent: Intent) -> int:
        decision, request = intent.decision, self._played_by(intent.decision.request)
        row = self.simulation.requests[0][request]
        if int(row["phase"]) == SAVING or self._leaves(row):
            return NOT_YET
        if int(row["phase"]) not in (FUTURE, QUEUED):
            return MEANINGLESS
        slots = np.flatnonzero(self.simulation.state[0]["window"] == request)
        if not len(slots):
            return NOT_YET
        return self._if_legal(self.simulation.layout.dispatch(int(slots[0]), decision.gpu, decision.level))

    def _preempt(self, intent: Intent) -> int:
        decision, state = intent.decision, self.simulation.state[0]
        instance = int(state["inst_at"][decision.gpu, decision.model])
        if instance < 0:
            return MEANINGLESS
        victims = {self._played_by(request) for request in intent.victims}
        whole = decision.scope == SCOPE_INSTANCE
        if whole and not victims and int(state["num_seated"][instance]) > 0:
            return NOT_YET  # an idle model was to make room
        if not whole and victims and not victims & set(state["seat"][instance].tolist()):
            return MEANINGLESS  # it has finished, or has been put off before
        return self._if_legal(self.simulation.layout.preempt(instance, whole_instance=whole))

    def _straggler(self) -> int:
        """Dispatch a request that waits though no decision is left for it, to its model's instance; 0: none."""
        to_come = {self._played_by(one.decision.request) for one in self.left}
        state, dims = self.simulation.state[0], self.simulation.dims
        for slot, request in enumerate(state["window"]):
            if request < 0 or int(request) in to_come:
                continue
            model = self.simulation.requests[0]["model"][request]
            for gpu in range(dims.G):
                instance = int(state["inst_at"][gpu, model])
                if instance >= 0:
                    level = int(state["inst_level"][instance])
                    if action := self._if_legal(self.simulation.layout.dispatch(slot, gpu, level)):
                        return action
        return 0

    def _if_legal(self, index: int) -> int:
        return index if self.simulation.current.mask[0][index] else NOT_YET
