"""Coefficients of a (model, GPU, host) triple from per-device effective rates and the model's bytes and arithmetic.

Every term is work over a rate, so a pair nobody measured is predicted from the devices that were; see
docs/cost_model.md for the formulas, their reasons and their errors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError

from .number import Curve, Number
from .profile import GpuProfile, HostProfile, ModelProfile

UBATCH = 512
"""tokens of a prefill chunk in the engine that was measured"""

REFERENCE_WIDTH = 4096
"""hidden size of the model whose prefill rates the profiles state"""


def units(model: ModelProfile) -> int:
    """Offload units: the layers, then the output head."""
    return model.architecture.layers + 1


def resident_bytes(model: ModelProfile, on_gpu: int) -> tuple[int, int]:
    """Weight bytes (GPU, host RAM) with the first `on_gpu` units on the GPU; the image encoder always is there.

    The input embedding of an untied model is in neither: one row of it is read per token, from the file cache.
    """
    layers = min(on_gpu, model.architecture.layers)
    head_on_gpu = on_gpu > model.architecture.layers
    gpu = layers * model.layer_bytes + head_on_gpu * model.head_bytes + model.encoder_bytes
    cpu = (model.architecture.layers - layers) * model.layer_bytes + (not head_on_gpu) * model.head_bytes
    return round(gpu), round(cpu)


def kv_bytes(model: ModelProfile, on_gpu: int) -> tuple[int, int]:
    """KV bytes per context token (GPU, host RAM): each layer's cache lives beside its weights."""
    arch = model.architecture
    layers = min(on_gpu, arch.layers)
    return layers * arch.kv_layer_bytes, (arch.layers - layers) * arch.kv_layer_bytes


def buffer_bytes(model: ModelProfile) -> int:
    """Compute buffer: F32 logits and one activation for each token of a chunk (assumed, from llama.cpp's graph)."""
    return UBATCH * 4 * (model.architecture.vocab + model.architecture.hidden)


def decode_costs(model: ModelProfile, gpu: GpuProfile, host: HostProfile, on_gpu: int) -> dict[str, float]:
    """Terms of one decode iteration in seconds, named as in CostTables."""
    arch = model.architecture
    gpu_layers = min(on_gpu, arch.layers)
    cpu_layers = arch.layers - gpu_layers
    head_on_gpu = on_gpu > arch.layers
    gpu_kv, cpu_kv = kv_bytes(model, on_gpu)
    return {
        "iter_const": _iteration_constant(gpu, gpu_layers, on_gpu, units(model)),
        "gpu_base": gpu_layers * model.layer_bytes / _rate(gpu.read, model, gpu.name),
        "gpu_head": head_on_gpu * model.head_bytes / _rate(gpu.read, model, gpu.name),
        "gpu_kv": gpu_kv / gpu.kv_read.value,
        "cpu_base": cpu_layers * model.layer_bytes / host.read.value,
        "cpu_head": (not head_on_gpu) * model.head_bytes / host.read.value,
        "cpu_kv": cpu_kv / host.kv_read.value,
    }


def prefill_costs(model: ModelProfile, gpu: GpuProfile, host: HostProfile, on_gpu: int) -> dict[str, float]:
    """Terms of one prefill chunk in seconds, named as in CostTables."""
    arch = model.architecture
    gpu_layers = min(on_gpu, arch.layers)
    cpu_layers = arch.layers - gpu_layers
    compute = _rate(gpu.compute, model, gpu.name) * (arch.hidden / REFERENCE_WIDTH) ** gpu.width_exponent.value
    pair_s = arch.attention_flops / gpu.attention.value
    # Attention of a CPU layer runs on the GPU too; its KV cache crosses the link once per chunk.
    kv_copy_s = arch.kv_layer_bytes / (gpu.stream.value * UBATCH)
    return {
        "prefill_gpu": gpu_layers * arch.layer_flops / compute,
        "prefill_gpu_stream": arch.layers * arch.layer_flops / compute,
        "prefill_cpu": cpu_layers * arch.layer_flops / host.compute.value,
        "stream_s": cpu_layers * model.layer_bytes / gpu.stream.value,
        "gpu_attn": gpu_layers * pair_s,
        "cpu_attn": cpu_layers * (pair_s + kv_copy_s),
    }


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


def _iteration_constant(gpu: GpuProfile, gpu_layers: int, on_gpu: int, num_units: int) -> float:
    if on_gpu == 0:
        return gpu.cpu_only_s.value
    hybrid = gpu.hybrid_s.value if on_gpu < num_units else 0.0
    return hybrid + gpu_layers * gpu.layer_s.value


def _rate(rates: dict[str, Number], model: ModelProfile, gpu: str) -> float:
    if model.quant not in rates:
        accepted = ", ".join(rates)
        raise ConfigError(f"GPU profile '{gpu}' has no rate for {model.name}'s quantisation; accepted: {accepted}")
    return rates[model.quant].value
