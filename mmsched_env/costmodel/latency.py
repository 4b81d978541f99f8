"""Latency of a request that has the machine to itself: the yardstick of SLO targets and slowdowns."""

from __future__ import annotations

import numpy as np

from .tables import CostTables, FloatArray, IntArray


def unloaded_latency(
    tables: CostTables, model: IntArray, prompt: IntArray, image: IntArray, output: IntArray, ubatch: int
) -> tuple[FloatArray, FloatArray]:
    """Time to first token and to last token, each [R] seconds, of each request alone.

    Its model is already loaded, on each GPU at the highest level that holds weights, buffer and the request's KV, and
    the GPU with the earliest last token counts. Batch 1, prefill in chunks of `ubatch` tokens, image tokens encoded
    first and then part of the prompt; the prefill gives token 1, each of the other ``output - 1`` one decode iteration.
    A request too long for every GPU is timed at the highest level that holds the weights.

    Parameters
    ----------
    model, prompt, image, output : int arrays [R]
        Model index, prompt tokens, image tokens, output tokens (>= 1).
    """
    model, prompt, image, output = (np.asarray(x, dtype=np.int64) for x in (model, prompt, image, output))
    gpus = np.arange(tables.gpu_bytes.size)[None, :]
    level = _highest_level(tables, model, prompt + image + output)
    pick = (model[:, None], gpus, level)
    context = (prompt + image)[:, None].astype(np.float64)
    encode = image[:, None] * tables.encode_s[model]
    ttft = encode + _prefill(tables, pick, context, ubatch)
    steps = np.maximum(output - 1, 0)[:, None].astype(np.float64)
    e2e = ttft + _decode(tables, pick, context, steps)
    e2e = np.where(tables.most_tokens(0.0)[pick] >= 0, e2e, np.inf)
    best = e2e.argmin(axis=1)[:, None]
    first: FloatArray = np.take_along_axis(ttft, best, axis=1)[:, 0]
    last: FloatArray = np.take_along_axis(e2e, best, axis=1)[:, 0]
    return first, last


def _prefill(
    tables: CostTables, pick: tuple[IntArray, IntArray, IntArray], tokens: FloatArray, ubatch: int
) -> FloatArray:
    """Seconds [R, G] of all chunks together: whole ones, then a shorter one. Over the chunks p x + p^2 / 2 adds up to
    tokens^2 / 2, however they are cut."""
    whole, rest = np.floor_divide(tokens, ubatch), np.mod(tokens, ubatch)
    last = (rest > 0).astype(np.float64)
    at_least = tables.stream_min_tokens[pick[1]]
    chunks = whole + last
    streamed = whole * (ubatch >= at_least) + last * (rest >= at_least)
    streamed_tokens = whole * ubatch * (ubatch >= at_least) + rest * (rest >= at_least)
    every = tables.iter_const + tables.gpu_base + tables.gpu_head + tables.cpu_head
    seconds: FloatArray = (
        chunks * every[pick]
        + streamed * tables.stream_s[pick]
        + streamed_tokens * tables.prefill_gpu_stream[pick]
        + (chunks - streamed) * tables.cpu_base[pick]
        + (tokens - streamed_tokens) * (tables.prefill_gpu + tables.prefill_cpu)[pick]
        + (tables.gpu_attn + tables.cpu_attn)[pick] * tokens**2 / 2
    )
    return seconds


def _decode(
    tables: CostTables, pick: tuple[IntArray, IntArray, IntArray], context: FloatArray, steps: FloatArray
) -> FloatArray:
    """Seconds [R, G] of `steps` iterations that attend context + 1, context + 2, ... tokens."""
    step = tables.iter_const + tables.gpu_base + tables.gpu_head + tables.cpu_base + tables.cpu_head
    where = pick[:2]
    seconds: FloatArray = steps * step[pick]
    gpu_before = cpu_before = np.zeros(tables.depth_gpu.shape[:2])
    for d in range(tables.depth_knot.shape[2]):  # a change of slope counts for the context beyond its knot
        knot, gpu_slope, cpu_slope = (x[..., d] for x in (tables.depth_knot, tables.depth_gpu, tables.depth_cpu))
        if np.isinf(knot).all():
            break
        beyond = _sum_beyond(context + 1, steps, knot[where])
        seconds = seconds + tables.gpu_kv[pick] * (gpu_slope - gpu_before)[where] * beyond
        seconds = seconds + tables.cpu_kv[pick] * (cpu_slope - cpu_before)[where] * beyond
        gpu_before, cpu_before = gpu_slope, cpu_slope
    return seconds


def _sum_beyond(start: FloatArray, steps: FloatArray, knot: FloatArray) -> FloatArray:
    """Sum of max(0, x - knot) over x = start, start + 1, ... (`steps` values)."""
    below = np.clip(np.ceil(knot - start), 0, steps)
    count = steps - below
    first = np.where(count > 0, start + below - np.where(count > 0, knot, 0), 0)
    total: FloatArray = count * first + count * (count - 1) / 2
    return total


def _highest_level(tables: CostTables, model: IntArray, tokens: IntArray) -> IntArray:
    """Highest level [R, G] that holds weights, buffer and `tokens` of KV; else the highest that holds the weights."""
    most = tables.most_tokens(0.0)
    fits = most[model] >= tokens[:, None, None]
    usable = np.where(fits.any(axis=2, keepdims=True), fits, (most >= 0)[model])
    highest: IntArray = np.where(usable, np.arange(most.shape[2]), 0).max(axis=2)
    return highest
