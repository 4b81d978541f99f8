"""Seconds of iterations, from the cost arrays (formulas: costmodel.tables.CostTables)."""

from ..jit import compiled


@compiled
def decode_gpu(p, m, g, k, batch, context):
    return p.gpu_base[m, g, k] * p.batch_gpu[m, g, batch - 1] + p.gpu_head[m, g, k] + p.gpu_kv[m, g, k] * context


@compiled
def decode_cpu(p, m, g, k, batch, context):
    return p.cpu_base[m, g, k] * p.batch_cpu[m, g, batch - 1] + p.cpu_head[m, g, k] + p.cpu_kv[m, g, k] * context


@compiled
def decode_step(p, m, g, k, batch, context):
    """One decode iteration of `batch` requests with `context` tokens in all, with GPU and CPU unshared."""
    return p.iter_const[m, g, k] + decode_gpu(p, m, g, k, batch, context) + decode_cpu(p, m, g, k, batch, context)


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
    full = tokens // p.ubatch_tokens
    rest = tokens - full * p.ubatch_tokens
    total = 0.5 * tokens * tokens * (p.gpu_attn[m, g, k] + p.cpu_attn[m, g, k])
    if full > 0:
        u = p.ubatch_tokens
        total += full * (chunk_const(p, m, g, k, u) + chunk_gpu(p, m, g, k, u, 0.0) + chunk_cpu(p, m, g, k, u, 0.0))
    if rest > 0:
        total += chunk_const(p, m, g, k, rest) + chunk_gpu(p, m, g, k, rest, 0.0) + chunk_cpu(p, m, g, k, rest, 0.0)
    return total
