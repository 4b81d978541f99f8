"""Random configurations, traces and actions for many environments at once, and the invariants over all of them.

A sequence is one episode or its first STEPS steps. The invariants are recounted in NumPy from the rules
(docs/dynamics.md), for all environments after every step, on top of the simulator's own `sim.debug_checks`;
environment 0 can be watched by the full recount (recount.py) too.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recount import Recount

from mmsched_env.config import (
    PREEMPT_MODES,
    PREFILL_MODES,
    RESIZE_MODES,
    ClusterConfig,
    EnvConfig,
    LimitsConfig,
    ModelsConfig,
    RewardConfig,
    SimConfig,
)
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables, build_tables, fitting_levels
from mmsched_env.sim import state as c
from mmsched_env.workload import RequestTrace

STEPS = 200
ILLEGAL = 0.1  # share of actions drawn without looking at the mask
GPUS = ("rtx-3060-12gb", "rtx-5060-ti-16gb", "rtx-4090-24gb", "rtx-5000-ada-32gb", "rtx-a6000-48gb")
HOSTS = ("desktop-ddr4", "desktop-ddr5", "threadripper-pro-5995wx")
MODELS = ModelsConfig().names
LIMITS = LimitsConfig()
GRID_S = 1 / 32  # "coarse" tables: every duration is a multiple of it, so that many events meet at one instant
SEATED = (c.BOUND, c.RESTORING, c.PREFILL, c.DECODE, c.SAVING)


# ---------------------------------------------------------------- what is drawn


def coarse(t: CostTables) -> CostTables:
    """Durations on a grid: iterations of one length, fixed stages rounded up."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(t):
        values = getattr(t, field.name)
        if field.name in ("init_s", "unload_s", "save_s"):
            changes[field.name] = np.ceil(values / GRID_S) * GRID_S
        elif field.name == "iter_const":
            changes[field.name] = np.full_like(values, GRID_S)
        elif field.name.startswith(("gpu_", "cpu_", "prefill_", "stream_s", "encode_s")) and values.dtype.kind == "f":
            changes[field.name] = np.zeros_like(values)
    return dataclasses.replace(t, **changes)


def scarce_tables(cluster: ClusterConfig, names: tuple[str, ...], of_host: Any, of_gpu: Any) -> CostTables:
    """The profiles' tables with a part of every host's and every GPU's memory."""
    t = build_tables(cluster, ModelsConfig(names), LIMITS.levels, LIMITS.batch)
    host, gpu = (t.host_bytes * of_host).astype(np.int64), (t.gpu_bytes * of_gpu).astype(np.int64)
    return dataclasses.replace(t, host_bytes=host, gpu_bytes=gpu)


def random_config(rng: np.random.Generator) -> tuple[EnvConfig, CostTables, int]:
    """Configuration, its cost tables and the largest context a request may reserve; every model fits somewhere."""
    while True:
        gpus = tuple(rng.choice(GPUS, rng.integers(1, 5)).tolist())
        hosts = tuple(rng.choice(HOSTS, rng.integers(1, 3)).tolist())
        swap = float(rng.choice([0.0, 0.02, 0.25]))
        cluster = ClusterConfig(gpus, hosts, tuple(rng.integers(len(hosts), size=len(gpus)).tolist()), swap)
        picked = tuple(rng.permutation(MODELS)[: rng.integers(1, 8)].tolist())
        tokens = int(rng.choice([400, 3000, 12000]))
        scarce = (rng.uniform(0.1, 1, len(hosts)), rng.uniform(0.4, 1, len(gpus)))
        fits = fitting_levels(scarce_tables(cluster, picked, *scarce), swap, tokens).any(axis=(1, 2))
        names = tuple(name for name, ok in zip(picked, fits, strict=True) if ok)
        if names:
            break
    t = scarce_tables(cluster, names, *scarce)
    sim = SimConfig(
        prefill_mode=str(rng.choice(PREFILL_MODES)),
        preempt_mode=str(rng.choice(PREEMPT_MODES)),
        resize_mode=str(rng.choice(RESIZE_MODES)),
        ubatch_tokens=int(rng.choice([32, 100, 512])),
        allow_preempt=bool(rng.random() < 0.9),
        allow_offload=bool(rng.random() < 0.9),
        memory_noise=float(rng.choice([0.0, 0.1, 0.5])),
        drop_after=float(rng.choice([np.inf, np.inf, 0.3, 2.0])),
        drop_penalty=float(rng.choice([0.0, 2.0])),
        max_time_s=float(rng.choice([np.inf, np.inf, np.inf, 30.0])),
        debug_checks=True,
    )
    reward = RewardConfig(1.0, float(rng.choice([0.0, 0.5])), float(rng.choice([0.0, 0.1])))
    config = EnvConfig(cluster, ModelsConfig(names), sim=sim, reward=reward)
    t = coarse(t) if rng.random() < 0.3 else t
    return config, dataclasses.replace(t, **side_by_side(rng, len(gpus), len(hosts))), tokens


def side_by_side(rng: np.random.Generator, gpus: int, hosts: int) -> dict[str, Any]:
    """Devices that copy themselves, wholly, in part or not at all; GPUs of a host that slow each other."""
    return {
        "operation_share": rng.choice([0.0, 0.0, 0.4, 1.0], gpus),
        "interference": rng.choice([0.0, 0.0, 0.25], hosts),
    }


def random_trace(rng: np.random.Generator, names: tuple[str, ...], tokens: int) -> RequestTrace:
    """1 to 30 requests, some at the same instant, that reserve `tokens` at most."""
    size = int(rng.integers(1, 31))
    arrival = np.sort(rng.uniform(0, rng.choice([0.0, 3.0, 40.0]), size))
    if rng.random() < 0.5:
        arrival = np.round(arrival / GRID_S) * GRID_S
    output = rng.integers(1, rng.choice([3, 40, tokens // 4]), size)
    room = tokens - int(output.max())
    image = rng.integers(0, room // 2, size) * (rng.random(size) < 0.3)
    return RequestTrace.from_columns(
        names,
        arrival_s=arrival,
        model=rng.integers(len(names), size=size),
        prompt_tokens=rng.integers(1, room // rng.choice([2, 20]), size),
        image_tokens=image,
        output_tokens=output,
        predicted_tokens=np.maximum(1, output * rng.uniform(0.3, 3, size)),
        weight=rng.choice([0.25, 1.0, 2.0], size),
        slo_e2e_s=np.where(rng.random(size) < 0.3, rng.uniform(0.5, 60, size), np.nan),
    )


def random_actions(rng: np.random.Generator, layout: Any, mask: NDArray[Any]) -> NDArray[np.int64]:
    """One action for each row of the mask: a kind first, so that rare kinds are not drowned, then one of that kind."""
    rows = np.arange(len(mask))
    reached = np.cumsum(mask, axis=1, dtype=np.int16)
    ends = reached[:, [0, layout.preempt_at - 1, layout.offload_at - 1, layout.size - 1]]
    counts = np.diff(ends, axis=1, prepend=0)
    likely = np.array([5.0, 4.0, 1.0, 1.0]) * (counts > 0)
    kind = np.argmax(np.cumsum(likely, axis=1) > (rng.random(len(mask)) * likely.sum(axis=1))[:, None], axis=1)
    rank = ends[rows, kind] - (rng.random(len(mask)) * counts[rows, kind]).astype(np.int64)
    actions = np.argmax(reached == rank[:, None], axis=1)
    blind = rng.random(len(mask)) < ILLEGAL
    return np.where(blind, rng.integers(-5, layout.size + 5, len(mask)), actions)


# ---------------------------------------------------------------- what is checked


class Watch:
    """Vectorised invariants of all environments of a simulation."""

    def __init__(self, sim: Simulation) -> None:
        self.sim, self.t, self.d = sim, sim.tables, sim.dims
        swap = sim.config.cluster.kv_swap_fraction
        self.swap = np.array([int(ram * swap) for ram in self.t.host_bytes])
        self.main = self.t.host_bytes - self.swap
        self.gpus, self.hosts, self.models = len(self.t.gpu_bytes), len(self.t.host_bytes), len(self.t.file_bytes)
        self.inst_host = np.full(self.d.I, -1)
        self.inst_host[: self.gpus * self.d.S] = np.repeat(self.t.gpu_host, self.d.S)
        self.last = np.zeros(sim.num_envs)
        self.total = np.zeros(sim.num_envs)

    def begin(self, env: int) -> None:
        self.last[env] = self.total[env] = 0.0

    def ok(self, good: Any, what: str) -> None:
        good = np.asarray(good).reshape(self.sim.num_envs, -1).all(axis=1)
        if not good.all():
            env = int(np.argmin(good))
            raise AssertionError(f"{what}: environment {env}, step {self.sim.state['num_steps'][env]}")

    def check(self, rewards: NDArray[Any]) -> None:
        s, r = self.sim.state, self.sim.requests
        self.ok(s["now"] >= self.last, "I3: the clock went back")
        self.last = s["now"].copy()
        self.ok(np.isfinite(rewards) & (rewards <= 0), "the reward is not a number <= 0")
        self.total += rewards
        real = np.arange(r.shape[1]) < s["num_requests"][:, None]
        phase = np.where(real, r["phase"], -1)
        self.check_requests(s, r, phase)
        self.check_memory(s, r, real, *self.check_seats(s, r, phase))

    def check_requests(self, s: Any, r: Any, phase: NDArray[Any]) -> None:
        count = {name: (phase == name).sum(axis=1) for name in range(c.DROPPED + 1)}
        seated = sum(count[name] for name in SEATED)
        gone = count[c.DONE] + count[c.DROPPED]
        self.ok(count[c.FUTURE] == s["num_requests"] - s["num_arrived"], "I1: future requests")
        self.ok(s["num_arrived"] == count[c.QUEUED] + seated + gone, "I1: arrived requests")
        self.ok((s["num_done"] == count[c.DONE]) & (s["num_dropped"] == count[c.DROPPED]), "I1: done, dropped")
        self.ok(s["queue_length"] == count[c.QUEUED] + count[c.SAVING], "I1: queue")
        inside = (phase != -1) & (phase != c.FUTURE) & (phase != c.DONE) & (phase != c.DROPPED)
        self.ok(np.abs(s["weight_in_system"] - (r["weight"] * inside).sum(axis=1)) < 1e-9, "I1: weights")
        all_out = r["generated"] == r["output_tokens"]
        self.ok((phase == -1) | ((r["generated"] <= r["output_tokens"]) & (all_out == (phase == c.DONE))), "I6")

    def check_seats(self, s: Any, r: Any, phase: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns which instances are in use and the tokens reserved on each."""
        n, where = self.sim.num_envs, s["seat"]
        taken = where >= 0
        flat = np.where(taken, where, 0).reshape(n, -1)

        def seen(name: str) -> NDArray[Any]:
            return np.take_along_axis(np.asarray(r[name]), flat, axis=1).reshape(where.shape)

        self.ok(taken.sum(axis=2) == s["num_seated"], "I1: seats taken")
        self.ok(taken.sum(axis=(1, 2)) == np.isin(phase, SEATED).sum(axis=1), "I1: requests on seats")
        self.ok(~taken | np.isin(seen("phase"), SEATED), "I1: who sits")
        self.ok(~taken | (seen("instance") == np.arange(self.d.I)[:, None]), "I1: where they sit")
        self.ok(~taken | (seen("model") == s["inst_model"][:, :, None]), "I1: another model's request")
        used = s["inst_phase"] != c.EMPTY
        self.ok((used == (s["inst_model"] >= 0)) & (used | ~taken.any(axis=2)), "I1: empty instances")
        tokens = (seen("prompt_tokens") + seen("image_tokens") + seen("max_tokens")) * taken
        return used, tokens.sum(axis=2, dtype=np.int64)

    def check_memory(self, s: Any, r: Any, real: NDArray[Any], used: NDArray[Any], tokens: NDArray[Any]) -> None:
        t, n = self.t, self.sim.num_envs
        m, k = np.where(used, s["inst_model"], 0), s["inst_level"]
        resizing = used & ((s["inst_phase"] == c.RESIZING) | (s["inst_pending"] == c.PENDING_RESIZE))
        for hold in ("inst_hold_gpu", "inst_hold_kv", "inst_hold_swap"):
            self.ok((s[hold] >= 0) & (resizing | (s[hold] == 0)), "I2: holds of resizes")
        estimate = t.gpu_weight_bytes[m, k] + t.buffer_bytes[m]
        known = s["footprint_extra"][np.arange(n)[:, None], np.arange(self.d.I) // self.d.S, m]
        footprint = estimate + np.floor(estimate * known).astype(np.int64)
        gpu = used * (footprint + tokens * t.kv_gpu_bytes[m, k]) + s["inst_hold_gpu"]
        per_gpu = gpu.reshape(n, self.d.G, self.d.S).sum(axis=2)
        self.ok(per_gpu == s["gpu_used"], "I2: GPU memory recounted")
        self.ok(per_gpu[:, : self.gpus] <= t.gpu_bytes, "I2: GPU memory")
        kv = used * tokens * t.kv_cpu_bytes[m, k] + s["inst_hold_kv"]
        pin = used * t.cpu_weight_bytes[m, k]
        pin = np.maximum(pin, resizing * t.cpu_weight_bytes[m, np.where(resizing, s["inst_new_level"], 0)])
        saved_at = r["model"], r["saved_level"]
        saved_bytes = r["saved_tokens"] * (t.kv_gpu_bytes[saved_at] + t.kv_cpu_bytes[saved_at])
        for h in range(self.hosts):
            here = self.inst_host == h
            saved = (saved_bytes * (real & (r["saved_host"] == h))).sum(axis=1)
            saved += (s["inst_hold_swap"] * here).sum(axis=1)
            self.ok((saved == s["host_swap"][:, h]) & (saved <= self.swap[h]), "I2: swap")
            host_kv = (kv * here).sum(axis=1)
            self.ok(host_kv == s["host_kv"][:, h], "I2: CPU-side KV")
            for model in range(self.models):
                need = (pin * (here & used & (m == model))).max(axis=1)
                cached, valid = s["cached"][:, h, model], s["cache_valid"][:, h, model]
                self.ok(need == s["pinned"][:, h, model], "I2: pinned weights")
                self.ok((need <= cached) & (cached <= t.file_bytes[model]), "I2: cached weights")
                self.ok((valid >= 0) & (valid <= cached), "I2: cached weights read")
            self.ok(s["cached"][:, h].sum(axis=1) + host_kv <= self.main[h], "I2: host RAM")

    def end(self, env: int) -> None:
        """I7: the rewards add up to what the records say."""
        s, weights = self.sim.state[env], self.sim.config.reward
        r = self.sim.episode_requests(env)
        r = r[r["phase"] != c.FUTURE]
        done, dropped = r["phase"] == c.DONE, r["phase"] == c.DROPPED
        until = np.where(done, r["finish_s"], np.where(dropped, r["charged_until_s"], s["now"]))
        flow = (r["weight"] * (until - r["arrival_s"]))[~dropped].sum()
        flow += (r["weight"] * np.maximum(0, until - r["arrival_s"]))[dropped].sum()
        e2e, ttft = r["finish_s"] - r["arrival_s"], r["first_token_s"] - r["arrival_s"]
        missed = dropped | (done & ((e2e > r["slo_e2e_s"]) | (ttft > r["slo_ttft_s"])))
        expected = weights.flow_time * flow + weights.slo_miss * r["weight"][missed].sum()
        expected += weights.slowdown * (e2e / r["unloaded_s"])[done].sum()
        assert abs(-self.total[env] - expected) <= 1e-7 * (1 + expected), f"I7: environment {env}"


# ---------------------------------------------------------------- many sequences


def play(seed: int, sequences: int, num_envs: int, monkeypatch: Any, full: bool = True) -> Counter[str]:
    """`sequences` random sequences of one random configuration; returns counts of what happened."""
    rng = np.random.default_rng([20240607, seed])
    config, tables, tokens = random_config(rng)
    monkeypatch.setattr("mmsched_env.core.build_tables", lambda *args: tables)
    sim = Simulation(config, num_envs)
    traces = [random_trace(rng, config.models.names, tokens) for _ in range(32)]
    watch, seen, age = Watch(sim), Counter[str](), np.zeros(num_envs, int)
    recount: Recount | None = None

    def begin(env: int) -> None:
        nonlocal recount
        sim.reset(env, traces[rng.integers(len(traces))], seed=int(rng.integers(2**63)))
        watch.begin(env)
        age[env] = 0
        if full and env == 0:
            recount = Recount(sim)

    def done(env: int, how: str) -> None:
        watch.end(env)
        seen.update(("sequences", how))
        for name in ("num_loads", "num_failed_loads", "num_preempted", "num_resizes", "num_dropped", "num_done"):
            seen[name] += int(sim.state[name][env])
        begin(env)

    for env in range(num_envs):
        begin(env)
    while seen["sequences"] < sequences:
        mask = sim.current.mask
        actions = random_actions(rng, sim.layout, mask)
        inside = (actions >= 0) & (actions < sim.layout.size)
        legal = inside & (mask[np.arange(num_envs), np.where(inside, actions, 0)] == 1)
        if recount and legal[0]:
            recount.before(int(actions[0]))
        outcomes = sim.step(actions)
        ended = (outcomes.terminated | outcomes.truncated).astype(bool)
        assert ((outcomes.illegal == 1) == ~legal).all(), "I5: the mask is not what is accepted"
        watch.check(outcomes.reward)
        if recount:
            recount.after(mask=not ended[0])
        age += 1
        seen["steps"] += num_envs
        seen["illegal"] += int((~legal).sum())
        for env in np.flatnonzero(ended | (age == STEPS)):
            done(int(env), "drained" if outcomes.terminated[env] else "ended" if outcomes.truncated[env] else "cut")
    return seen
