"""Profiles -> arrays of seconds and bytes: the only file that writes cost arrays.

Index letters: M models, G GPUs, K offload levels, B batch sizes (column b is batch b + 1), H hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.config import ClusterConfig, ModelsConfig
from mmsched_env.errors import ConfigError
from mmsched_env.workload.source import stream

from . import roofline
from .profile import GpuProfile, HostProfile, ModelProfile, draw, load_gpu, load_host, load_model

NUM_KNOTS = 4
"""entries of the depth tables; unused knots are at infinity"""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class CostTables:
    """Everything the simulator knows about time and memory.

    One decode iteration of B requests with C context tokens in all, on an instance of model m on GPU g at level k,
    with the shares ``s_g`` of the GPU and ``s_c`` of the host CPU (docs/dynamics.md, R19), takes::

        iter_const + s_g (gpu_base batch_gpu[B] + gpu_head + gpu_kv B F_gpu(C / B))
                   + s_c (cpu_base batch_cpu[B] + cpu_head + cpu_kv B F_cpu(C / B))

    with F(0) = 0 and the slope ``depth_gpu[d]`` (``depth_cpu[d]``) from ``depth_knot[d]`` to the next knot; F(x) = x where
    nothing else was measured.

    A prefill chunk of p tokens at depth x (already in the KV cache), with a = p x + p^2 / 2, takes, when
    p >= stream_min_tokens (weights of the CPU units streamed over the link and computed on the GPU)::

        iter_const + stream_s + s_g (gpu_base + gpu_head + p prefill_gpu_stream + gpu_attn a)
                              + s_c (cpu_head + cpu_attn a)

    and below it (CPU units computed on the CPU)::

        iter_const + s_g (gpu_base + gpu_head + p prefill_gpu + gpu_attn a)
                   + s_c (cpu_base + cpu_head + p prefill_cpu + cpu_attn a)
    """

    # -- residency, per model and level
    num_units: IntArray  # [M] layers + 1 (the output head, last); mixture of experts: layers (the experts of each)
    units_on_gpu: IntArray  # [M, K] level * num_units, halves rounded up
    gpu_weight_bytes: IntArray  # [M, K] weights of the resident units, and the image encoder at every level
    cpu_weight_bytes: IntArray  # [M, K] weights of the units in host RAM
    file_bytes: IntArray  # [M] all weights, what a cold load reads from disk (an untied input embedding included)
    buffer_bytes: IntArray  # [M] compute buffer held on the GPU by every instance
    kv_gpu_bytes: IntArray  # [M, K] KV bytes per context token on the GPU
    kv_cpu_bytes: IntArray  # [M, K] KV bytes per context token in host RAM
    # -- decode, seconds
    iter_const: FloatArray  # [M, G, K] launches, and entering the CPU (experts: once a layer there)
    gpu_base: FloatArray  # [M, G, K] reading the resident layers (of experts: the active ones) once at batch 1
    gpu_head: FloatArray  # [M, G, K] output head if resident, else 0
    gpu_kv: FloatArray  # [M, G, K] per context token
    cpu_base: FloatArray  # [M, G, K]
    cpu_head: FloatArray  # [M, G, K]
    cpu_kv: FloatArray  # [M, G, K]
    batch_gpu: FloatArray  # [M, G, B] relative step time, batch_gpu[..., 0] == 1
    batch_cpu: FloatArray  # [M, G, B]
    depth_knot: (
        FloatArray  # [M, G, D] mean context per request at which the KV slope changes; rising, first 0, unused inf
    )
    depth_gpu: FloatArray  # [M, G, D] relative slope of gpu_kv from each knot on; 1: as gpu_kv says
    depth_cpu: FloatArray  # [M, G, D]
    # -- prefill, seconds
    prefill_gpu: FloatArray  # [M, G, K] per prompt token, resident units
    prefill_gpu_stream: FloatArray  # [M, G, K] per prompt token, all units, when the others are streamed
    prefill_cpu: FloatArray  # [M, G, K] per prompt token, CPU units computed on the CPU
    stream_s: FloatArray  # [M, G, K] streaming the CPU units' weights once (per micro-batch)
    gpu_attn: FloatArray  # [M, G, K] per token^2 (p x + p^2 / 2)
    cpu_attn: FloatArray  # [M, G, K]
    encode_s: FloatArray  # [M, G] image encoder, per image token; 0 for text models
    # -- loading and moving, seconds and bytes/s
    init_s: FloatArray  # [M, G] engine start and tokenizer, before any byte moves
    unload_s: FloatArray  # [M, G, K] freeing the instance, > 0
    save_s: FloatArray  # [G] fixed part of one request's KV save or restore
    disk_cap: FloatArray  # [M, G] bytes/s one load can draw from disk
    link_in_cap: FloatArray  # [M, G] bytes/s one weight load can draw from the host-to-device link
    kv_in_cap: FloatArray  # [G] bytes/s of one KV restore
    kv_out_cap: FloatArray  # [G] bytes/s of one KV save
    # -- capacities
    gpu_bytes: IntArray  # [G] usable memory
    host_bytes: IntArray  # [H] RAM for weights, CPU-side KV and saved KV
    link_in_rate: FloatArray  # [G] bytes/s, all transfers together
    link_out_rate: FloatArray  # [G]
    disk_rate: FloatArray  # [H]
    # -- work side by side
    operation_share: FloatArray  # [G] busy instances that a load, unload, save or restore counts for on its GPU
    interference: FloatArray  # [H] share by which each further GPU that iterates slows iterations of the host
    gpu_host: IntArray  # [G] index of the host
    stream_min_tokens: IntArray  # [G] prompts at least this long are streamed (a very large number: never)

    def most_tokens(self, kv_swap_fraction: float) -> IntArray:
        """Tokens of KV [M, G, K] that fit beside the weights and the compute buffer; -1: these do not fit themselves.

        `kv_swap_fraction` of the hosts' RAM is kept for saved KV. Every episode asks, so the answer is kept.
        """
        if kv_swap_fraction not in self._most_tokens:
            self._most_tokens[kv_swap_fraction] = _most_tokens(self, kv_swap_fraction)
        return self._most_tokens[kv_swap_fraction]

    @cached_property
    def _most_tokens(self) -> dict[float, IntArray]:
        return {}


def build_tables(
    cluster: ClusterConfig,
    models: ModelsConfig,
    levels: tuple[float, ...],
    max_batch: int,
    seed: int | None = None,
) -> CostTables:
    """Cost arrays of a cluster serving `models`, unpadded: M, G, K = len(levels), B = max_batch, H.

    With a `seed`, every figure of a profile is off by what the profile says it may be, drawn from the seed's stream
    "costs": once for each profile, since two cards of a kind share what is wrong with it.

    Raises
    ------
    ConfigError
        A profile that is unknown or bad, or a model that fits on no GPU at any level.
    """
    by_gpu = {name: load_gpu(name) for name in sorted(set(cluster.gpus))}
    by_host = {name: load_host(name) for name in sorted(set(cluster.hosts))}
    if seed is not None:
        rng = stream(seed, "costs")
        by_gpu = {name: draw(gpu, rng) for name, gpu in by_gpu.items()}
        by_host = {name: draw(host, rng) for name, host in by_host.items()}
    gpus = [by_gpu[name] for name in cluster.gpus]
    hosts = [by_host[name] for name in cluster.hosts]
    loaded = [load_model(name) for name in models.names]
    per_gpu = list(zip(gpus, (hosts[h] for h in cluster.gpu_hosts), strict=True))
    tables = CostTables(
        **_residency(loaded, levels),
        **_timing(loaded, per_gpu, levels),
        **_batching(loaded, per_gpu, max_batch),
        **_depth(len(loaded), len(per_gpu)),
        **_loading(loaded, per_gpu),
        **_capacities(gpus, hosts, cluster),
    )
    _require_fit(tables, cluster, models)
    return tables


def _residency(models: list[ModelProfile], levels: tuple[float, ...]) -> dict[str, Any]:
    num_units = [roofline.units(m) for m in models]
    resident = [[roofline.level_units(level, n) for level in levels] for n in num_units]
    weights = [[roofline.resident_bytes(m, n) for n in row] for m, row in zip(models, resident, strict=True)]
    cache = [[roofline.kv_bytes(m, n) for n in row] for m, row in zip(models, resident, strict=True)]
    return {
        "num_units": _ints(num_units),
        "units_on_gpu": _ints(resident),
        "gpu_weight_bytes": _ints(weights)[..., 0].copy(),
        "cpu_weight_bytes": _ints(weights)[..., 1].copy(),
        "kv_gpu_bytes": _ints(cache)[..., 0].copy(),
        "kv_cpu_bytes": _ints(cache)[..., 1].copy(),
        "file_bytes": _ints([m.file_bytes for m in models]),
        "buffer_bytes": _ints([roofline.buffer_bytes(m) for m in models]),
    }


def _timing(
    models: list[ModelProfile], per_gpu: list[tuple[GpuProfile, HostProfile]], levels: tuple[float, ...]
) -> dict[str, Any]:
    shape = (len(models), len(per_gpu), len(levels))
    arrays: dict[str, FloatArray] = {}
    for m, g, k in np.ndindex(shape):
        model, (gpu, host) = models[m], per_gpu[g]
        on_gpu = roofline.level_units(levels[k], roofline.units(model))
        costs = roofline.decode_costs(model, gpu, host, on_gpu) | roofline.prefill_costs(model, gpu, host, on_gpu)
        costs["unload_s"] = roofline.unload_s(model, gpu, on_gpu)
        for name, value in costs.items():
            arrays.setdefault(name, np.zeros(shape))[m, g, k] = value
    return arrays


def _batching(
    models: list[ModelProfile], per_gpu: list[tuple[GpuProfile, HostProfile]], max_batch: int
) -> dict[str, Any]:
    pairs = [[roofline.batch_tables(model, gpu, host, max_batch) for gpu, host in per_gpu] for model in models]
    both = np.array(pairs).reshape(len(models), len(per_gpu), 2, max_batch)
    return {"batch_gpu": both[:, :, 0].copy(), "batch_cpu": both[:, :, 1].copy()}


def _depth(num_models: int, num_gpus: int) -> dict[str, Any]:
    """KV terms linear in the context: no published depth series is convex beyond its scatter."""
    knots = np.full((num_models, num_gpus, NUM_KNOTS), np.inf)
    knots[..., 0] = 0.0
    ones = np.ones_like(knots)
    return {"depth_knot": knots, "depth_gpu": ones, "depth_cpu": ones.copy()}


def _loading(models: list[ModelProfile], per_gpu: list[tuple[GpuProfile, HostProfile]]) -> dict[str, Any]:
    gpus = [gpu for gpu, _ in per_gpu]
    per_model = (len(models), 1)
    return {
        "encode_s": _floats([[roofline.encode_s(m, gpu) for gpu in gpus] for m in models]),
        "init_s": _floats([[roofline.init_s(m, gpu) for gpu in gpus] for m in models]),
        "save_s": _floats([gpu.copy_s.value for gpu in gpus]),
        "disk_cap": np.tile(_floats([host.disk_load.value for _, host in per_gpu]), per_model),
        "link_in_cap": np.tile(_floats([gpu.load.value for gpu in gpus]), per_model),
        "kv_in_cap": _floats([gpu.restore.value for gpu in gpus]),
        "kv_out_cap": _floats([gpu.save.value for gpu in gpus]),
    }


def _capacities(gpus: list[GpuProfile], hosts: list[HostProfile], cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "gpu_bytes": _ints([int(gpu.capacity.value - gpu.reserve.value) for gpu in gpus]),
        "host_bytes": _ints([int(host.ram.value) for host in hosts]),
        "link_in_rate": _floats([gpu.link_in.value for gpu in gpus]),
        "link_out_rate": _floats([gpu.link_out.value for gpu in gpus]),
        "disk_rate": _floats([host.disk.value for host in hosts]),
        "operation_share": _floats([gpu.operation_share.value for gpu in gpus]),
        "interference": _floats([host.interference.value for host in hosts]),
        "gpu_host": _ints(cluster.gpu_hosts),
        "stream_min_tokens": _ints([int(gpu.stream_min_tokens.value) for gpu in gpus]),
    }


def _require_fit(tables: CostTables, cluster: ClusterConfig, models: ModelsConfig) -> None:
    fits = fitting_levels(tables, cluster.kv_swap_fraction).any(axis=(1, 2))
    for m in np.flatnonzero(~fits):
        raise ConfigError(
            f"models.names[{m}] '{models.names[m]}' fits on no GPU of the cluster at any offload level: "
            f"{tables.file_bytes[m] / 1e9:.1f} GB of weights; accepted: a smaller model or quantisation, "
            f"more levels, a bigger GPU ({', '.join(cluster.gpus)}) or host ({', '.join(cluster.hosts)})"
        )


def fitting_levels(tables: CostTables, kv_swap_fraction: float, kv_tokens: int = 1) -> NDArray[np.bool_]:
    """Which levels hold the weights, the compute buffer and `kv_tokens` tokens of KV: bool [M, G, K]."""
    fits: NDArray[np.bool_] = tables.most_tokens(kv_swap_fraction) >= kv_tokens
    return fits


def _most_tokens(tables: CostTables, kv_swap_fraction: float) -> IntArray:
    host_bytes = np.floor((1 - kv_swap_fraction) * tables.host_bytes[tables.gpu_host]).astype(np.int64)
    room_on_gpu = tables.gpu_bytes[:, None] - (tables.gpu_weight_bytes + tables.buffer_bytes[:, None])[:, None, :]
    room_on_host = host_bytes[:, None] - tables.cpu_weight_bytes[:, None, :]
    on_gpu = _times_in(room_on_gpu, tables.kv_gpu_bytes[:, None, :])
    return np.minimum(on_gpu, _times_in(room_on_host, tables.kv_cpu_bytes[:, None, :]))


def _times_in(room: IntArray, each: IntArray) -> IntArray:
    """How many of `each` bytes there is room for; -1: not even for none."""
    return np.where(room < 0, -1, np.where(each > 0, room // np.maximum(each, 1), np.iinfo(np.int64).max))


def _ints(values: Any) -> IntArray:
    return np.array(values, dtype=np.int64)


def _floats(values: Any) -> FloatArray:
    return np.array(values, dtype=np.float64)
