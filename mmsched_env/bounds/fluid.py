"""A lower bound on the mean E2E latency of a large episode: one pooled machine that switches models for nothing.

Two things no schedule escapes. A request takes at least its service alone at its quickest place. And all GPUs, host CPUs
and instance slots together do so many seconds of work a second: give each device a price per second of its work, let every request
cost the least it could at any place with all seats taken, and serve all on one machine of the summed prices, the request of
the shortest rest first, which is optimal there (Schrage 1968). Any prices give a valid bound; the best of a few is taken.
Loads, memory, seats and switching are left out, so the bound is far below what can be had where those matter.
"""

from __future__ import annotations

import heapq
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..config import EnvConfig
from ..costmodel.tables import CostTables, build_tables
from ..workload.trace import RequestTrace

FloatArray = NDArray[np.float64]
PRICES = (0.001, 0.01, 0.03, 0.1, 0.3)
"""of a second of a host CPU and of an instance, tried in pairs; a second of the quickest GPU costs about 1"""


def mean_e2e_lower_bound(config: EnvConfig, trace: RequestTrace) -> float:
    """Seconds that the mean E2E latency of `trace` (class weights left out) cannot be below, whatever the schedule."""
    tables = build_tables(config.cluster, config.models, config.limits.levels, config.limits.batch)
    gpu, cpu, instance, alone = _least_work(tables, trace, config.sim.ubatch_tokens)
    quickest = alone.min(axis=(1, 2))
    speed = quickest[:, None] / alone.min(axis=2)  # how quick each GPU is, by its best level, for each request
    gpu_price = np.nan_to_num(speed).mean(axis=0)
    total = quickest.sum()
    slots = config.limits.slots * len(config.cluster.gpus)
    for cpu_price, slot_price in product(PRICES, PRICES):
        work = (gpu * gpu_price[None, :, None] + cpu * cpu_price + instance * slot_price).min(axis=(1, 2))
        rate = gpu_price.sum() + cpu_price * len(config.cluster.hosts) + slot_price * slots
        total = max(total, shortest_rest_first(trace.arrival_s, work / rate))
    return float(total / len(trace))


def shortest_rest_first(arrival_s: FloatArray, seconds: FloatArray) -> float:
    """Summed flow time of requests of so many seconds on one machine that always serves the shortest rest."""
    waiting: list[float] = []
    now, total, j = 0.0, 0.0, 0
    while waiting or j < len(arrival_s):
        if not waiting:
            now = max(now, float(arrival_s[j]))
        until = float(arrival_s[j]) if j < len(arrival_s) else np.inf
        while waiting and now + waiting[0] <= until:
            rest = heapq.heappop(waiting)
            total += rest * (len(waiting) + 1)
            now += rest
        if j < len(arrival_s):
            if waiting:
                total += (until - now) * len(waiting)
                heapq.heapreplace(waiting, waiting[0] - (until - now))
            now = until
            heapq.heappush(waiting, float(seconds[j]))
            j += 1
    return total


def _least_work(tables: CostTables, trace: RequestTrace, ubatch: int) -> list[FloatArray]:
    """Of each request on each GPU at each level [R, G, K]: seconds of the GPU, the CPU and an instance with all seats
    taken, and seconds alone, each not more than it can be; inf where the model does not fit."""
    model = trace.model
    prompt = (trace.prompt_tokens + trace.image_tokens).astype(np.float64)[:, None, None]
    steps = np.maximum(trace.output_tokens - 1, 0).astype(np.float64)[:, None, None]
    chunks = np.ceil(prompt / ubatch)
    slope_gpu, slope_cpu = (depth.min(axis=2)[model][:, :, None] for depth in (tables.depth_gpu, tables.depth_cpu))
    context = steps * prompt + steps * (steps + 1) / 2
    pick = {
        name: getattr(tables, name)[model] for name in ("gpu_base", "gpu_head", "cpu_base", "cpu_head", "iter_const")
    }
    tokens_gpu = np.minimum(tables.prefill_gpu, tables.prefill_gpu_stream)[model] * prompt
    attention = prompt**2 / 2
    prefill_gpu = chunks * (pick["gpu_base"] + pick["gpu_head"]) + tokens_gpu + tables.gpu_attn[model] * attention
    prefill_gpu = prefill_gpu + trace.image_tokens[:, None, None] * tables.encode_s[model][:, :, None]
    prefill_cpu = chunks * pick["cpu_head"] + tables.cpu_attn[model] * attention
    deep_gpu = tables.gpu_kv[model] * slope_gpu * context
    deep_cpu = tables.cpu_kv[model] * slope_cpu * context
    # every iteration reads the weights once at least, for as many requests as there are seats: each pays its part
    seats = tables.batch_gpu.shape[2]
    gives = chunks + steps
    gpu = prefill_gpu + deep_gpu + (gives / seats - chunks) * (pick["gpu_base"] + pick["gpu_head"])
    cpu = prefill_cpu + deep_cpu + (gives / seats - chunks) * pick["cpu_head"]
    cpu_layers = np.minimum(pick["cpu_base"], tables.stream_s[model])  # computed there, or streamed for a chunk beside
    step = pick["iter_const"] + pick["gpu_base"] + pick["gpu_head"] + pick["cpu_head"] + cpu_layers
    alone = prefill_gpu + prefill_cpu + chunks * pick["iter_const"] + steps * step + deep_gpu + deep_cpu
    fits = (tables.gpu_weight_bytes + tables.buffer_bytes[:, None])[:, None] <= tables.gpu_bytes[None, :, None]
    unfit = ~fits[model]
    return [np.where(unfit, np.inf, x) for x in (gpu, cpu, gives / seats * step, alone)]
