"""Continuous batching: planning iterations, re-timing them when a device's sharing changes, ending them.

A plan is `it_count` iterations with the same members. Iteration j of it takes a + j b seconds, because every decode
iteration adds one token to each request's context; its end is found in closed form, so that a request costs a few
events however many tokens it produces.
"""

from math import ceil, floor, sqrt

import numpy as np

from .. import events
from ..jit import compiled
from ..state import (
    BOUND,
    CHUNK,
    DECODE,
    DECODING,
    ENCODE,
    MIXED,
    NO_ITERATION,
    PREFILL,
    READY,
    SAME_INSTANT_S,
    UNIT_IDLE,
)
from .arrays import fill
from .costs import chunk_const, chunk_cpu, chunk_gpu, decode_cpu, decode_gpu, depth_segment, kv_cpu, kv_gpu
from .logbook import record
from .memory import gpu_of, mark, slots_of
from .transfers import set_slow


@compiled
def context_tokens(request):
    """Tokens in the request's KV cache, wherever that is."""
    return request.prompt_tokens + request.image_tokens + request.generated - request.prefill_left


@compiled
def resident_tokens(request):
    """Tokens whose KV is on the request's instance, not in saved form: those of one that waits to join count too."""
    if request.phase == PREFILL or request.phase == DECODE or (request.phase == BOUND and request.saved_host < 0):
        return context_tokens(request)
    return 0


@compiled
def join_waiting(s, r, log, i):
    """Requests bound to the instance whose KV is in place join the batch."""
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and r[j].phase == BOUND and r[j].saved_host < 0:
            r[j].phase = PREFILL if r[j].prefill_left > 0 else DECODE
            s.num_running[i] += 1
            record(s, log, events.START, j, i, r[j].model, s.inst_level[i], 0.0)


@compiled
def plan_all(s, p, r, log):
    """Start the next iterations of every instance that has none running."""
    for g in range(s.stirred.shape[0]):
        if s.stirred[g] == 1:
            for i in slots_of(s, g):
                if s.it_kind[i] == NO_ITERATION:
                    plan_one(s, p, r, log, i)


@compiled
def plan_one(s, p, r, log, i):
    """Start the next iterations of instance i if it has work; the log notes where it comes to have some or none."""
    if s.inst_phase[i] == READY and s.num_seated[i] > 0:
        plan(s, p, r, log, i)
    busy = s.it_kind[i] != NO_ITERATION
    if busy != (s.inst_busy[i] == 1):
        s.inst_busy[i] = busy
        kind = events.BUSY_START if busy else events.BUSY_END
        record(s, log, kind, s.it_request[i], i, s.inst_model[i], s.inst_level[i], 0.0)


@compiled
def plan(s, p, r, log, i):
    """Let waiting requests join, then work on the oldest unfinished prompt or decode."""
    mark(s, i)
    join_waiting(s, r, log, i)
    first = -1  # request whose prompt is worked on: the oldest
    decoders = 0
    context = 0
    soonest = 0
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j < 0:
            continue
        if r[j].phase == PREFILL and (first < 0 or j < first):
            first = j
        elif r[j].phase == DECODE:
            decoders += 1
            context += context_tokens(r[j])
            left = r[j].output_tokens - r[j].generated
            soonest = left if decoders == 1 else min(soonest, left)
    if first >= 0:
        plan_prompt(s, p, r, i, first, decoders if p.prefill_mode == MIXED else 0, context)
    elif decoders > 0:
        plan_decode(s, p, i, decoders, context, soonest)
    else:
        return
    s.it_start[i] = s.now
    s.it_before[i] = 0
    s.it_share_gpu[i] = 0.0  # not counted yet: share_devices sets the times
    s.it_share_cpu[i] = 0.0


@compiled
def plan_prompt(s, p, r, i, j, decoders, context):
    """One iteration of prompt work for request j: its image encoder, or a chunk beside the decoders' tokens."""
    g = gpu_of(s, i)
    m = s.inst_model[i]
    k = s.inst_level[i]
    s.it_request[i] = j
    s.it_count[i] = 1
    s.it_gpu_slope[i] = 0.0
    s.it_cpu_slope[i] = 0.0
    if r[j].encoded == 0 and r[j].image_tokens > 0 and p.encode_s[m, g] > 0.0:
        s.it_kind[i] = ENCODE
        s.it_const[i] = 0.0
        s.it_gpu[i] = r[j].image_tokens * p.encode_s[m, g]
        s.it_cpu[i] = 0.0
        return
    tokens = min(p.ubatch_tokens, r[j].prefill_left)
    area = tokens * (context_tokens(r[j]) + 0.5 * tokens)
    s.it_kind[i] = CHUNK
    s.it_tokens[i] = tokens
    s.it_const[i] = chunk_const(p, m, g, k, tokens)
    s.it_gpu[i] = chunk_gpu(p, m, g, k, tokens, area)
    s.it_cpu[i] = chunk_cpu(p, m, g, k, tokens, area)
    if decoders > 0:
        s.it_gpu[i] += kv_gpu(p, m, g, k, decoders, context)
        s.it_cpu[i] += kv_cpu(p, m, g, k, decoders, context)


@compiled
def plan_decode(s, p, i, batch, context, count):
    """Decode until the first request of the batch is finished or the mean context passes a knot of the depth table."""
    g = gpu_of(s, i)
    m = s.inst_model[i]
    k = s.inst_level[i]
    mean = context / batch  # grows by one each iteration
    segment = depth_segment(p, m, g, mean)
    if segment + 1 < p.depth_knot.shape[2] and p.depth_knot[m, g, segment + 1] < mean + count:
        count = max(1, int(ceil(p.depth_knot[m, g, segment + 1] - mean)))  # noqa: RUF046 (Numba's ceil is a float)
    s.it_kind[i] = DECODING
    s.it_request[i] = -1
    s.it_count[i] = count
    s.it_const[i] = p.iter_const[m, g, k]
    s.it_gpu[i] = decode_gpu(p, m, g, k, batch, context)
    s.it_cpu[i] = decode_cpu(p, m, g, k, batch, context)
    s.it_gpu_slope[i] = p.gpu_kv[m, g, k] * batch * p.depth_gpu[m, g, segment]
    s.it_cpu_slope[i] = p.cpu_kv[m, g, k] * batch * p.depth_cpu[m, g, segment]


@compiled
def share_devices(s, p):
    """Count what every GPU and host CPU has to do and re-time the iterations and operations whose share changed: only on hosts
    where something was stirred can it have."""
    for g in range(s.stirred.shape[0]):
        if s.stirred[g] == 1:
            s.host_stirred[p.gpu_host[g]] = 1
            count_work(s, g, p.gpu_host[g])
    for g in range(s.stirred.shape[0]):
        if s.host_stirred[p.gpu_host[g]] == 1:
            share_device(s, p, g, p.gpu_host[g])
    fill(s.host_stirred, 0)


@compiled
def count_work(s, g, h):
    """Work on GPU g and, changed by as much as g's share of it, on the CPU of its host h."""
    s.cpu_busy[h] -= s.gpu_on_cpu[g]
    s.host_iterating[h] -= s.gpu_iterating[g] > 0
    s.gpu_busy[g] = 0
    s.gpu_on_cpu[g] = 0
    s.gpu_iterating[g] = 0
    s.gpu_operations[g] = 0
    instances = s.it_kind.shape[0]
    for i in slots_of(s, g):
        if s.it_kind[i] != NO_ITERATION:
            s.gpu_iterating[g] += 1
            s.gpu_busy[g] += s.it_gpu[i] > 0.0
            s.gpu_on_cpu[g] += s.it_cpu[i] > 0.0
        s.gpu_operations[g] += (s.unit_phase[i] != UNIT_IDLE) + (s.unit_phase[instances + i] != UNIT_IDLE)
    s.cpu_busy[h] += s.gpu_on_cpu[g]
    s.host_iterating[h] += s.gpu_iterating[g] > 0


@compiled
def share_device(s, p, g, h):
    """Re-time what GPU g of host h has under way, where its share has changed."""
    slow = 1.0 + p.interference[h] * (s.host_iterating[h] - 1)
    share_gpu = (max(1, s.gpu_busy[g]) + p.operation_share[g] * s.gpu_operations[g]) * slow
    share_cpu = max(1, s.cpu_busy[h]) * slow
    operation_slow = 1.0 + p.operation_share[g] * (s.gpu_busy[g] + s.gpu_operations[g] - 1)
    instances = s.it_kind.shape[0]
    for i in slots_of(s, g):
        if s.it_kind[i] != NO_ITERATION and (share_gpu != s.it_share_gpu[i] or share_cpu != s.it_share_cpu[i]):
            retime(s, i, share_gpu, share_cpu)
        for unit in range(i, 2 * instances, instances):
            if s.unit_phase[unit] != UNIT_IDLE:
                set_slow(s, unit, operation_slow)


@compiled
def first_seconds(s, i):
    """Seconds of the segment's first iteration at the shares in force."""
    return s.it_const[i] + s.it_share_gpu[i] * s.it_gpu[i] + s.it_share_cpu[i] * s.it_cpu[i]


@compiled
def growth_seconds(s, i):
    """Seconds each iteration of the segment takes longer than the one before."""
    return s.it_share_gpu[i] * s.it_gpu_slope[i] + s.it_share_cpu[i] * s.it_cpu_slope[i]


@compiled
def run_seconds(a, b, n):
    """n iterations of a, a + b, a + 2 b, ... seconds."""
    return n * a + 0.5 * b * n * (n - 1.0)


@compiled
def iterations_in(a, b, seconds):
    """Whole iterations that fit into `seconds`, an end within SAME_INSTANT_S counted as reached."""
    limit = seconds + SAME_INSTANT_S
    if b <= 0.0:
        n = floor(limit / a)
    else:
        h = a - 0.5 * b
        n = floor((sqrt(h * h + 2.0 * b * limit) - h) / b)
    n = max(0.0, n)
    while n > 0 and run_seconds(a, b, n) > limit:  # rounding of the closed form
        n -= 1.0
    while run_seconds(a, b, n + 1.0) <= limit:
        n += 1.0
    return n


@compiled
def finished_iterations(s, i):
    """Iterations of the segment that have ended by now."""
    n = int(iterations_in(first_seconds(s, i), growth_seconds(s, i), s.now - s.it_start[i]))
    return min(n, s.it_count[i])


@compiled
def set_end(s, i):
    end = s.it_start[i] + run_seconds(first_seconds(s, i), growth_seconds(s, i), s.it_count[i])
    s.it_end[i] = max(s.now, end)
    s.stirred[gpu_of(s, i)] = 1


@compiled
def retime(s, i, share_gpu, share_cpu):
    """From now on the instance's iterations run at other shares; the fraction already done of one stays done."""
    if s.it_share_gpu[i] > 0.0:
        n = finished_iterations(s, i)
        a = first_seconds(s, i)
        b = growth_seconds(s, i)
        fraction = (s.now - s.it_start[i] - run_seconds(a, b, n)) / (a + b * n)
        fraction = min(1.0, max(0.0, fraction))
        s.it_gpu[i] += n * s.it_gpu_slope[i]
        s.it_cpu[i] += n * s.it_cpu_slope[i]
        s.it_before[i] += n
        s.it_count[i] -= n
    else:
        fraction = 0.0
    s.it_share_gpu[i] = share_gpu
    s.it_share_cpu[i] = share_cpu
    s.it_start[i] = s.now - fraction * first_seconds(s, i)
    set_end(s, i)


@compiled
def stop_soon(s, i):
    """Let the plan end with the running iteration, because a request joins or the instance is to be changed."""
    if s.it_kind[i] == NO_ITERATION or s.it_share_gpu[i] == 0.0:
        return
    n = finished_iterations(s, i)
    ended_now = n > 0 and (
        s.now - s.it_start[i] - run_seconds(first_seconds(s, i), growth_seconds(s, i), n) <= SAME_INSTANT_S
    )
    if n == 0 and s.it_before[i] > 0 and s.now - s.it_start[i] <= SAME_INSTANT_S:
        ended_now = True
    s.it_count[i] = min(s.it_count[i], n if ended_now else n + 1)
    set_end(s, i)


@compiled
def end_iterations(s, p, r, i):
    """Book the plan's tokens. Returns the request whose prompt got its first token out of this, or -1."""
    count = s.it_before[i] + s.it_count[i]
    kind = s.it_kind[i]
    j = s.it_request[i]
    s.it_kind[i] = NO_ITERATION
    s.it_end[i] = np.inf
    if kind == ENCODE:
        r[j].encoded = 1
        return -1
    if kind == DECODING or p.prefill_mode == MIXED:
        for b in range(s.seat.shape[1]):
            t = s.seat[i, b]
            if t >= 0 and r[t].phase == DECODE:
                r[t].generated += count
    if kind == CHUNK:
        r[j].prefill_left -= s.it_tokens[i]
        if r[j].prefill_left == 0:
            r[j].phase = DECODE
            r[j].generated += 1
            return j
    return -1
