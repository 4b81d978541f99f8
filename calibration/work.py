"""A measurement of decode or prefill -> the work it timed: what ran where, in bytes, arithmetic and launches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.profile import ModelProfile
from mmsched_env.costmodel.roofline import Side

from .names import Spec, architecture_of, gpu_of, model_of
from .schema import CPU_ONLY, Measurement

UNNAMED_TOKENS = 128
"""generated tokens where a source does not say (llama-bench's default)"""

GRAPHS = "2024-06"
"""from then on llama.cpp replays recorded launches on CUDA GPUs (merged in May 2024)"""


class Unusable(Exception):
    """A measurement the laws say nothing about, and why."""


HEAD_FIRST = "2025-12"
"""from then on llama.cpp counts the output head as the first layer on the GPU, before it was the last
(https://github.com/ggml-org/llama.cpp/pull/18148); an undated run is taken to be recent: the GPU memory that one sweep
(S05) states for each step is right only so"""

OLD_BUILD = 7400
"""build number of that change, roughly"""

NO_KV_OFFLOAD = "kv-in-host-ram"
"""series run with llama.cpp's --no-kv-offload"""

EXTRA_UNITS = "3 extra offload units"
"""llama.cpp of 2023: the two halves of the KV cache are the last units to go to the GPU, after the head; until then all of
it is in host RAM"""


@dataclass(frozen=True)
class Work:
    """What one measured iteration (decode) or prompt (prefill) did."""

    row: Measurement
    model: ModelProfile
    gpu: str | None
    """profile name; None: no GPU, or one without data sheet"""
    box: str
    """machine: GPU and host together, one for each series with layers on the CPU"""
    seconds: float
    """of one decode step, of the whole prompt"""
    tokens: int
    context: float
    """tokens in the cache of the average decode step"""
    here: Side
    there: Side
    """what is on the GPU and what on the CPU"""
    cpu_entries: int
    """times that an iteration goes from GPU to CPU and back"""
    eager: bool
    """launches cost their full price"""
    kv_in_ram: bool
    """layers on the GPU keep their cache in host RAM, where the CPU computes their attention"""

    @property
    def quant(self) -> str:
        return self.model.quant

    @property
    def resident(self) -> bool:
        """Wholly on GPUs."""
        return self.there.read + self.there.head == 0 and not self.kv_in_ram

    @property
    def all_cpu(self) -> bool:
        return self.here.read + self.here.head == 0


def work(row: Measurement, specs: dict[str, Spec], any_batch: bool = False) -> Work:
    """Work of a decode or prefill row of one sequence (`any_batch`: of each of a batch).

    Raises
    ------
    Unusable
        Another operation, a batch, or a model or quantisation the catalogue does not know.
    """
    if row.operation not in ("decode", "prefill"):
        raise Unusable(f"{row.operation}: not a rate of tokens")
    if (row.batch or 1) > 1 and not any_batch:
        raise Unusable("a batch: only its step relative to one sequence is fitted")
    if row.operation == "prefill" and row.tokens is None:
        raise Unusable("length of the prompt not stated")
    if row.series == NO_KV_OFFLOAD and row.operation == "prefill":
        raise Unusable("KV cache in host RAM")
    if architecture_of(row.model, row.params_b) is None:
        raise Unusable(f"model {row.model} is not in the catalogue")
    model = model_of(row.model, row.quant, row.params_b)
    if model is None:
        raise Unusable(f"no recipe for quantisation {row.quant or '(not stated)'}")
    here, there, entries = _placed(row, model)
    tokens = row.tokens or UNNAMED_TOKENS
    depth = row.depth or 0
    return Work(
        row=row,
        model=model,
        gpu=None if row.gpu == CPU_ONLY else gpu_of(row, specs),
        box=_box(row),
        seconds=1 / row.value if row.operation == "decode" else tokens / row.value,
        tokens=tokens,
        context=depth + (tokens + 1) / 2,
        here=here,
        there=there,
        cpu_entries=entries,
        eager="CUDA" in row.engine and bool(row.date) and row.date < GRAPHS,
        kv_in_ram=_kv_in_ram(row, model.architecture.layers),
    )


def _box(row: Measurement) -> str:
    """Machine and build of a row: the depths of a sweep (S21, S21d) ran on one."""
    return f"{row.series.rstrip('d') or row.host or row.source} {row.gpu}" if row.gpu != CPU_ONLY else row.host


def _placed(row: Measurement, model: ModelProfile) -> tuple[Side, Side, int]:
    """Sides of a row, and how often its iteration enters the CPU."""
    every = roofline.units(model)
    if model.architecture.experts:
        return _experts(row, model, every)
    layers, head = _layers(row, model.architecture.layers)
    cpu = model.architecture.layers - layers
    here = roofline.layer_side(model, cpu, model.architecture.layers, head)
    there = roofline.layer_side(model, 0, cpu, not head)
    mixed = layers + head > 0 and layers + head < every
    return here, there, int(mixed)


def _experts(row: Measurement, model: ModelProfile, every: int) -> tuple[Side, Side, int]:
    layers = row.n_gpu_layers
    if row.gpu == CPU_ONLY or (layers is not None and 0 <= layers < model.architecture.layers):
        raise Unusable("whole layers of a mixture of experts on the CPU: only its experts are modelled")
    cpu = min(row.n_cpu_moe or 0, every)
    here, there = roofline.sides(model, every - cpu)
    return here, there, cpu


def _layers(row: Measurement, layers: int) -> tuple[int, bool]:
    """Layers on the GPU, and whether the head is there."""
    if row.gpu == CPU_ONLY:
        return 0, False
    stated = row.n_gpu_layers
    if stated is None or stated < 0 or stated > layers + 2:
        return layers, True  # all, in every build
    if EXTRA_UNITS in row.note:
        if stated == layers + 2:
            raise Unusable("one half of the KV cache in host RAM, the other on the GPU")
        if stated == layers + 1 and row.operation == "prefill":
            raise Unusable("KV cache in host RAM")
        return min(stated, layers), stated > layers
    if head_first(row):
        return min(max(stated - 1, 0), layers), stated > 0
    return min(stated, layers), stated > layers


def _kv_in_ram(row: Measurement, layers: int) -> bool:
    moved_last = EXTRA_UNITS in row.note and 0 < (row.n_gpu_layers or 0) < layers + 3
    return row.series == NO_KV_OFFLOAD or moved_last


def head_first(row: Measurement) -> bool:
    """Whether the engine puts the head on the GPU before any layer."""
    build = re.fullmatch(r"b(\d+)", row.engine_version)
    old = (row.date and row.date < HEAD_FIRST) or (build and int(build[1]) < OLD_BUILD)
    return row.engine.startswith("llama.cpp") and not old
