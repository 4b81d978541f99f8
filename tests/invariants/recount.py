"""Independent recounting of a simulation's records in plain Python: what must hold at every decision point.

Written from the rules (docs/dynamics.md), not from the kernel: nothing of sim/kernel is called.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

from mmsched_env.action import Kind
from mmsched_env.core import Simulation
from mmsched_env.sim import state as c

SEATED = (c.BOUND, c.RESTORING, c.PREFILL, c.DECODE, c.SAVING)


class Recount:
    """Checks of one environment of a simulation; keeps what cannot be read off the records (holds of resizes)."""

    def __init__(self, simulation: Simulation, env: int = 0) -> None:
        self.sim = simulation
        self.env = env
        self.t = simulation.tables
        self.config = simulation.config
        self.dims = simulation.dims
        swap = self.config.cluster.kv_swap_fraction
        self.swap_bytes = [int(ram * swap) for ram in self.t.host_bytes]
        self.main_bytes = [int(ram) - s for ram, s in zip(self.t.host_bytes, self.swap_bytes, strict=True)]
        self.holds: dict[int, tuple[int, int, int]] = {}  # instance -> bytes on GPU, CPU-side KV, swap
        self.last_now = 0.0

    # -- reading

    @property
    def s(self) -> Any:
        return self.sim.state[self.env]

    @property
    def r(self) -> Any:
        return self.sim.episode_requests(self.env)

    def gpu(self, i: int) -> int:
        return i // self.dims.S

    def host(self, i: int) -> int:
        return int(self.t.gpu_host[self.gpu(i)])

    def seats(self, i: int) -> list[int]:
        return [int(j) for j in self.s["seat"][i] if j >= 0]

    def reserved(self, j: int) -> int:
        row = self.r[j]
        return int(row["prompt_tokens"]) + int(row["image_tokens"]) + int(row["max_tokens"])

    def instances(self) -> list[int]:
        return [i for i in range(self.dims.I) if self.s["inst_phase"][i] != c.EMPTY]

    # -- memory recounted

    def footprint(self, g: int, m: int, k: int) -> int:
        """Weights and buffer, and what is known to come on top."""
        estimate = int(self.t.gpu_weight_bytes[m, k]) + int(self.t.buffer_bytes[m])
        return estimate + math.floor(estimate * float(self.s["footprint_extra"][g, m]))

    def gpu_used(self, g: int) -> int:
        total = 0
        for i in self.instances():
            if self.gpu(i) == g:
                m, k = int(self.s["inst_model"][i]), int(self.s["inst_level"][i])
                total += self.footprint(g, m, k)
                total += sum(self.reserved(j) for j in self.seats(i)) * int(self.t.kv_gpu_bytes[m, k])
                total += self.holds.get(i, (0, 0, 0))[0]
        return total

    def host_kv(self, h: int) -> int:
        total = 0
        for i in self.instances():
            if self.host(i) == h:
                m, k = int(self.s["inst_model"][i]), int(self.s["inst_level"][i])
                total += sum(self.reserved(j) for j in self.seats(i)) * int(self.t.kv_cpu_bytes[m, k])
                total += self.holds.get(i, (0, 0, 0))[1]
        return total

    def pinned(self, h: int, m: int) -> int:
        need = 0
        for i in self.instances():
            if self.host(i) == h and self.s["inst_model"][i] == m:
                levels = [int(self.s["inst_level"][i])]
                if i in self.holds:
                    levels.append(int(self.s["inst_new_level"][i]))
                need = max(need, *(int(self.t.cpu_weight_bytes[m, k]) for k in levels))
        return need

    def kv_bytes(self, row: Any) -> int:
        at = int(row["model"]), int(row["saved_level"])
        return int(row["saved_tokens"]) * int(self.t.kv_gpu_bytes[at] + self.t.kv_cpu_bytes[at])

    def host_swap(self, h: int) -> int:
        saved = sum(self.kv_bytes(row) for row in self.r if row["saved_host"] == h)
        return saved + sum(hold[2] for i, hold in self.holds.items() if self.host(i) == h)

    def gpu_free(self, g: int) -> int:
        return int(self.t.gpu_bytes[g]) - self.gpu_used(g)

    def host_free(self, h: int) -> int:
        return self.main_bytes[h] - self.host_kv(h) - sum(self.pinned(h, m) for m in range(len(self.t.file_bytes)))

    # -- legality recomputed

    def levels(self, m: int) -> list[int]:
        """Levels of their own: of those that round to the same number of units, the lowest."""
        units = [int(u) for u in self.t.units_on_gpu[m]]
        return [k for k in range(len(units)) if units[k] not in units[:k]]

    def resize_hold(self, i: int, k: int) -> tuple[int, int, int, int]:
        """Extra bytes on GPU, of pinned weights, of CPU-side KV and of swap that a resize to level k takes."""
        m, old = int(self.s["inst_model"][i]), int(self.s["inst_level"][i])
        tokens = sum(self.reserved(j) for j in self.seats(i))

        def on_gpu(level: int) -> int:
            return self.footprint(self.gpu(i), m, level) + tokens * int(t.kv_gpu_bytes[m, level])

        t = self.t
        gpu = on_gpu(k) - on_gpu(old)
        pin = int(t.cpu_weight_bytes[m, k]) - self.pinned(self.host(i), m)
        kv = tokens * (int(t.kv_cpu_bytes[m, k]) - int(t.kv_cpu_bytes[m, old]))
        swap = 0 if self.config.sim.resize_mode == "move" else tokens * int(t.kv_gpu_bytes[m, old])
        return max(0, gpu), max(0, pin), max(0, kv), swap

    def changeable(self, i: int) -> bool:
        s = self.s
        quiet = s["inst_pending"][i] == c.NO_PENDING and s["op"][i] == c.NO_OP and s["restore_request"][i] < 0
        return bool(s["inst_phase"][i] == c.READY and quiet)

    def dispatch_levels(self, j: int, g: int) -> list[int]:
        """Levels at which DISPATCH of waiting request j to GPU g is legal."""
        s, t, m, h = self.s, self.t, int(self.r[j]["model"]), int(self.t.gpu_host[g])
        tokens = self.reserved(j)
        mine = range(g * self.dims.S, (g + 1) * self.dims.S)
        at = [i for i in mine if s["inst_phase"][i] != c.EMPTY and s["inst_model"][i] == m]
        if at:
            (i,) = at  # never two instances of a model on a GPU
            k = int(s["inst_level"][i])
            open_ = s["inst_phase"][i] == c.LOADING or (s["inst_phase"][i] == c.READY and s["op"][i] == c.NO_OP)
            room = len(self.seats(i)) < self.dims.B and s["inst_pending"][i] == c.NO_PENDING
            fits = tokens * int(t.kv_gpu_bytes[m, k]) <= self.gpu_free(g)
            fits &= tokens * int(t.kv_cpu_bytes[m, k]) <= self.host_free(h)
            return [k] if open_ and room and fits else []
        if all(s["inst_phase"][i] != c.EMPTY for i in mine):
            return []
        legal = []
        for k in self.levels(m):
            gpu = self.footprint(g, m, k) + tokens * int(t.kv_gpu_bytes[m, k])
            pin = max(0, int(t.cpu_weight_bytes[m, k]) - self.pinned(h, m))
            if gpu <= self.gpu_free(g) and pin + tokens * int(t.kv_cpu_bytes[m, k]) <= self.host_free(h):
                legal.append(k)
        return legal

    def legal_actions(self) -> set[int]:
        """Every legal action, by the rules."""
        layout, s, r = self.sim.layout, self.s, self.r
        legal = set()
        queue = [j for j in range(len(r)) if r[j]["phase"] in (c.QUEUED, c.SAVING)]
        for q, j in enumerate(queue[: self.dims.Q]):
            if r[j]["phase"] == c.QUEUED:
                for g in range(len(self.t.gpu_bytes)):
                    legal |= {layout.dispatch(q, g, k) for k in self.dispatch_levels(j, g)}
        for i in filter(self.changeable, self.instances()):
            if self.config.sim.allow_preempt or not self.seats(i):
                legal.add(layout.preempt(i))
            if self.config.sim.allow_preempt and any(r[j]["phase"] in (c.PREFILL, c.DECODE) for j in self.seats(i)):
                legal.add(layout.preempt(i, whole_instance=False))
            g, h = self.gpu(i), self.host(i)
            for k in self.levels(int(s["inst_model"][i])) if self.config.sim.allow_offload else []:
                if k != s["inst_level"][i]:
                    gpu, pin, kv, swap = self.resize_hold(i, k)
                    fits = gpu <= self.gpu_free(g) and pin + kv <= self.host_free(h)
                    if fits and swap <= self.swap_bytes[h] - self.host_swap(h):
                        legal.add(layout.offload(i, k))
        ahead = s["num_arrived"] < len(r) or any(self.seats(i) or s["op"][i] != c.NO_OP for i in self.instances())
        droppable = self.config.sim.drop_after < float("inf") and bool(queue)
        if ahead or droppable or not legal:
            legal.add(0)
        return legal

    # -- to be called around every step

    def before(self, action: int) -> None:
        """Note what a legal OFFLOAD will hold from now on."""
        if self.sim.current.mask[self.env][action] and action > 0:
            what = self.sim.layout.decode(action)
            if what.kind == Kind.OFFLOAD:
                i = what.gpu * self.dims.S + what.slot
                gpu, _, kv, swap = self.resize_hold(i, what.level)
                self.holds[i] = (gpu, kv, swap)

    def after(self, mask: bool = True) -> None:
        """Check everything; `mask`: the legality of every action too (not at the end of an episode)."""
        for i in list(self.holds):
            if self.s["inst_phase"][i] != c.RESIZING and self.s["inst_pending"][i] != c.PENDING_RESIZE:
                del self.holds[i]
        self.check_clock()
        self.check_requests()
        self.check_queue()
        self.check_seats()
        self.check_memory()
        if mask:
            actual = {a for a in range(self.dims.A) if self.s["mask"][a]}
            expected = self.legal_actions()
            layout = self.sim.layout
            wrong = {str(layout.decode(a)) for a in actual ^ expected}
            assert actual == expected, f"mask and rules disagree on {sorted(wrong)}"
            assert expected - {0}, "a decision without a choice is not skipped"
            assert (self.sim.current.mask[self.env] == self.s["mask"]).all()

    def check_clock(self) -> None:
        assert self.s["now"] >= self.last_now, "I3: the clock went back"
        self.last_now = float(self.s["now"])

    def check_requests(self) -> None:
        s, r = self.s, self.r
        phases = Counter(int(x) for x in r["phase"])
        waiting = phases[c.QUEUED]
        seated = sum(phases[phase] for phase in SEATED)
        gone = phases[c.DONE] + phases[c.DROPPED]
        assert s["num_arrived"] == len(r) - phases[c.FUTURE] == waiting + seated + gone, "I1"
        assert s["num_done"] == phases[c.DONE] and s["num_dropped"] == phases[c.DROPPED]
        assert s["num_in_system"] == waiting + seated
        weight = sum(float(row["weight"]) for row in r if row["phase"] not in (c.FUTURE, c.DONE, c.DROPPED))
        assert abs(s["weight_in_system"] - weight) < 1e-9
        slack = 1e-9
        for j, row in enumerate(r):
            phase = row["phase"]
            times = [row["arrival_s"], row["dispatch_s"], row["first_token_s"], row["finish_s"]]
            come = [t for t in times[1:] if t >= 0]
            assert times[1 : 1 + len(come)] == come, f"I4: request {j} skipped a stage: {times}"
            chain = [times[0], *come]
            assert all(a <= b + slack for a, b in itertools.pairwise(chain)), f"I4: request {j}: {times}"
            assert 0 <= row["generated"] <= row["output_tokens"]
            assert (row["generated"] >= 1) == (row["first_token_s"] >= 0)
            if phase == c.DONE:
                assert row["generated"] == row["output_tokens"] and len(come) == 3, f"I6: request {j}"
            else:
                assert row["generated"] < row["output_tokens"] and row["finish_s"] < 0
            assert (phase == c.DROPPED) == (row["charged_until_s"] >= 0)
            saved = row["saved_host"] >= 0
            assert saved == (row["saved_tokens"] > 0), f"request {j} has half a saved KV cache"
            context = int(row["prompt_tokens"]) + int(row["image_tokens"]) + int(row["generated"])
            assert 0 <= row["prefill_left"] <= context
            if saved:
                assert phase in (c.SAVING, c.QUEUED, c.BOUND, c.RESTORING)
                assert row["saved_tokens"] == context - row["prefill_left"]
            if phase == c.QUEUED and not saved:
                assert row["prefill_left"] == context, f"request {j} waits with KV that is nowhere"

    def check_queue(self) -> None:
        s, r = self.s, self.r
        expected = [j for j in range(len(r)) if r[j]["phase"] in (c.QUEUED, c.SAVING)]
        walked, j, previous = [], int(s["queue_head"]), -1
        while j >= 0:
            walked.append(j)
            assert r[j]["previous"] == previous
            previous, j = j, int(r[j]["next"])
        assert walked == expected, "the queue is not the waiting requests in order of arrival"
        assert s["queue_tail"] == previous and s["queue_length"] == len(walked)
        assert s["window"].tolist() == (expected + [-1] * self.dims.Q)[: self.dims.Q]
        for m in range(len(self.t.file_bytes)):
            mine = [j for j in expected if r[j]["model"] == m]
            assert s["model_queued"][m] == len(mine)
            assert abs(s["model_queued_weight"][m] - sum(float(r[j]["weight"]) for j in mine)) < 1e-9

    def check_seats(self) -> None:
        s, r = self.s, self.r
        seated = Counter(j for i in range(self.dims.I) for j in self.seats(i))
        assert seated == Counter(j for j in range(len(r)) if r[j]["phase"] in SEATED)
        for i in range(self.dims.I):
            mine = self.seats(i)
            assert s["num_seated"][i] == len(mine) <= self.dims.B
            phase, m = s["inst_phase"][i], int(s["inst_model"][i])
            if phase == c.EMPTY:
                assert not mine and m == -1
                continue
            assert s["inst_at"][self.gpu(i), m] == i
            assert all(r[j]["model"] == m and r[j]["instance"] == i for j in mine)
            restoring = [j for j in mine if r[j]["phase"] == c.RESTORING]
            assert restoring == [j for j in [int(s["restore_request"][i])] if j >= 0]
            assert (s["unit_phase"][self.dims.I + i] != c.UNIT_IDLE) == bool(restoring)
            assert (s["unit_phase"][i] != c.UNIT_IDLE) == (s["op"][i] != c.NO_OP)
            if phase in (c.LOADING, c.EVICTING, c.RESIZING):
                assert s["op"][i] == {c.LOADING: c.OP_LOAD, c.EVICTING: c.OP_EVICT, c.RESIZING: c.OP_RESIZE}[phase]
                assert s["it_kind"][i] == c.NO_ITERATION
            if phase == c.LOADING:
                assert all(r[j]["phase"] == c.BOUND for j in mine)
            if phase == c.EVICTING:
                assert all(r[j]["phase"] == c.SAVING for j in mine)
        at = [(g, m) for g in range(self.dims.G) for m in range(self.dims.M) if s["inst_at"][g, m] >= 0]
        assert at == sorted((self.gpu(i), int(s["inst_model"][i])) for i in self.instances())

    def check_memory(self) -> None:
        s, models = self.s, range(len(self.t.file_bytes))
        for g, capacity in enumerate(self.t.gpu_bytes):
            assert s["gpu_used"][g] == self.gpu_used(g) <= capacity, f"I2: GPU {g}"
        for h in range(len(self.t.host_bytes)):
            assert s["host_kv"][h] == self.host_kv(h), "I2: CPU-side KV"
            assert [int(s["pinned"][h, m]) for m in models] == [self.pinned(h, m) for m in models], "I2: pinned"
            assert s["host_pinned"][h] == sum(self.pinned(h, m) for m in models)
            assert s["host_swap"][h] == self.host_swap(h) <= self.swap_bytes[h], "I2: saved KV"
            for m in models:
                assert s["pinned"][h, m] <= s["cached"][h, m] <= self.t.file_bytes[m], "I2: cache entry"
                assert 0 <= s["cache_valid"][h, m] <= s["cached"][h, m]
            assert int(s["cached"][h].sum()) + int(s["host_kv"][h]) <= self.main_bytes[h], "I2: host RAM"


def check_log(log: Any, records: Any, state: Any, slots: int) -> None:
    """The event log tells the same story as the records."""
    from mmsched_env.sim.events import NAMES

    by_kind: dict[str, list[Any]] = {name: [] for name in NAMES}
    for row in log:
        by_kind[NAMES[row["kind"]]].append(row)
    assert log["seq"].tolist() == list(range(len(log)))
    assert (log["time_s"][1:] >= log["time_s"][:-1]).all()
    counts = {name: len(rows) for name, rows in by_kind.items()}
    assert counts["load_start"] == state["num_loads"]
    assert counts["unload_start"] == state["num_unloads"] >= state["num_failed_loads"] == counts["load_failed"]
    assert counts["resize_start"] == state["num_resizes"]
    assert counts["preempt"] >= state["num_preempted"] == records["num_preemptions"].sum()
    present = {int(i) for i in range(len(state["inst_phase"])) if state["inst_phase"][i] != c.EMPTY}
    assert counts["load_start"] - counts["unload_end"] == len(present)
    for j, row in enumerate(records):

        def times(name: str, j: int = j) -> list[float]:
            return [float(e["time_s"]) for e in by_kind[name] if e["request"] == j]

        for name, field in (("first_token", "first_token_s"), ("finish", "finish_s")):
            assert times(name) == ([float(row[field])] if row[field] >= 0 else [])
        assert times("dispatch")[:1] == ([float(row["dispatch_s"])] if row["dispatch_s"] >= 0 else [])
        if row["phase"] != c.FUTURE:
            (arrived,) = times("arrive")
            assert abs(arrived - row["arrival_s"]) <= 1e-9
        assert len(times("restore_end")) <= len(times("restore_start")) <= len(times("save_end"))
        if row["phase"] == c.DONE:
            assert len(times("dispatch")) == len(times("preempt")) + 1


def flow_time_from_log(log: Any, weights: Any, until_s: float) -> float:
    """Integral of the weighted number of requests in the system, from ARRIVE, FINISH and DROP rows alone."""
    from mmsched_env.sim.events import ARRIVE, DROP, FINISH

    total, level, last = 0.0, 0.0, 0.0
    for row in log:
        if row["kind"] in (ARRIVE, FINISH, DROP):
            total += level * (float(row["time_s"]) - last)
            last = float(row["time_s"])
            level += float(weights[row["request"]]) * (1 if row["kind"] == ARRIVE else -1)
            total += float(row["value"]) if row["kind"] == DROP else 0.0
    return total + level * (until_s - last)
