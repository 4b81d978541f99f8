"""The reference simulator: decisions, instants, requests and iterations. Operations on instances are in operations.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from mmsched_env.costmodel.tables import CostTables
from mmsched_env.workload.trace import RequestTrace

from .clock import ARRIVAL, DROP, ITERATION, SAME_INSTANT_S, Clock
from .costs import attention, chunk_parts, decode_parts, encoder_parts
from .legal import legal_actions
from .memory import Memory
from .operations import Operations
from .parts import (
    BOUND,
    DECODE,
    DONE,
    DROPPED,
    PREFILL,
    READY,
    SAVING,
    WAIT,
    WAITING,
    Action,
    Instance,
    Iteration,
    Request,
    Settings,
    Yardsticks,
    plain_tables,
    requests_of,
)
from .sharing import Resource, Waits


class Event(NamedTuple):
    time_s: float
    kind: str
    request: int  # -1: none
    instance: int  # -1: none
    value: float


class Reference(Operations):
    """One episode. Read `legal`, call `act` with one of them, until `terminated` or `truncated`.

    `hidden[g][m]` are the shares x of R31, given, not drawn; without them the estimates are exact.
    """

    def __init__(
        self,
        tables: CostTables,
        trace: RequestTrace,
        settings: Settings,
        yardsticks: Iterable[Yardsticks],
        hidden: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.t = plain_tables(tables)
        self.settings = settings
        self.clock = Clock()
        self.requests = requests_of(trace, yardsticks)
        self.instances: dict[int, Instance] = {}  # by index; nothing is loaded at the start (R1)
        self.gpus = range(len(settings.gpu_hosts))
        if hidden is None:
            hidden = [[0.0] * len(self.t.num_units) for _ in self.gpus]
        self.memory = Memory(self.t, settings, self.instances, self.requests, hidden)
        self.waits = Waits()
        self.disks = [Resource(rate) for rate in self.t.disk_rate]
        self.links_in = [Resource(rate) for rate in self.t.link_in_rate]
        self.links_out = [Resource(rate) for rate in self.t.link_out_rate]
        self.events: list[Event] = []
        self.legal: list[Action] = []  # at the present decision
        self.reward = 0.0  # of the last step
        self.steps = 0
        self.decision = False  # the present instant is a decision point
        self.terminated = False
        self.truncated = False
        for request in self.requests:
            self.clock.set(request.arrival_s, ARRIVAL, request.index, partial(self.arrive, request))
        self.run()

    # -- what is where

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def host_of(self, gpu: int) -> int:
        return self.settings.gpu_hosts[gpu]

    def in_order(self) -> list[Instance]:
        return [self.instances[index] for index in sorted(self.instances)]

    def instance_of(self, model: int, gpu: int) -> Instance | None:
        return next((i for i in self.instances.values() if (i.model, i.gpu) == (model, gpu)), None)

    def empty_slot(self, gpu: int) -> int | None:
        """Index the lowest empty slot of the GPU would give an instance (R2: g S + s)."""
        first = gpu * self.settings.slots
        return next((i for i in range(first, first + self.settings.slots) if i not in self.instances), None)

    def queue(self) -> list[Request]:
        """R11: waiting and saving requests in order of arrival."""
        return [request for request in self.requests if request.state in (WAITING, SAVING)]

    def window(self) -> list[Request]:
        return self.queue()[: self.settings.queue]

    def log(
        self, kind: str, request: Request | None = None, instance: Instance | None = None, value: float = 0
    ) -> None:
        self.events.append(
            Event(self.now, kind, request.index if request else -1, instance.index if instance else -1, value)
        )

    # -- decisions (R3, R6)

    def act(self, action: Action) -> None:
        """Take a legal action; time then runs on to the next decision point, unless there is more to decide now."""
        self.reward = 0.0
        self.steps += 1
        if action == WAIT:
            self.run()
        else:
            getattr(self, f"do_{action[0]}")(*action[1:])
            if not self.can_act():
                self.run()
        if self.steps >= self.settings.max_steps and not self.terminated:
            self.truncated = True

    def can_act(self) -> bool:
        """Find the legal actions. R3: the policy is asked if there is one that is not WAIT."""
        self.legal = legal_actions(self)
        return any(action != WAIT for action in self.legal)

    def run(self) -> None:
        """Let time run on until the policy is to be asked."""
        while not self.ended:
            self.decision = False
            self.start_what_can()
            when = self.clock.earliest()
            if when is None and self.settings.max_time_s == float("inf"):
                raise RuntimeError(f"stalled at {self.now} s: nothing is ahead")
            if when is None or when > self.settings.max_time_s:
                self.pass_time(self.settings.max_time_s)
                self.clock.now = self.settings.max_time_s
                self.truncated = True
                return
            self.pass_time(when)
            self.happen(when)
            self.terminated = all(request.state in (DONE, DROPPED) for request in self.requests)
            if self.decision and self.can_act():
                return

    def pass_time(self, until: float) -> None:
        """R29: flow time."""
        away = ("future", DONE, DROPPED)
        weight = sum(request.weight for request in self.requests if request.state not in away)
        self.reward -= self.settings.flow_time * weight * (until - self.now)

    def happen(self, when: float) -> None:
        """R2: one instant. Drops are looked up in the queue: what came before may have put a request there too late."""
        alarms = self.clock.move_to(when)
        for alarm in alarms:
            if alarm.order < DROP and not alarm.cancelled:
                alarm.happen()
        for request in self.queue():
            if request.state == WAITING and self.drop_at(request) <= self.now + SAME_INSTANT_S:
                self.drop(request)
        for alarm in alarms:
            if alarm.order == ARRIVAL:
                alarm.happen()

    def start_what_can(self) -> None:
        """R5: what starts just before time moves on."""
        for instance in self.in_order():
            self.start_restore(instance)
        for instance in self.in_order():
            self.plan(instance)
        for instance in self.in_order():
            self.time_iteration(instance)
        stretches = [self.stretch(g) for g in self.gpus]
        self.waits.stretch(self.clock, stretches)
        for resource in (*self.disks, *self.links_in, *self.links_out):
            resource.share(self.clock, stretches)

    # -- requests

    def arrive(self, request: Request) -> None:
        self.log("arrive", request)
        self.decision = True
        self.begin_to_wait(request)

    def begin_to_wait(self, request: Request) -> None:
        request.state = WAITING
        request.instance = None
        if self.settings.drop_after < float("inf"):
            when = max(self.now, self.drop_at(request))
            request.drop_alarm = self.clock.set(when, DROP, request.index, lambda: None)

    def drop_at(self, request: Request) -> float:
        """R30."""
        if self.settings.drop_after == float("inf"):
            return float("inf")
        return request.arrival_s + self.settings.drop_after * request.yardsticks.predicted_slo_e2e_s

    def drop(self, request: Request) -> None:
        """R30, R29."""
        until = request.arrival_s + self.settings.drop_penalty * request.yardsticks.predicted_slo_e2e_s
        charge = request.weight * max(0.0, until - self.now)
        self.reward -= self.settings.flow_time * charge + self.settings.slo_miss * request.weight
        self.stop_waiting(request, DROPPED)
        request.free_saved()
        self.log("drop", request, value=charge)
        self.decision = True

    def stop_waiting(self, request: Request, state: str) -> None:
        request.state = state
        if request.drop_alarm is not None:
            request.drop_alarm.cancel()
            request.drop_alarm = None

    def do_dispatch(self, q: int, gpu: int, level: int) -> None:
        """R13. Reading, where the order of what happens at once shows in the weight cache (R10): a load, if one is
        needed, starts; the request takes its KV, which may evict by the last uses so far, no model coming last; the last
        use is set. The seat is the lowest free one."""
        request = self.window()[q]
        instance = self.instance_of(request.model, gpu)
        if instance is None:
            instance = self.start_load(request.model, gpu, level)
        if request.saved_tokens and request.saved_host != instance.host:
            request.free_saved()
            request.start_over()
        self.stop_waiting(request, BOUND)
        request.instance = instance
        instance.seats[instance.seats.index(None)] = request
        self.memory.settle(instance.host)
        self.memory.touch(instance.host, instance.model, self.now)
        if request.dispatch_s < 0:
            request.dispatch_s = self.now
        self.log("dispatch", request, instance)

    # -- iterations

    def plan(self, i: Instance) -> None:
        """R14, R15: bound requests with KV in place join, then an iteration begins."""
        if i.phase != READY or i.iteration is not None:
            return
        for request in i.requests:
            if request.state == BOUND and not request.saved_tokens:
                request.state = PREFILL if request.prefilled < request.target else DECODE
                self.log("start", request, i)
        if i.joined:
            i.iteration = self.next_iteration(i)

    def next_iteration(self, i: Instance) -> Iteration:
        """R15, R16."""
        at = i.model, i.gpu, i.level
        decoding = [request for request in i.joined if request.state == DECODE]
        context = sum(request.context for request in decoding)
        prefilling = min((r for r in i.joined if r.state == PREFILL), key=lambda r: r.index, default=None)
        if prefilling is None:
            parts = decode_parts(self.t, *at, len(decoding), context)
            return Iteration("decode", parts, decoding, None, 0)
        if prefilling.image and not prefilling.encoded and self.t.encode_s[i.model][i.gpu] > 0:
            return Iteration("encode", encoder_parts(self.t, i.model, i.gpu, prefilling.image), [], prefilling, 0)
        tokens = min(self.settings.ubatch_tokens, prefilling.target - prefilling.prefilled)
        parts = chunk_parts(self.t, *at, tokens, prefilling.prefilled)
        if self.settings.prefill_mode == "prefill_first":
            decoding, context = [], 0
        parts = parts.plus(*attention(self.t, *at, len(decoding), context))
        return Iteration("chunk", parts, decoding, prefilling, tokens)

    def running(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.iteration is not None]

    def computing(self, gpu: int) -> int:
        """R19: n_g."""
        return sum(i.gpu == gpu and i.iteration.parts.gpu > 0 for i in self.running())

    def operating(self, gpu: int) -> int:
        """R19: o_g."""
        return sum(i.under_way for i in self.instances.values() if i.gpu == gpu)

    def shares(self, i: Instance) -> tuple[float, float]:
        """R19: s_g and s_c."""
        on_cpu = sum(other.host == i.host and other.iteration.parts.cpu > 0 for other in self.running())
        busy_gpus = len({other.gpu for other in self.running() if other.host == i.host})
        slower = 1 + self.t.interference[i.host] * (busy_gpus - 1)
        operations = self.t.operation_share[i.gpu] * self.operating(i.gpu)
        return slower * (max(1, self.computing(i.gpu)) + operations), slower * max(1, on_cpu)

    def stretch(self, gpu: int) -> float:
        """R19: u, of use only if there is an operation or a restore on the GPU."""
        return 1 + self.t.operation_share[gpu] * (self.computing(gpu) + self.operating(gpu) - 1)

    def time_iteration(self, i: Instance) -> None:
        """R19: a change of the shares stretches or shortens what is left, in proportion."""
        it = i.iteration
        if it is None or it.shares == self.shares(i):
            return
        if it.alarm is not None:
            it.alarm.cancel()
            it.done += (self.now - it.since) / it.seconds
        it.shares = self.shares(i)
        it.since, it.seconds = self.now, it.parts.seconds(*it.shares)
        end = self.now + max(0.0, 1.0 - it.done) * it.seconds
        it.alarm = self.clock.set(end, ITERATION, i.index, partial(self.end_iteration, i))

    def end_iteration(self, i: Instance) -> None:
        """R17, R18, then the pending action (R20)."""
        it, i.iteration = i.iteration, None
        with_token = list(it.decoding)
        if it.kind == "encode":
            it.prefilling.encoded = True
        if it.kind == "chunk":
            it.prefilling.prefilled += it.tokens
            if it.prefilling.prefilled == it.prefilling.target:
                it.prefilling.state = DECODE
                with_token.append(it.prefilling)
        for request in with_token:
            self.give_token(request, i)
        if i.pending is not None:
            carry_out, i.pending = i.pending, None
            carry_out()

    def give_token(self, request: Request, i: Instance) -> None:
        request.generated += 1
        if request.first_token_s < 0:
            request.first_token_s = self.now
            self.log("first_token", request, i)
        if request.generated == request.output:
            self.finish(request, i)

    def finish(self, request: Request, i: Instance) -> None:
        """R18, R29."""
        request.state, request.finish_s = DONE, self.now
        self.leave_seat(request)
        self.memory.touch(i.host, i.model, self.now)
        self.log("finish", request, i)
        self.decision = True
        y, e2e = request.yardsticks, self.now - request.arrival_s
        missed = e2e > y.slo_e2e_s or request.first_token_s - request.arrival_s > y.slo_ttft_s
        self.reward -= self.settings.slo_miss * request.weight * missed + self.settings.slowdown * e2e / y.unloaded_s
