"""R16: seconds of one iteration, in a constant, a GPU and a CPU part."""

from __future__ import annotations

from typing import Any, NamedTuple


class Parts(NamedTuple):
    constant: float
    gpu: float
    cpu: float

    def plus(self, gpu: float, cpu: float) -> Parts:
        return Parts(self.constant, self.gpu + gpu, self.cpu + cpu)

    def seconds(self, share_gpu: float, share_cpu: float) -> float:
        return self.constant + share_gpu * self.gpu + share_cpu * self.cpu


def depth(knots: list[float], slopes: list[float], x: float) -> float:
    """F(x): grows from F(0) = 0 with the slope slopes[d] between knots[d] and knots[d + 1]."""
    total = 0.0
    for d, (knot, slope) in enumerate(zip(knots, slopes, strict=True)):
        if knot >= x:
            break
        following = knots[d + 1] if d + 1 < len(knots) else float("inf")
        total += slope * (min(x, following) - knot)
    return total


def attention(t: Any, m: int, g: int, k: int, batch: int, context: int) -> tuple[float, float]:
    """GPU and CPU seconds of reading the KV of `batch` decoding requests, `context` tokens in all."""
    if batch == 0:
        return 0.0, 0.0
    knots = t.depth_knot[m][g]
    gpu = t.gpu_kv[m][g][k] * batch * depth(knots, t.depth_gpu[m][g], context / batch)
    cpu = t.cpu_kv[m][g][k] * batch * depth(knots, t.depth_cpu[m][g], context / batch)
    return gpu, cpu


def decode_parts(t: Any, m: int, g: int, k: int, batch: int, context: int) -> Parts:
    gpu = t.gpu_base[m][g][k] * t.batch_gpu[m][g][batch - 1] + t.gpu_head[m][g][k]
    cpu = t.cpu_base[m][g][k] * t.batch_cpu[m][g][batch - 1] + t.cpu_head[m][g][k]
    return Parts(t.iter_const[m][g][k], gpu, cpu).plus(*attention(t, m, g, k, batch, context))


def chunk_parts(t: Any, m: int, g: int, k: int, tokens: int, at_depth: int) -> Parts:
    a = tokens * at_depth + tokens**2 / 2
    gpu = t.gpu_base[m][g][k] + t.gpu_head[m][g][k] + t.gpu_attn[m][g][k] * a
    cpu = t.cpu_head[m][g][k] + t.cpu_attn[m][g][k] * a
    streamed = tokens >= t.stream_min_tokens[g] and t.units_on_gpu[m][k] < t.num_units[m]
    if streamed:
        constant = t.iter_const[m][g][k] + t.stream_s[m][g][k]
        return Parts(constant, gpu + tokens * t.prefill_gpu_stream[m][g][k], cpu)
    cpu += t.cpu_base[m][g][k] + tokens * t.prefill_cpu[m][g][k]
    return Parts(t.iter_const[m][g][k], gpu + tokens * t.prefill_gpu[m][g][k], cpu)


def encoder_parts(t: Any, m: int, g: int, image: int) -> Parts:
    return Parts(0.0, image * t.encode_s[m][g], 0.0)


def prefill_alone_s(t: Any, m: int, g: int, k: int, tokens: int, ubatch: int) -> float:
    """R23. Reading: chunks of R16 with shares of 1, without the image encoder."""
    total = 0.0
    for at_depth in range(0, tokens, ubatch):
        total += chunk_parts(t, m, g, k, min(ubatch, tokens - at_depth), at_depth).seconds(1, 1)
    return total
