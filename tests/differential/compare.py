"""Drive the kernel and the reference simulator with the same actions and compare everything both can show."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from mmsched_env import core
from mmsched_env.action import Kind
from mmsched_env.sim import events
from mmsched_env.sim.state import SCOPE_INSTANCE
from tests.differential.scenarios import LIMITS, Policy, Scenario
from tests.reference.parts import WAIT, Action, Settings, Yardsticks
from tests.reference.simulator import Reference

TOLERANCE = 1e-9
NOT_COMPARED = ("busy_start", "busy_end")  # for pictures: dynamics.md does not speak of them
OF_INSTANCES = {  # and whether the value is compared
    "load_start": False,
    "load_failed": True,
    "load_end": False,
    "unload_start": False,
    "unload_end": False,
    "resize_start": True,
    "resize_end": False,
}


class Mismatch(Exception):
    """The two simulators disagree."""


@dataclass
class Report:
    """What one or many scenarios compared."""

    scenarios: int = 0
    decisions: int = 0
    events: int = 0
    largest: float = 0.0  # relative time difference
    actions: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        self.scenarios += other.scenarios
        self.decisions += other.decisions
        self.events += other.events
        self.largest = max(self.largest, other.largest)
        self.actions += other.actions
        self.kinds += other.kinds

    def same_time(self, what: str, kernel: float, reference: float) -> None:
        difference = abs(kernel - reference) / max(abs(kernel), abs(reference), 1e-300)
        if not difference <= TOLERANCE:
            raise Mismatch(f"{what}: kernel {kernel!r}, reference {reference!r}")
        self.largest = max(self.largest, difference)


def same(what: str, kernel: Any, reference: Any) -> None:
    if kernel != reference:
        raise Mismatch(f"{what}: kernel {kernel}, reference {reference}")


class Kernel:
    """The simulator under test, from the outside."""

    def __init__(self, scenario: Scenario) -> None:
        tables = scenario.cost_tables()
        with mock.patch.object(core, "build_tables", lambda *_: tables):
            self.simulation = core.Simulation(scenario.config(), 1, logging=True)
        self.simulation.reset(0, scenario.request_trace(), scenario.seed)
        self.outcome = self.simulation.outcomes[0]
        self.ended = False

    @property
    def state(self) -> Any:
        return self.simulation.state[0]

    @property
    def requests(self) -> Any:
        return self.simulation.episode_requests(0)

    def act(self, action: Action) -> None:
        self.outcome = self.simulation.step(np.array([self.index(action)]))[0]
        self.ended = bool(self.outcome["terminated"] or self.outcome["truncated"])

    def index(self, action: Action) -> int:
        layout = self.simulation.layout
        if action[0] == "preempt":
            return layout.preempt(action[1], action[2] == "instance")
        return 0 if action[0] == "wait" else getattr(layout, action[0])(*action[1:])

    def legal(self) -> set[Action]:
        return {self.action(index) for index in np.flatnonzero(self.simulation.current.mask[0]).tolist()}

    def action(self, index: int) -> Action:
        a = self.simulation.layout.decode(index)
        instance = a.gpu * LIMITS.slots + a.slot
        if a.kind == Kind.WAIT:
            return ("wait",)
        if a.kind == Kind.DISPATCH:
            return ("dispatch", a.queue_slot, a.gpu, a.level)
        if a.kind == Kind.PREEMPT:
            return ("preempt", instance, "instance" if a.scope == SCOPE_INSTANCE else "request")
        return ("offload", instance, a.level)

    def window(self) -> list[int]:
        return [r for r in self.state["window"].tolist() if r >= 0]

    def pending(self) -> list[int]:
        """Instances with an action that waits for the end of the iteration."""
        return np.flatnonzero(self.state["inst_pending"]).tolist()

    def bytes_used(self, scenario: Scenario) -> dict[str, Any]:
        g, h, m, s = len(scenario.gpu_hosts), scenario.num_hosts, scenario.num_models, self.state
        used = {name: s[name][:h].tolist() for name in ("host_kv", "host_pinned", "host_swap")}
        per_model = {name: s[name][:h, :m].tolist() for name in ("pinned", "cached", "cache_valid")}
        known = s["footprint_extra"][:g, :m].tolist()
        return {"gpu_used": s["gpu_used"][:g].tolist(), **used, **per_model, "footprint_extra": known}

    def hidden(self, scenario: Scenario) -> list[list[float]]:
        """R31: the draw."""
        shares: list[list[float]] = self.state["footprint_hidden"].tolist()
        return [row[: scenario.num_models] for row in shares[: len(scenario.gpu_hosts)]]

    def yardsticks(self) -> list[Yardsticks]:
        names = "slo_ttft_s", "slo_e2e_s", "predicted_slo_e2e_s", "unloaded_s"
        return [Yardsticks(*row) for row in zip(*(self.requests[name].tolist() for name in names), strict=True)]

    def events(self) -> list[tuple[float, str, int, int, float]]:
        rows = self.simulation.event_log(0)
        return [
            (float(e["time_s"]), events.NAMES[e["kind"]], int(e["request"]), int(e["instance"]), float(e["value"]))
            for e in rows
        ]


def reference_of(scenario: Scenario, yardsticks: Iterable[Yardsticks], hidden: list[list[float]]) -> Reference:
    sim = {name: value for name, value in scenario.sim.items() if name != "memory_noise"}  # which made the draw
    settings = Settings(
        gpu_hosts=scenario.gpu_hosts,
        kv_swap_fraction=scenario.kv_swap_fraction,
        queue=LIMITS.queue,
        slots=LIMITS.slots,
        batch=LIMITS.batch,
        **sim,
        **scenario.reward,
    )
    return Reference(scenario.cost_tables(), scenario.request_trace(), settings, yardsticks, hidden)


def choose(policy: Policy, rng: np.random.Generator, legal: list[Action], decisions: int) -> Action:
    weights = {"wait": policy.wait, "dispatch": policy.dispatch, "preempt": policy.preempt, "offload": policy.offload}
    if decisions > policy.quiet_after:
        weights |= {"preempt": 1e-6, "offload": 1e-6}
    kinds = sorted({str(action[0]) for action in legal})
    p = np.array([weights[kind] + 1e-9 for kind in kinds])
    kind = rng.choice(kinds, p=p / p.sum())
    return [action for action in legal if action[0] == kind][rng.integers(sum(a[0] == kind for a in legal))]


def compare(scenario: Scenario, history: list[Action] | None = None) -> Report:
    """Run a scenario on both. Actions taken are appended to `history`.

    Raises
    ------
    Mismatch
        With the first thing that differs.
    """
    report = Report(scenarios=1)
    rng = np.random.default_rng(scenario.policy.seed)
    kernel = Kernel(scenario)
    hidden = kernel.hidden(scenario)
    check_draw(scenario, hidden)
    reference = reference_of(scenario, kernel.yardsticks(), hidden)
    if reference.ended:  # cut off before the first decision: the kernel has no step to say so yet
        kernel.act(WAIT)
    while not (kernel.ended or reference.ended):
        compare_decision(scenario, kernel, reference, report)
        action = choose(scenario.policy, rng, reference.legal, report.decisions)
        report.actions[str(action[0])] += 1
        if history is not None:
            history.append(action)
        kernel.act(action)
        reference.act(action)
        compare_reward(kernel, reference, report)
    compare_end(kernel, reference, report)
    return report


def check_draw(scenario: Scenario, hidden: list[list[float]]) -> None:
    """What R31 promises of the shares, which the reference is given: where the longest request fitted it still does.

    Reading: that it fits the GPU and the RAM of its host, at a level of its own.
    """
    t, shares = scenario.tables, np.array(hidden)
    if not scenario.sim.get("memory_noise"):
        same("hidden shares without noise", shares.any(), False)
        return
    reserved = scenario.reserved()
    for m in set(scenario.trace["model"].tolist()):
        longest = int(reserved[scenario.trace["model"] == m].max())
        estimate = t["gpu_weight_bytes"][m] + t["buffer_bytes"][m]
        host = t["cpu_weight_bytes"][m] + longest * t["kv_cpu_bytes"][m] <= scenario.main_bytes()[:, None]  # (G, K)
        room = t["gpu_bytes"][:, None] - longest * t["kv_gpu_bytes"][m]
        fitted = host & (estimate <= room)
        fits = fitted & (estimate + np.floor(estimate * shares[:, m, None]) <= room)
        same(f"GPUs on which model {m} can be served", fits.any(axis=1).tolist(), fitted.any(axis=1).tolist())


def compare_decision(scenario: Scenario, kernel: Kernel, reference: Reference, report: Report) -> None:
    where = f"decision {report.decisions}"
    report.decisions += 1
    report.same_time(f"{where}: clock", float(kernel.state["now"]), reference.now)
    same(f"{where}: pending on", kernel.pending(), [i.index for i in reference.in_order() if i.pending])
    same(f"{where}: window", kernel.window(), [request.index for request in reference.window()])
    ours, theirs = kernel.legal(), set(reference.legal)
    if ours != theirs:
        raise Mismatch(f"{where}: legal, only kernel {sorted(ours - theirs)}, only reference {sorted(theirs - ours)}")
    compare_bytes(where, kernel.bytes_used(scenario), reference)


def compare_bytes(where: str, kernel: dict[str, Any], reference: Reference) -> None:
    memory, hosts = reference.memory, range(len(reference.t.host_bytes))
    models = range(len(reference.t.num_units))
    theirs = {
        "gpu_used": [memory.gpu_used(g) for g in reference.gpus],
        "host_kv": [memory.host_kv(h) for h in hosts],
        "host_pinned": [memory.pinned_all(h) for h in hosts],
        "host_swap": [memory.swap_used(h) for h in hosts],
        "pinned": [[memory.pinned(h, m) for m in models] for h in hosts],
        "cached": memory.cached,
        "cache_valid": memory.valid,
        "footprint_extra": memory.known,
    }
    for name, value in theirs.items():
        same(f"{where}: {name}", kernel[name], value)


def compare_reward(kernel: Kernel, reference: Reference, report: Report) -> None:
    """A step's reward is a difference of clock readings times weights: compared at the clock's precision."""
    ours, theirs = float(kernel.outcome["reward"]), reference.reward
    if not math.isclose(ours, theirs, rel_tol=1e-8, abs_tol=1e-7 * (1 + reference.now)):
        raise Mismatch(f"reward of step {report.decisions}: kernel {ours!r}, reference {theirs!r}")


def compare_end(kernel: Kernel, reference: Reference, report: Report) -> None:
    state = kernel.state
    report.same_time("clock at the end", float(state["now"]), reference.now)
    for name in ("terminated", "truncated"):
        same(name, bool(kernel.outcome[name]), getattr(reference, name))
    compare_events(kernel, reference, report)
    for row, request in zip(kernel.requests, reference.requests, strict=True):
        what = f"request {request.index}:"
        for name in ("dispatch_s", "first_token_s", "finish_s"):
            report.same_time(f"{what} {name}", float(row[name]), getattr(request, name))
        for name in ("num_preemptions", "saved_tokens"):
            same(f"{what} {name}", int(row[name]), getattr(request, name))


def compare_events(kernel: Kernel, reference: Reference, report: Report) -> None:
    """Every event of every request and every instance, each in its order."""
    ours, theirs = by_subject(kernel.events()), by_subject(reference.events)
    same("requests and instances with events", sorted(ours), sorted(theirs))
    for subject, rows in ours.items():
        others = theirs[subject]
        same(f"events of {subject}", [row[1:4] for row in rows], [row[1:4] for row in others])
        for row, other in zip(rows, others, strict=True):
            report.same_time(f"{subject}: {row[1]}", row[0], other[0])
            if not math.isclose(row[4], other[4], rel_tol=TOLERANCE, abs_tol=1e-6):
                raise Mismatch(f"{subject}: value of {row[1]} at {row[0]}: kernel {row[4]}, reference {other[4]}")
            report.events += 1
            report.kinds[row[1]] += 1


def by_subject(rows: Iterable[tuple[float, str, int, int, float]]) -> dict[str, list[Any]]:
    subjects: dict[str, list[Any]] = defaultdict(list)
    for time_s, kind, request, instance, value in rows:
        if kind in OF_INSTANCES:
            compared = value if OF_INSTANCES[kind] else 0
            subjects[f"instance {instance}"].append((time_s, kind, -1, instance, compared))
        elif kind not in NOT_COMPARED:
            compared = value if kind in ("preempt", "drop") else 0
            subjects[f"request {request}"].append((time_s, kind, request, instance, compared))
    return subjects
