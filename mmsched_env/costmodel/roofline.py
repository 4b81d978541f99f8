"""Coefficients of a (model, GPU, host) triple from per-device effective rates and the model's bytes and arithmetic.

Every term is work over a rate, so a pair nobody measured is predicted from the devices that were; see
docs/cost_model.md for the formulas, their reasons and their errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError

from .number import Curve, Number
from .profile import GpuProfile, HostProfile, ModelProfile

UBATCH = 512
"""tokens of a prefill chunk in the engine that was measured"""

REFERENCE_WIDTH = 4096
"""hidden size of the model whose prefill rates the profiles state"""


@dataclass(frozen=True)
class Side:
    """What one offload level puts on one side, GPU or host."""

    launched: int
    """layers that run there (of a mixture of experts: whose attention runs there)"""
    attention: int
    """layers whose attention and KV cache are there"""
    read: float
    """weight bytes that a decode step reads there, head apart"""
    idle: float
    """weight bytes there that it does not read: the experts that the token is not sent to"""
    head: float
    """weight bytes of the output head"""
    flops: float
    """arithmetic of one token, attention scores and head apart"""


def units(model: ModelProfile) -> int:
    """Offload units: the layers, then the output head; of a mixture of experts: the experts of each layer."""
    return model.architecture.layers + (0 if model.architecture.experts else 1)


@lru_cache(maxsize=4096)
def sides(model: ModelProfile, on_gpu: int) -> tuple[Side, Side]:
    """What the GPU and the host have with the first `on_gpu` units on the GPU."""
    return _expert_sides(model, on_gpu) if model.architecture.experts else _layer_sides(model, on_gpu)


def _layer_sides(model: ModelProfile, on_gpu: int) -> tuple[Side, Side]:
    arch = model.architecture
    gpu = min(on_gpu, arch.layers)
    cpu, head_on_gpu = arch.layers - gpu, on_gpu > arch.layers
    return (
        Side(gpu, gpu, gpu * model.layer_bytes, 0.0, head_on_gpu * model.head_bytes, gpu * arch.layer_flops),
        Side(cpu, cpu, cpu * model.layer_bytes, 0.0, (not head_on_gpu) * model.head_bytes, cpu * arch.layer_flops),
    )


def _expert_sides(model: ModelProfile, on_gpu: int) -> tuple[Side, Side]:
    """Only experts leave the GPU (llama.cpp's --n-cpu-moe): attention, router, shared expert, head and KV stay."""
    arch, experts = model.architecture, model.architecture.experts
    assert experts
    cpu = arch.layers - on_gpu
    active, idle = experts.active * model.expert_bytes, (experts.count - experts.active) * model.expert_bytes
    read = arch.layers * model.layer_bytes + on_gpu * active
    flops = arch.layers * arch.layer_flops + on_gpu * arch.expert_flops
    return (
        Side(arch.layers, arch.attention_layers, read, on_gpu * idle, model.head_bytes, flops),
        Side(0, 0, cpu * active, cpu * idle, 0.0, cpu * arch.expert_flops),
    )


def resident_bytes(model: ModelProfile, on_gpu: int) -> tuple[int, int]:
    """Weight bytes (GPU, host RAM) with the first `on_gpu` units on the GPU; the image encoder always is there.

    The input embedding of an untied model is in neither: one row of it is read per token, from the file cache.
    """
    gpu, cpu = sides(model, on_gpu)
    return round(gpu.read + gpu.idle + gpu.head + model.encoder_bytes), round(cpu.read + cpu.idle + cpu.head)


def kv_bytes(model: ModelProfile, on_gpu: int) -> tuple[int, int]:
    """KV bytes per context token (GPU, host RAM): each layer's cache lives beside its attention."""
    gpu, cpu = sides(model, on_gpu)
    return gpu.attention * model.architecture.kv_layer_bytes, cpu.attention * model.architecture.kv_layer_bytes


def buffer_bytes(model: ModelProfile) -> int:
    """Compute buffer: F32 logits and one activation for each token of a chunk (assumed, from llama.cpp's graph)."""
    return UBATCH * 4 * (model.architecture.vocab + model.architecture.hidden)


def decode_costs(model: ModelProfile, gpu: GpuProfile, host: HostProfile, on_gpu: int) -> dict[str, float]:
    """Terms of one decode iteration in seconds, named as in CostTables."""
    on_gpu_side, on_cpu_side = sides(model, on_gpu)
    gpu_kv, cpu_kv = kv_bytes(model, on_gpu)
    read = _rate(gpu.read, model, gpu.name)
    return {
        "iter_const": _iteration_constant(model, gpu, on_gpu),
        "gpu_base": on_gpu_side.read / read,
        "gpu_head": on_gpu_side.head / read,
        "gpu_kv": gpu_kv / gpu.kv_read.value,
        "cpu_base": on_cpu_side.read / host.read.value
        + on_cpu_side.launched * _linear_share(model) * host.linear_layer_s.value,
        "cpu_head": on_cpu_side.head / host.read.value,
        "cpu_kv": cpu_kv / host.kv_read.value,
    }


def prefill_costs(model: ModelProfile, gpu: GpuProfile, host: HostProfile, on_gpu: int) -> dict[str, float]:
    """Terms of one prefill chunk in seconds, named as in CostTables.

    A whole chunk reaches every expert, so that those a single token leaves idle are read once per chunk too: spread
    over its tokens, because few tokens reach few experts.
    """
    arch = model.architecture
    here, there = sides(model, on_gpu)
    compute = _rate(gpu.compute, model, gpu.name) * (arch.hidden / REFERENCE_WIDTH) ** gpu.width_exponent.value
    compute *= gpu.expert_compute.value if arch.experts else 1.0
    pair_s = arch.attention_flops / gpu.attention.value
    # Attention of a CPU layer runs on the GPU too; its KV cache crosses the link once per chunk.
    kv_copy_s = arch.kv_layer_bytes / (gpu.stream.value * UBATCH)
    chunk_read = UBATCH * _rate(gpu.read, model, gpu.name)
    return {
        "prefill_gpu": here.flops / compute + here.idle / chunk_read,
        "prefill_gpu_stream": (here.flops + there.flops) / compute + (here.idle + there.idle) / chunk_read,
        "prefill_cpu": _prefill_cpu_s(model, host, there),
        "stream_s": (there.read + there.idle) / gpu.stream.value,
        "gpu_attn": here.attention * pair_s,
        "cpu_attn": there.attention * (pair_s + kv_copy_s),
    }


def _prefill_cpu_s(model: ModelProfile, host: HostProfile, side: Side) -> float:
    """Seconds per token computed on the CPU. Few tokens share no experts: each reads its own."""
    arithmetic = side.flops / host.compute.value
    return max(arithmetic, side.read / host.read.value) if model.architecture.experts else arithmetic


def encode_s(model: ModelProfile, gpu: GpuProfile) -> float:
    """Seconds per image token in the encoder, F16 arithmetic at the GPU's prefill rate; 0 for a text model."""
    if model.vision is None:
        return 0.0
    return model.vision.token_flops(model.architecture.hidden) / gpu.compute["f16"].value


def unload_s(model: ModelProfile, gpu: GpuProfile, on_gpu: int) -> float:
    """Seconds to free an instance."""
    return gpu.unload_s.value + resident_bytes(model, on_gpu)[0] / gpu.unload.value


def init_s(model: ModelProfile, gpu: GpuProfile) -> float:
    """Seconds before any byte moves: engine start, then the tokenizer, which scales with the vocabulary."""
    return gpu.start_s.value + gpu.vocab_s.value * model.architecture.vocab


def batch_table(curve: Curve, max_batch: int) -> NDArray[np.float64]:
    """Relative step time at batch 1..max_batch, shape [max_batch]: linear between knots, then the last slope."""
    knots = np.array(curve.value)
    batch = np.arange(1, max_batch + 1, dtype=np.float64)
    slope = (knots[-1, 1] - knots[-2, 1]) / (knots[-1, 0] - knots[-2, 0])
    beyond = np.maximum(batch - knots[-1, 0], 0.0) * slope
    table: NDArray[np.float64] = np.interp(batch, knots[:, 0], knots[:, 1]) + beyond
    return table


def level_units(level: float, num_units: int) -> int:
    """Units on the GPU at an offload level, halves rounded up."""
    return math.floor(level * num_units + 0.5)


def _iteration_constant(model: ModelProfile, gpu: GpuProfile, on_gpu: int) -> float:
    """Launches, and entering the CPU: once for all layers there, but for each layer whose experts alone are there."""
    launches = sides(model, on_gpu)[0].launched * launch_s(model, gpu)
    if model.architecture.experts:
        return launches + (units(model) - on_gpu) * gpu.expert_entry_s.value
    if on_gpu == 0:
        return gpu.cpu_only_s.value
    return launches + (gpu.hybrid_s.value if on_gpu < units(model) else 0.0)


def launch_s(model: ModelProfile, gpu: GpuProfile) -> float:
    """Seconds of launches of a layer of the model, mean over its kinds of layers."""
    linear = _linear_share(model)
    kinds = 1 - linear + linear * gpu.linear_launch.value
    return gpu.layer_s.value * (kinds + (gpu.expert_launch.value if model.architecture.experts else 0.0))


def _linear_share(model: ModelProfile) -> float:
    """Share of the layers with linear attention."""
    arch = model.architecture
    return arch.linear.layers / arch.layers if arch.linear else 0.0


def _rate(rates: dict[str, Number], model: ModelProfile, gpu: str) -> float:
    if model.quant not in rates:
        accepted = ", ".join(rates)
        raise ConfigError(f"GPU profile '{gpu}' has no rate for {model.name}'s quantisation; accepted: {accepted}")
    return rates[model.quant].value
