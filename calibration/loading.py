"""What loading and unloading cost, from the few published times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsched_env.costmodel.profile import PROFILES, FitError, load_model

from .names import architecture_of
from .schema import Measurement

RELOAD_SHARE = 0.985
"""of the source paper's preemption time is reloading weights ("more than"); the rest bounds unloading and KV moves"""

REPACKED = ("Q4_0",)
"""quantisations that llama.cpp rearranges for the CPU while loading"""


@dataclass(frozen=True)
class Loads:
    """Loading from host RAM (through one link), from disk, and the tokenizer."""

    vocab_s: tuple[float, float]
    """seconds per vocabulary entry and relative standard error, as all pairs here"""
    start_s: tuple[float, float]
    rate: tuple[float, float]
    unload_s: float
    unload_rate: float
    disk_rate: float
    error: FitError


Work = Callable[[Measurement], dict[str, float]]


def linear_law(rows: Sequence[tuple[dict[str, float], float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients >= 0 of relative least squares, and their relative standard errors (nan: at its bound)."""
    from scipy.optimize import nnls

    names = sorted({name for work, _ in rows for name in work})
    design: NDArray[np.float64] = np.array(
        [[work.get(name, 0.0) / seconds for name in names] for work, seconds in rows]
    )
    scale = np.abs(design).max(axis=0)
    values, norm = nnls(design / scale, np.ones(len(rows)))
    free = values > 0
    covariance = np.linalg.inv((design / scale)[:, free].T @ (design / scale)[:, free])
    deviation = np.full(len(names), np.nan)
    deviation[free] = np.sqrt(np.diag(covariance) * norm**2 / max(len(rows) - free.sum(), 1)) / values[free]
    coefficients = dict(zip(names, (values / scale).tolist(), strict=True))
    return coefficients, dict(zip(names, deviation.tolist(), strict=True))


def seconds(work: dict[str, float], law: dict[str, float]) -> float:
    """Predicted time."""
    return sum(law[name] * amount for name, amount in work.items())


def own_loads(rows: Sequence[Measurement], tier: str, how: str) -> list[tuple[Measurement, dict[str, float]]]:
    """Loads of the nine models measured on one CPU thread, with their work: vocabulary, bytes, repacked bytes."""
    own = [r for r in rows if r.operation == "load" and r.provenance == "measured" and r.tier == tier]
    chosen = [r for r in own if r.note.split(";")[0] == how]
    return [(r, _load_work(r)) for r in chosen]


def _load_work(row: Measurement) -> dict[str, float]:
    assert row.size_bytes
    work = {"vocabulary": float(vocabulary(row)), "bytes": float(row.size_bytes)}
    if row.quant in REPACKED:
        work["repacked"] = float(row.size_bytes)
    return work


def vocabulary(row: Measurement) -> int:
    """Entries of the tokenizer of a row's model."""
    arch = architecture_of(row.model, row.params_b)
    assert arch, row.model
    return load_model(f"{arch}-f16", PROFILES).architecture.vocab


def leave_one_out(rows: Sequence[tuple[Measurement, dict[str, float]]]) -> list[float]:
    """Relative error of each row, predicted from the others."""
    errors = []
    for left in range(len(rows)):
        law, _ = linear_law([(w, r.value) for i, (r, w) in enumerate(rows) if i != left])
        row, work = rows[left]
        errors.append(seconds(work, law | {k: law.get(k, 0.0) for k in work}) / row.value - 1)
    return errors


def fit_loads(rows: Sequence[Measurement]) -> Loads:
    """Every law of loading."""
    warm, warm_spread = linear_law([(w, r.value) for r, w in own_loads(rows, "page_cache", "read")])
    vocab_s = warm["vocabulary"]
    points = _reloads(rows, vocab_s)
    law, spread = linear_law(points)
    left = [
        seconds(w, linear_law([p for p in points if p is not point])[0]) / s - 1
        for point in points
        for w, s in (point,)
    ]
    inside = [seconds(w, law) / s - 1 for w, s in points]
    error = FitError(
        len(points),
        float(np.median(np.abs(inside))),
        float(np.median(np.abs(left))),
        float(np.max(np.abs(left))),
        "one load",
    )
    ends = [(w["byte"], (1 - RELOAD_SHARE) * t) for w, t in _preemptions(rows)]
    slope, fixed = np.polyfit([b for b, _ in ends], [t for _, t in ends], 1)
    return Loads(
        vocab_s=(vocab_s, warm_spread["vocabulary"]),
        start_s=(law["const"], spread["const"]),
        rate=(1 / law["byte"], spread["byte"]),
        unload_s=float(fixed),
        unload_rate=float(1 / slope),
        disk_rate=_disk(rows, law["byte"]),
        error=error,
    )


def _preemptions(rows: Sequence[Measurement]) -> list[tuple[dict[str, float], float]]:
    """The paper's cheapest and dearest preemption, taken to be its smallest and largest model: the source gives the two
    ends of a range, not which model they belong to."""
    times = sorted(r.value for r in rows if r.operation == "preempt" and "2605.19593" in r.source)
    models = ("qwen2.5-3b-f16", "qwen2.5-14b-f16")
    pairs = zip(models, (times[0], times[-1]), strict=True)
    return [({"const": 1.0, "byte": float(load_model(m, PROFILES).file_bytes)}, t) for m, t in pairs]


def _reloads(rows: Sequence[Measurement], vocab_s: float) -> list[tuple[dict[str, float], float]]:
    """Loads from host RAM, tokenizer apart: the paper's two and one by Ollama on an RTX 4090."""
    tokenizer = vocab_s * load_model("qwen2.5-3b-f16", PROFILES).architecture.vocab
    points = [(w, RELOAD_SHARE * t - tokenizer) for w, t in _preemptions(rows)]
    ollama = next(r for r in rows if r.operation == "load" and r.engine == "Ollama" and r.size_bytes)
    return [*points, ({"const": 1.0, "byte": float(ollama.size_bytes or 0)}, ollama.value - tokenizer)]


def _disk(rows: Sequence[Measurement], per_byte: float) -> float:
    """Bytes/s of one cold load from disk: the slope over model size, less the copy to the GPU that follows."""
    params = {"Llama-2-13B": 13.02e9, "OPT-30B": 29.97e9, "LLaMA-2-70B": 68.98e9}
    slow = ("fastsafetensors",)
    chosen = [
        r
        for r in rows
        if r.model in params and r.operation in ("start", "load") and not any(s in r.engine for s in slow)
    ]
    law, _ = linear_law([({"const": 1.0, "byte": 2 * params[r.model]}, r.value) for r in chosen])
    return 1 / (law["byte"] - per_byte)
