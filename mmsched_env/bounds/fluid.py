"""A lower bound on the weighted mean E2E latency of a large episode: one pooled machine that switches models for nothing.

Three things no schedule escapes. Nothing is loaded at the start, so no request of a model is served before its first request has
come and a cold load has passed. A request takes at least its service alone, each part of it at the quickest place for that part.
And all GPUs, host CPUs and instance slots together do so many seconds of work a second: give each device a price per second of
its work, let every part of a request cost the least it could at any place with all seats taken, and serve all on one machine of
the summed prices. There the order of the shortest rest is optimal where all weights are equal (Schrage 1968); where they are
not, the mean busy times under the order of weight over seconds bound all others' from below (Goemans and others, 2002).
Any prices give a valid bound; the best of a few is taken. Later loads, memory, seats and switching are left out, so the
bound is far below what can be had where those matter.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..config import EnvConfig
from ..costmodel.tables import CostTables, build_tables
from ..errors import ConfigError
from ..workload.trace import RequestTrace

FloatArray = NDArray[np.float64]
PRICES = (0.001, 0.01, 0.03, 0.1, 0.3)
"""of a second of a host CPU and of an instance, tried in pairs; a second of the quickest GPU costs about 1"""


@dataclass(frozen=True)
class _Part:
    """A kind of work that requests consist of, and what a unit of it takes at least at each place [M, G, K]."""

    amount: FloatArray
    """[R] units of each request"""
    alone: FloatArray
    """seconds a unit, alone at that place; inf where the model does not fit"""
    gpu: FloatArray
    """seconds of the GPU, with all seats taken"""
    cpu: FloatArray
    """of the host CPU"""
    instance: FloatArray
    """of the instance"""


def why_no_bound(config: EnvConfig) -> str | None:
    """The setting because of which `weighted_e2e_lower_bound` is no bound; None: it is one."""
    plain = (
        ("sim.drop_after", config.sim.drop_after, np.inf),
        ("sim.max_time_s", config.sim.max_time_s, np.inf),
        ("cluster.uncertainty", config.cluster.uncertainty, "none"),
    )
    return next(
        (f"{key} is {value}; accepted for a bound: {only}" for key, value, only in plain if value != only), None
    )


def weighted_e2e_lower_bound(config: EnvConfig, trace: RequestTrace) -> float:
    """Seconds that the mean E2E latency of `trace`, weighted by class, cannot be below, whatever the schedule.

    Raises
    ------
    ConfigError
        Requests may be dropped or left unfinished, or costs are drawn anew each episode.
    """
    if (reason := why_no_bound(config)) is not None:
        raise ConfigError(reason)
    tables = build_tables(config.cluster, config.models, config.limits.levels, config.limits.batch)
    parts = _parts(tables, trace, config.sim.ubatch_tokens)
    weight = trace.weight.astype(np.float64)
    ready = np.maximum(trace.arrival_s, _first_service_s(tables, trace)[trace.model])
    alone = _least(parts, trace.model, [part.alone for part in parts])
    total = float((weight * (ready - trace.arrival_s + alone)).sum())
    quickest = parts[0].alone.min(axis=(1, 2))[:, None] / parts[0].alone.min(axis=2)  # [M, G] how quick each GPU is
    gpu_price = quickest[np.unique(trace.model)].mean(axis=0)
    slots = config.limits.slots * len(config.cluster.gpus)
    for cpu_price, slot_price in product(PRICES, PRICES):
        prices = [p.gpu * gpu_price[None, :, None] + p.cpu * cpu_price + p.instance * slot_price for p in parts]
        rate = gpu_price.sum() + cpu_price * len(config.cluster.hosts) + slot_price * slots
        done = least_weighted_completion(ready, _least(parts, trace.model, prices) / rate, weight)
        total = max(total, done - float((weight * trace.arrival_s).sum()))
    return total / float(weight.sum())


def least_weighted_completion(ready_s: FloatArray, seconds: FloatArray, weight: FloatArray) -> float:
    """A lower bound on the weighted sum of completion times of requests of so many seconds on one machine; exact for equal
    weights."""
    order = np.argsort(ready_s, kind="stable")
    ready_s, seconds, weight = ready_s[order], seconds[order], weight[order]
    if np.ptp(weight) == 0:
        return float(weight[0] * (shortest_rest_first(ready_s, seconds) + ready_s.sum()))
    return float((weight * (_mean_busy_s(ready_s, seconds, weight) + seconds / 2)).sum())


def shortest_rest_first(ready_s: FloatArray, seconds: FloatArray) -> float:
    """Summed flow time of requests of so many seconds on one machine that always serves the shortest rest."""
    waiting: list[float] = []
    now, total, j = 0.0, 0.0, 0
    while waiting or j < len(ready_s):
        if not waiting:
            now = max(now, float(ready_s[j]))
        until = float(ready_s[j]) if j < len(ready_s) else np.inf
        while waiting and now + waiting[0] <= until:
            rest = heapq.heappop(waiting)
            total += rest * (len(waiting) + 1)
            now += rest
        if j < len(ready_s):
            if waiting:
                total += (until - now) * len(waiting)
                heapq.heapreplace(waiting, waiting[0] - (until - now))
            now = until
            heapq.heappush(waiting, float(seconds[j]))
            j += 1
    return total


def _mean_busy_s(ready_s: FloatArray, seconds: FloatArray, weight: FloatArray) -> FloatArray:
    """[R] mean of the times at which each request is served, the largest weight over seconds always first."""
    rest = seconds.tolist()
    waiting: list[tuple[float, int]] = []
    busy = np.zeros(len(rest))
    now, j = 0.0, 0
    while waiting or j < len(rest):
        if not waiting:
            now = max(now, float(ready_s[j]))
        while j < len(rest) and ready_s[j] <= now:
            heapq.heappush(waiting, (-weight[j] / seconds[j], j))
            j += 1
        first = waiting[0][1]
        until = float(ready_s[j]) if j < len(rest) else np.inf
        if now + rest[first] <= until:
            heapq.heappop(waiting)
            end = now + rest[first]
        else:
            end = until
            rest[first] -= until - now
        busy[first] += (end - now) * (end + now) / 2
        now = end
    return busy / seconds


def _least(parts: list[_Part], model: NDArray[np.integer], costs: list[FloatArray]) -> FloatArray:
    """[R] summed cost of the parts of each request, each at the place [M, G, K] where it costs least."""
    least = [part.amount * cost.min(axis=(1, 2))[model] for part, cost in zip(parts, costs, strict=True)]
    total: FloatArray = np.sum(least, axis=0)
    return total


def _first_service_s(tables: CostTables, trace: RequestTrace) -> FloatArray:
    """[M] when a model could first serve: its first arrival and the quickest load, all from disk; inf: never asked for."""
    disk = tables.file_bytes[:, None] / tables.disk_cap
    link = tables.gpu_weight_bytes[:, None, :] / tables.link_in_cap[:, :, None]
    load = np.where(_fits(tables), (tables.init_s + disk)[:, :, None] + link, np.inf).min(axis=(1, 2))
    first = np.full(len(load), np.inf)
    np.minimum.at(first, trace.model, trace.arrival_s)
    ready: FloatArray = first + load
    return ready


def _fits(tables: CostTables) -> NDArray[np.bool_]:
    """[M, G, K] whether the weights and the buffer fit."""
    need = tables.gpu_weight_bytes + tables.buffer_bytes[:, None]
    fits: NDArray[np.bool_] = need[:, None, :] <= tables.gpu_bytes[None, :, None]
    return fits


def _parts(tables: CostTables, trace: RequestTrace, ubatch: int) -> list[_Part]:
    """What requests consist of: iterations first, then prompt tokens, attention, images and context, none dearer than it is."""
    prompt = (trace.prompt_tokens + trace.image_tokens).astype(np.float64)
    steps = np.maximum(trace.output_tokens - 1, 0).astype(np.float64)
    fits = _fits(tables)
    seats = tables.batch_gpu.shape[2]
    nothing = np.zeros(fits.shape)
    # every iteration reads the weights once at least, for as many requests as there are seats: each pays its part
    gpu, cpu = tables.gpu_base + tables.gpu_head, tables.cpu_head
    cpu_layers = np.minimum(tables.cpu_base, tables.stream_s)  # computed there, or streamed for a chunk beside
    iteration = tables.iter_const + gpu + cpu + cpu_layers
    token = np.minimum(tables.prefill_gpu, tables.prefill_gpu_stream)
    slope_gpu, slope_cpu = (depth.min(axis=2)[:, :, None] for depth in (tables.depth_gpu, tables.depth_cpu))
    image = np.broadcast_to(tables.encode_s[:, :, None], fits.shape)
    work = [
        (np.ceil(prompt / ubatch) + steps, iteration, gpu / seats, cpu / seats, iteration / seats),
        *(
            (amount, on_gpu + on_cpu, on_gpu, on_cpu, nothing)
            for amount, on_gpu, on_cpu in (
                (prompt, token, nothing),
                (prompt**2 / 2, tables.gpu_attn, tables.cpu_attn),
                (trace.image_tokens.astype(np.float64), image, nothing),
                (steps * prompt + steps * (steps + 1) / 2, tables.gpu_kv * slope_gpu, tables.cpu_kv * slope_cpu),
            )
        ),
    ]
    return [_Part(amount, *(np.where(fits, cost, np.inf) for cost in costs)) for amount, *costs in work]
