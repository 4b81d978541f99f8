"""A slow second simulator, token by token, for scripts without preemption: what the closed forms must agree with.

Every request is dispatched the moment it arrives, to a given GPU and level. Written from the formulas in the docstring
of `CostTables` and the rules; a fluid simulation that steps from one end of an iteration or transfer to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mmsched_env.costmodel.tables import CostTables


def depth(knots: Any, slopes: Any, tokens: int, batch: int) -> float:
    """Batch times F(mean context): token by token along the knots."""
    if batch == 0:
        return 0.0
    mean, total = tokens / batch, 0.0
    for d, start in enumerate(knots):
        end = knots[d + 1] if d + 1 < len(knots) else float("inf")
        total += slopes[d] * max(0.0, min(mean, end) - start) if start < mean else 0.0
    return float(batch * total)


@dataclass
class Request:
    index: int
    model: int
    arrival: float
    prompt: int
    image: int
    output: int
    encoded: bool = False
    prefilled: int = 0
    generated: int = 0
    first_token: float = math.nan
    finish: float = math.nan

    @property
    def context(self) -> int:
        return self.prompt + self.image


@dataclass
class Instance:
    model: int
    gpu: int
    level: int
    stages: list[tuple[str, float]]  # what is left of the load: (init, seconds), (disk, bytes), (link, bytes)
    bound: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    work: tuple[str, Request | None, int, float, float, float] | None = None  # kind, request, tokens, const, gpu, cpu
    left: float = 1.0  # share of the running iteration still to do


def max_min(caps: list[float], total: float) -> list[float]:
    """Max-min fair rates: raise all alike, whoever reaches its cap stays there."""
    rates = [0.0] * len(caps)
    free = list(range(len(caps)))
    while free:
        share = (total - sum(rates[x] for x in range(len(caps)) if x not in free)) / len(free)
        capped = [x for x in free if caps[x] <= share]
        for x in capped or free:
            rates[x] = caps[x] if capped else share
        free = [x for x in free if x not in capped] if capped else []
    return rates


class Reference:
    def __init__(self, tables: CostTables, ubatch: int, prefill_first: bool = False) -> None:
        self.t, self.ubatch, self.prefill_first = tables, ubatch, prefill_first
        self.now = 0.0
        self.instances: list[Instance] = []
        self.on_disk = {m: float(b) for m, b in enumerate(tables.file_bytes)}  # one host, room for everything

    def run(self, requests: list[Request], script: list[tuple[int, int]]) -> None:
        """Serve all; `script[j]` is (GPU, level) of request j. Times are written into the requests."""
        to_come = list(requests)
        while any(math.isnan(r.finish) for r in requests):
            for x in self.instances:
                self.plan(x)
            speeds = [self.speed(x) for x in self.instances]
            dt = to_come[0].arrival - self.now if to_come else math.inf
            for x, speed in zip(self.instances, speeds, strict=True):
                if speed > 0:
                    dt = min(dt, (x.stages[0][1] if x.stages else x.left) / speed)
            self.now += dt
            for x, speed in zip(self.instances, speeds, strict=True):
                self.move(x, speed * dt)
            while to_come and to_come[0].arrival <= self.now + 1e-12:
                r = to_come.pop(0)
                self.dispatch(r, *script[r.index])

    def dispatch(self, r: Request, gpu: int, level: int) -> None:
        for x in self.instances:
            if x.model == r.model and x.gpu == gpu:
                x.bound.append(r)
                return
        t, m = self.t, r.model
        stages = [
            ("init", float(t.init_s[m, gpu])),
            ("disk", self.on_disk[m]),
            ("link", float(t.gpu_weight_bytes[m, level])),
        ]
        self.instances.append(Instance(m, gpu, level, [s for s in stages if s[1] > 0], [r]))

    def speed(self, x: Instance) -> float:
        """Seconds per second of a delay, bytes per second, or share of the iteration per second."""
        t = self.t
        if x.stages:
            kind = x.stages[0][0]
            if kind == "init":
                return 1.0
            same = [
                y for y in self.instances if y.stages and y.stages[0][0] == kind and (kind == "disk" or y.gpu == x.gpu)
            ]
            caps = [float((t.disk_cap if kind == "disk" else t.link_in_cap)[y.model, y.gpu]) for y in same]
            total = float(t.disk_rate[0] if kind == "disk" else t.link_in_rate[x.gpu])
            return max_min(caps, total)[[y is x for y in same].index(True)]
        if x.work is None:
            return 0.0
        on_gpu = sum(1 for y in self.instances if y.work and y.gpu == x.gpu and y.work[4] > 0)
        on_cpu = sum(1 for y in self.instances if y.work and y.work[5] > 0)
        _, _, _, const, gpu, cpu = x.work
        return 1.0 / (const + on_gpu * gpu + on_cpu * cpu)

    def plan(self, x: Instance) -> None:
        if x.stages or x.work is not None:
            return
        x.batch += x.bound
        x.bound = []
        prompts = [r for r in x.batch if r.generated == 0]
        decoders = [r for r in x.batch if r.generated > 0]
        tokens = sum(r.context + r.generated for r in decoders)
        x.left = 1.0
        t, at = self.t, (x.model, x.gpu, x.level)
        if prompts:
            r = min(prompts, key=lambda r: r.index)
            if r.image and not r.encoded and t.encode_s[x.model, x.gpu] > 0:
                x.work = ("encode", r, 0, 0.0, r.image * float(t.encode_s[x.model, x.gpu]), 0.0)
                return
            p = min(self.ubatch, r.context - r.prefilled)
            a = p * r.prefilled + p * p / 2
            const = t.iter_const[at]
            gpu = t.gpu_base[at] + t.gpu_head[at] + t.gpu_attn[at] * a
            cpu = t.cpu_head[at] + t.cpu_attn[at] * a
            hybrid = t.units_on_gpu[x.model, x.level] < t.num_units[x.model]
            if hybrid and p >= t.stream_min_tokens[x.gpu]:
                const += t.stream_s[at]
                gpu += p * t.prefill_gpu_stream[at]
            else:
                gpu += p * t.prefill_gpu[at]
                cpu += t.cpu_base[at] + p * t.prefill_cpu[at]
            if not self.prefill_first:
                gpu += t.gpu_kv[at] * depth(t.depth_knot[at[:2]], t.depth_gpu[at[:2]], tokens, len(decoders))
                cpu += t.cpu_kv[at] * depth(t.depth_knot[at[:2]], t.depth_cpu[at[:2]], tokens, len(decoders))
            x.work = ("chunk", r, p, float(const), float(gpu), float(cpu))
        elif decoders:
            b = len(decoders) - 1
            gpu = t.gpu_base[at] * t.batch_gpu[x.model, x.gpu, b] + t.gpu_head[at]
            gpu += t.gpu_kv[at] * depth(t.depth_knot[at[:2]], t.depth_gpu[at[:2]], tokens, len(decoders))
            cpu = t.cpu_base[at] * t.batch_cpu[x.model, x.gpu, b] + t.cpu_head[at]
            cpu += t.cpu_kv[at] * depth(t.depth_knot[at[:2]], t.depth_cpu[at[:2]], tokens, len(decoders))
            x.work = ("decode", None, 0, float(t.iter_const[at]), float(gpu), float(cpu))

    def move(self, x: Instance, amount: float) -> None:
        if x.stages:
            kind, left = x.stages[0]
            left -= amount
            if left > 1e-12 * max(1.0, amount):
                x.stages[0] = (kind, left)
                return
            x.stages.pop(0)
            if kind == "disk":
                self.on_disk[x.model] = 0.0
            return
        x.left -= amount
        if x.work is None or x.left > 1e-12:
            return
        kind, r, tokens, *_ = x.work
        x.work = None
        if kind == "decode" or (kind == "chunk" and not self.prefill_first):
            for d in x.batch:
                d.generated += d.generated > 0
        if kind == "encode" and r:
            r.encoded = True
        if kind == "chunk" and r:
            r.prefilled += tokens
            if r.prefilled == r.context:
                r.generated, r.first_token = 1, self.now
        for d in list(x.batch):
            if d.generated >= d.output:
                d.finish = self.now
                x.batch.remove(d)


def requests_of(trace: Any) -> list[Request]:
    columns = (trace.model, trace.arrival_s, trace.prompt_tokens, trace.image_tokens, trace.output_tokens)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [Request(j, m, a, p, i, o) for j, (m, a, p, i, o) in enumerate(rows)]
