"""What loading and unloading cost, from the few published times."""

from __future__ import annotations

import numpy as np

from mmsched_env.costmodel.profile import PROFILES, FitError, load_model

from . import laws
from .measurements import Row, architecture, first, number

RELOAD_SHARE = 0.985
"""of the source paper's preemption time is reloading weights ("more than"); the rest bounds unloading and KV moves"""


def tokenizer(loads: list[Row]) -> float:
    """Seconds per vocabulary entry: warm memory-mapped loads copy nothing, so that the tokenizer is what is left."""
    rows = [r for r in loads if r["gpu"] == "none (CPU)"]
    return float(np.median([number(r, "seconds") / architecture(r["model"]).vocab for r in rows]))


def _preemptions(loads: list[Row]) -> list[tuple[float, float]]:
    """(weight bytes, seconds) of the paper's cheapest and dearest preemption, taken to be its smallest and largest
    model: the source gives the two ends of a range, not which model they belong to."""
    ends = {"lowest": "qwen2.5-3b-f16", "highest": "qwen2.5-14b-f16"}
    rows = [(m, first((r for r in loads if end in r["operation"]), f"{end} preemption")) for end, m in ends.items()]
    return [(float(load_model(m, PROFILES).file_bytes), number(row, "seconds")) for m, row in rows]


def load(loads: list[Row], vocab_s: float) -> tuple[tuple[float, float], FitError]:
    """Fixed seconds and bytes/s of a load from host RAM, tokenizer apart."""
    tokenizer = vocab_s * architecture("Qwen2.5-3B").vocab
    points = [(size, RELOAD_SHARE * s - tokenizer) for size, s in _preemptions(loads)]
    ollama = first((r for r in loads if r["engine"] == "Ollama"), "a load by Ollama")
    points.append((number(ollama, "size_gb") * 1e9, number(ollama, "seconds") - tokenizer))

    def work(point: tuple[float, float]) -> tuple[dict[str, float], float]:
        return {"const": 1.0, "byte": point[0]}, point[1]

    fit = laws.fit_linear([work(p) for p in points])
    left = laws.errors_left_out(points, work, lambda p: p)
    error = laws.fit_error(points, work, fit, left, "one load")
    return (fit.coefficients["const"], 1 / fit.coefficients["byte"]), error


def unload(loads: list[Row]) -> tuple[float, float]:
    """Upper bound: all of the paper's preemption time that is not reload."""
    points = _preemptions(loads)
    slope, fixed = laws.line([size for size, _ in points], [(1 - RELOAD_SHARE) * s for _, s in points])
    return fixed, 1 / slope


def disk(loads: list[Row], load_rate: float) -> float:
    """Bytes/s of one cold load from disk: the slope over model size, less the copy to the GPU that follows."""
    params = {"Llama-2-13B": 13.02e9, "OPT-30B": 29.97e9, "LLaMA-2-70B": 68.98e9}
    rows = [r for r in loads if r["model"] in params]
    work = [({"const": 1.0, "byte": 2 * params[r["model"]]}, number(r, "seconds")) for r in rows]
    per_byte = laws.fit_linear(work).coefficients["byte"] - 1 / load_rate
    return 1 / per_byte
