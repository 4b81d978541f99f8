"""What to measure: points and presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from mmsched_env.errors import unknown_name

SERVING = frozenset({"prefill", "decode", "save", "restore", "footprint", "unload"})
"""operations of a loaded model"""

BESIDE_LOAD = ("decode_beside_load", "load_beside_decode")
"""the first word is timed, the last goes on beside it on the same device"""

SHARED = (*BESIDE_LOAD, "decode_beside_decode")

BESIDE_DEVICE = ("decode_beside_device", "prefill_beside_device")
"""and while another device of the machine decodes"""

BESIDE = frozenset({*SHARED, *BESIDE_DEVICE})

ALL = -1
"""`n_gpu_layers` of a model wholly on the device"""


@dataclass(frozen=True, order=True)
class Point:
    """One figure to measure. Fields that do not belong to its operation keep their defaults."""

    model: str
    operation: str
    """load, first_token (after another model), prefill, decode, save, restore, unload, footprint, copy_h2d, copy_d2h, or one of BESIDE"""
    tokens: int = 0
    """prompt (prefill), cache (save, restore), generated (decode)"""
    depth: int = 0
    batch: int = 1
    tier: str = ""
    """load: disk (cold) or page_cache (warm); save, restore: ram"""
    mode: str = ""
    """load: read, mmap or served; copies: pinned or pageable"""
    n_gpu_layers: int = ALL

    def __str__(self) -> str:
        parts = [self.model, self.operation, self.tier, self.mode]
        parts += [f"{name}={value}" for name in ("tokens", "depth") if (value := getattr(self, name))]
        parts += [f"batch={self.batch}"] if self.batch > 1 else []
        parts += [f"ngl={self.n_gpu_layers}"] if self.n_gpu_layers != ALL else []
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Preset:
    """Grid and number of rounds."""

    prompts: tuple[int, ...]
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    batch_depths: tuple[int, ...]
    """the batches are measured at each of these depths"""
    caches: tuple[int, ...]
    """tokens of a saved KV cache"""
    steps: int
    """tokens of one decode sample"""
    rounds: int
    """samples of every point; a round of loads alone, thrown away, comes before them"""
    shares: tuple[float, ...] = (1.0,)
    """of the layers on the device, where there is one beside the CPU"""
    sizes: tuple[int, ...] = ()
    """bytes of the copies between host and device, where there is one"""


MIB = 1 << 20

PRESETS = {
    "tiny": Preset((16, 64), (0, 32), (1, 2), (0,), (16, 64), 4, 2, sizes=(MIB, 4 * MIB)),
    "quick": Preset(
        (32, 128, 384), (0, 256, 768), (1, 2, 4), (0, 256), (128, 384), 24, 3, (1.0, 0.5), (MIB, 16 * MIB, 256 * MIB)
    ),
    "offload": Preset((64,), (0, 256), (1,), (0,), (64,), 24, 3, (1.0, 0.75, 0.5, 0.25, 0.0)),
    "gpu": Preset(
        (64, 512, 2048),
        (0, 1024, 3072),
        (1, 2, 4, 8, 16),
        (0, 1024),
        (512, 2048),
        8,
        3,
        (1.0, 0.75, 0.5, 0.25, 0.0),
        (MIB, 16 * MIB, 256 * MIB),
    ),
    "full": Preset(
        (32, 64, 128, 256, 512, 1024),
        (0, 128, 512, 1024, 2048, 4096),
        (1, 2, 3, 4, 8),
        (0, 256, 1024),
        (128, 512, 2048),
        32,
        5,
        (1.0, 0.75, 0.5, 0.25, 0.0),
        (64 << 10, MIB, 16 * MIB, 256 * MIB, 1024 * MIB),
    ),
}


def preset_of(name: str, seats: int, context: int) -> Preset:
    """What of a preset `seats` requests of `context` tokens have room for. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    whole = PRESETS[name]
    longest = context - whole.steps - max(whole.batches) - 1

    def fitting(lengths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n for n in lengths if n <= longest) or (min(lengths),)

    return dataclasses.replace(
        whole,
        prompts=fitting(whole.prompts),
        depths=fitting(whole.depths),
        batches=tuple(n for n in whole.batches if n <= seats),
        batch_depths=fitting(whole.batch_depths),
        caches=fitting(whole.caches),
    )


def serving_points(model: str, preset: Preset, n_gpu_layers: int = ALL) -> Iterator[Point]:
    """What is measured on a loaded model."""
    if n_gpu_layers != ALL:
        yield from _offloaded_points(model, preset, n_gpu_layers)
        return
    for tokens in preset.prompts:
        yield Point(model, "prefill", tokens=tokens, n_gpu_layers=n_gpu_layers)
    pairs = {(depth, 1) for depth in preset.depths}
    pairs |= {(depth, batch) for depth in preset.batch_depths for batch in preset.batches}
    for depth, batch in sorted(pairs):
        yield Point(model, "decode", tokens=preset.steps, depth=depth, batch=batch, n_gpu_layers=n_gpu_layers)
    for tokens in preset.caches:
        for operation in ("save", "restore"):
            yield Point(model, operation, tokens=tokens, tier="ram", n_gpu_layers=n_gpu_layers)
    yield Point(model, "footprint", n_gpu_layers=n_gpu_layers)
    yield from (beside(model, preset, operation) for operation in (*SHARED, *BESIDE_DEVICE))


def _offloaded_points(model: str, preset: Preset, n_gpu_layers: int) -> Iterator[Point]:
    """With layers on the host a step takes many times as long: what the host's laws need, and no more."""
    for depth, batch in sorted({(0, 1), (max(preset.depths), 1), (0, preset.batches[-1])}):
        yield Point(model, "decode", tokens=preset.steps, depth=depth, batch=batch, n_gpu_layers=n_gpu_layers)
    yield Point(model, "prefill", tokens=min(preset.prompts), n_gpu_layers=n_gpu_layers)
    yield Point(model, "footprint", n_gpu_layers=n_gpu_layers)


def beside(model: str, preset: Preset, operation: str) -> Point:
    """The point of an operation of BESIDE: `alone` has the same settings."""
    return dataclasses.replace(alone(model, preset, operation), operation=operation)


def alone(model: str, preset: Preset, operation: str) -> Point:
    """What it is compared with."""
    what = operation.split("_")[0]
    if what == "load":
        return Point(model, what, tier="page_cache", mode="read")
    return Point(model, what, tokens=preset.steps if what == "decode" else max(preset.prompts))
