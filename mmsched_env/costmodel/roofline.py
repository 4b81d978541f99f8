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

    @property
    def linear(self) -> int:
        """Layers with linear attention."""
        return self.launched - self.attention


def units(model: ModelProfile) -> int:
    """Offload units: the layers, then the output head; of a mixture of experts: the experts of each layer."""
    return model.architecture.layers + (0 if model.architecture.experts else 1)


@lru_cache(maxsize=4096)
def sides(model: ModelProfile, on_gpu: int) -> tuple[Side, Side]:
    """What the GPU and the host have with the first `on_gpu` units on the GPU."""
    return _expert_sides(model, on_gpu) if model.architecture.experts else _layer_sides(model, on_gpu)


def _layer_sides(model: ModelProfile, on_gpu: int) -> tuple[Side, Side]:
    """The last layers go to the GPU first, as in llama.cpp."""
    layers, head_on_gpu = model.architecture.layers, on_gpu > model.architecture.layers
    cpu = max(layers - on_gpu, 0)
    return layer_side(model, cpu, layers, head_on_gpu), layer_side(model, 0, cpu, not head_on_gpu)


def layer_side(model: ModelProfile, first: int, end: int, head: bool) -> Side:
    """Layers `first` to `end` - 1, and the head or not."""
    arch, count = model.architecture, end - first
    attention = arch.attending(end) - arch.attending(first)
    return Side(count, attention, count * model.layer_bytes, 0.0, head * model.head_bytes, count * arch.layer_flops)


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
        "cpu_base": on_cpu_side.read / host.read.value + on_cpu_side.linear * host.linear_layer_s.value,
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


def experts_reached(model: ModelProfile, batch: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Distinct experts of a layer that `batch` tokens are sent to, over those of one token, shape of `batch`.

    Each token is sent to `active` of the experts in use, at random. In use are fewer than there are (`reach` < 1): routing
    prefers some.
    """
    experts = model.architecture.experts
    assert experts
    in_use = (experts.count / experts.active) ** reach
    reached: NDArray[np.float64] = in_use * (1 - (1 - 1 / in_use) ** batch)
    return reached


def grown(model: ModelProfile, dense: Curve, max_batch: int, reach: float) -> NDArray[np.float64]:
    """Growth of what a step reads, head apart, at batch 1..max_batch with all of the model on one side.

    Of a mixture of experts: more requests reach more experts, each of which works on its part of the batch.
    """
    table = batch_table(dense, max_batch)
    share = expert_share(model)
    return (1 - share) * table + share * _experts_grown(model, table, reach) if share else table


def _experts_grown(model: ModelProfile, table: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    batch = np.arange(1, len(table) + 1, dtype=np.float64)
    reached = experts_reached(model, batch, reach)
    growth: NDArray[np.float64] = reached * np.interp(batch / reached, batch, table)
    return growth


def expert_share(model: ModelProfile) -> float:
    """Share of the experts in what a step of one token reads, head apart; 0: a dense model."""
    experts = model.architecture.experts
    active = model.architecture.layers * experts.active * model.expert_bytes if experts else 0.0
    return active / sides(model, units(model))[0].read


def batch_tables(
    model: ModelProfile, gpu: GpuProfile, host: HostProfile, max_batch: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relative step time at batch 1..max_batch of what is on the GPU and on the CPU, each of shape [max_batch].

    Of a mixture of experts with all of it on the GPU, and with nothing but experts on the CPU. Where some are there, the
    GPU's part grows less than this says; but it is the smaller part.
    """
    reach, on_cpu = gpu.expert_reach.value, batch_table(host.batch, max_batch)
    on_gpu = grown(model, gpu.batch, max_batch, reach)
    if model.architecture.experts:
        on_cpu = _experts_grown(model, on_cpu, reach)
    return on_gpu / on_gpu[0], on_cpu / on_cpu[0]  # rounding: the first is 1 exactly


def level_units(level: float, num_units: int) -> int:
    """Units on the GPU at an offload level, halves rounded up."""
    return math.floor(level * num_units + 0.5)


def _iteration_constant(model: ModelProfile, gpu: GpuProfile, on_gpu: int) -> float:
    """Launches, and entering the CPU: once for all layers there, but for each layer whose experts alone are there."""
    launches = launch_s(sides(model, on_gpu)[0], model, gpu)
    if model.architecture.experts:
        return launches + (units(model) - on_gpu) * gpu.expert_entry_s.value
    if on_gpu == 0:
        return gpu.cpu_only_s.value
    return launches + (gpu.hybrid_s.value if on_gpu < units(model) else 0.0)


def launch_s(side: Side, model: ModelProfile, gpu: GpuProfile) -> float:
    """Seconds of launches of the layers on the GPU's side."""
    layers = side.attention + side.linear * gpu.linear_launch.value
    experts = side.launched * gpu.expert_launch.value if model.architecture.experts else 0.0
    return gpu.layer_s.value * (layers + experts)


def _rate(rates: dict[str, Number], model: ModelProfile, gpu: str) -> float:
    if model.quant not in rates:
        accepted = ", ".join(rates)
        raise ConfigError(f"GPU profile '{gpu}' has no rate for {model.name}'s quantisation; accepted: {accepted}")
    return rates[model.quant].value
