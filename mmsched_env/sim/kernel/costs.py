"""Seconds of iterations, from the cost arrays (formulas: costmodel.tables.CostTables)."""

from ..jit import compiled


@compiled
def attended(knots, slopes, mean_context):
    """F(x) of a mean context: piecewise linear, the slope changing at every knot."""
    total = slopes[0] * mean_context
    for d in range(1, knots.shape[0]):
        if mean_context <= knots[d]:
            break
        total += (slopes[d] - slopes[d - 1]) * (mean_context - knots[d])
    return total


@compiled
def kv_gpu(p, m, g, k, batch, context):
    """GPU seconds of attending to `context` tokens of `batch` requests."""
    return p.gpu_kv[m, g, k] * batch * attended(p.depth_knot[m, g], p.depth_gpu[m, g], context / batch)


@compiled
def kv_cpu(p, m, g, k, batch, context):
    return p.cpu_kv[m, g, k] * batch * attended(p.depth_knot[m, g], p.depth_cpu[m, g], context / batch)


@compiled
def depth_segment(p, m, g, mean_context):
    """Index of the last knot at or below a mean context: its slopes hold from there to the next knot."""
    segment = 0
    for d in range(1, p.depth_knot.shape[2]):
        if mean_context >= p.depth_knot[m, g, d]:
            segment = d
    return segment


@compiled
def decode_gpu(p, m, g, k, batch, context):
    weights = p.gpu_base[m, g, k] * p.batch_gpu[m, g, batch - 1] + p.gpu_head[m, g, k]
    return weights + kv_gpu(p, m, g, k, batch, context)


@compiled
def decode_cpu(p, m, g, k, batch, context):
    weights = p.cpu_base[m, g, k] * p.batch_cpu[m, g, batch - 1] + p.cpu_head[m, g, k]
    return weights + kv_cpu(p, m, g, k, batch, context)


@compiled
def attended_both(p, m, g, mean_context):
    """F(x) of the GPU and of the CPU: the same at every level."""
    knots = p.depth_knot[m, g]
    return attended(knots, p.depth_gpu[m, g], mean_context), attended(knots, p.depth_cpu[m, g], mean_context)


@compiled
def decode_step(p, m, g, k, batch, on_gpu, on_cpu):
    """One decode iteration of `batch` requests, with GPU and CPU unshared; `attended_both` of their mean context.

    To the last bit what `decode_gpu` and `decode_cpu` add up to.
    """
    gpu = p.gpu_base[m, g, k] * p.batch_gpu[m, g, batch - 1] + p.gpu_head[m, g, k] + p.gpu_kv[m, g, k] * batch * on_gpu
    cpu = p.cpu_base[m, g, k] * p.batch_cpu[m, g, batch - 1] + p.cpu_head[m, g, k] + p.cpu_kv[m, g, k] * batch * on_cpu
    return p.iter_const[m, g, k] + gpu + cpu


@compiled
def streams(p, m, g, k, tokens):
    """Does a prompt chunk stream the CPU units' weights to the GPU?"""
    return p.units_on_gpu[m, k] < p.num_units[m] and tokens >= p.stream_min_tokens[g]


@compiled
def chunk_const(p, m, g, k, tokens):
    return p.iter_const[m, g, k] + (p.stream_s[m, g, k] if streams(p, m, g, k, tokens) else 0.0)


@compiled
def chunk_gpu(p, m, g, k, tokens, area):
    """GPU part of a prompt chunk; area = tokens * depth + tokens^2 / 2."""
    rate = p.prefill_gpu_stream[m, g, k] if streams(p, m, g, k, tokens) else p.prefill_gpu[m, g, k]
    return p.gpu_base[m, g, k] + p.gpu_head[m, g, k] + tokens * rate + p.gpu_attn[m, g, k] * area


@compiled
def chunk_cpu(p, m, g, k, tokens, area):
    attention = p.cpu_head[m, g, k] + p.cpu_attn[m, g, k] * area
    if streams(p, m, g, k, tokens):
        return attention
    return attention + p.cpu_base[m, g, k] + tokens * p.prefill_cpu[m, g, k]


@compiled
def prefill_seconds(p, m, g, k, tokens):
    """Prefill of `tokens` from an empty KV cache, alone on GPU and CPU: full chunks and the last one, summed."""
    return prefill_of_chunks(p, m, g, k, tokens, tokens // p.ubatch_tokens)


@compiled
def prefill_of_chunks(p, m, g, k, tokens, full):
    """The same with the number of full chunks, which takes a division and is the same on every GPU."""
    rest = tokens - full * p.ubatch_tokens
    total = 0.5 * tokens * tokens * (p.gpu_attn[m, g, k] + p.cpu_attn[m, g, k])
    if full > 0:
        u = p.ubatch_tokens
        total += full * (chunk_const(p, m, g, k, u) + chunk_gpu(p, m, g, k, u, 0.0) + chunk_cpu(p, m, g, k, u, 0.0))
    if rest > 0:
        total += chunk_const(p, m, g, k, rest) + chunk_gpu(p, m, g, k, rest, 0.0) + chunk_cpu(p, m, g, k, rest, 0.0)
    return total
