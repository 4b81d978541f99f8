"""A request's way: bound to an instance, its KV restored, taken off again, finished."""

from .. import events
from ..jit import compiled
from ..state import (
    BOUND,
    CHEAPER,
    DECODE,
    DONE,
    DROPPED,
    NO_PENDING,
    PREFILL,
    READY,
    RECOMPUTE,
    RESTORING,
    SAVING,
    TERM_FLOW_TIME,
    TERM_SLO_MISS,
    TERM_SLOWDOWN,
    UNIT_IDLE,
)
from . import waiting
from .batching import resident_tokens, stop_soon
from .costs import prefill_seconds
from .logbook import record
from .memory import drop_saved, gpu_of, kv_bytes, kv_tokens_reserved, mark, reserve_kv, saved_bytes, slots_of, swap_free
from .transfers import link_in_resource, start_unit


@compiled
def start_over(request):
    """The request has no KV cache: prompt, image and what it has generated so far must be prefilled."""
    request.encoded = 0
    request.prefill_left = request.prompt_tokens + request.image_tokens + request.generated


@compiled
def bind(s, p, r, log, j, i):
    """Give waiting request j a seat and its KV memory on instance i."""
    g = gpu_of(s, i)
    waiting.remove(s, r, j)
    for b in range(s.seat.shape[1]):
        if s.seat[i, b] < 0:
            s.seat[i, b] = j
            break
    s.num_seated[i] += 1
    s.reserved_tokens[i] += kv_tokens_reserved(r[j])
    reserve_kv(s, p, r[j], i, s.inst_level[i], 1)
    if r[j].saved_host >= 0 and r[j].saved_host != p.gpu_host[g]:
        drop_saved(s, p, r[j])
        start_over(r[j])
    r[j].phase = BOUND
    r[j].instance = i
    r[j].level = s.inst_level[i]
    r[j].bound_s = s.now
    if r[j].dispatch_s < 0.0:
        r[j].dispatch_s = s.now
    s.inst_used_s[i] = s.now
    s.inst_uses[i] += 1
    s.cache_used_s[p.gpu_host[g], r[j].model] = s.now
    record(s, log, events.DISPATCH, j, i, r[j].model, s.inst_level[i], 0.0)
    stop_soon(s, i)


@compiled
def free_seat(s, p, r, i, b):
    j = s.seat[i, b]
    reserve_kv(s, p, r[j], i, s.inst_level[i], -1)
    s.seat[i, b] = -1
    s.num_seated[i] -= 1
    s.reserved_tokens[i] -= kv_tokens_reserved(r[j])


@compiled
def start_restores(s, p, r, log):
    """Bring saved KV back to the GPU, one request at a time on each instance, oldest first, while others decode."""
    for g in range(s.stirred.shape[0]):
        if s.stirred[g] == 1:
            for i in slots_of(s, g):
                if s.inst_phase[i] == READY and s.inst_pending[i] == NO_PENDING and s.num_seated[i] > 0:
                    start_restore(s, p, r, log, i, g)


@compiled
def start_restore(s, p, r, log, i, g):
    """The oldest request on instance i whose KV is saved, unless another one's is on its way."""
    unit = s.inst_phase.shape[0] + i
    if s.unit_phase[unit] != UNIT_IDLE:
        return
    oldest = -1
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and r[j].phase == BOUND and r[j].saved_host >= 0 and (oldest < 0 or j < oldest):
            oldest = j
    if oldest < 0:
        return
    m = s.inst_model[i]
    k = s.inst_level[i]
    mark(s, i)
    r[oldest].phase = RESTORING
    s.restore_request[i] = oldest
    record(s, log, events.RESTORE_START, oldest, i, m, k, r[oldest].saved_tokens)
    moved = r[oldest].saved_tokens * p.kv_gpu_bytes[m, k]
    start_unit(s, unit, p.save_s[g], moved, link_in_resource(s, g), p.kv_in_cap[g])


@compiled
def end_restore(s, p, r, log, i):
    j = s.restore_request[i]
    s.restore_request[i] = -1
    drop_saved(s, p, r[j])
    r[j].phase = BOUND
    record(s, log, events.RESTORE_END, j, i, r[j].model, s.inst_level[i], 0.0)
    stop_soon(s, i)
    s.decision = 1


@compiled
def worth_saving(s, p, request, i, tokens):
    """Is the request's KV to be saved (mode swap), dropped (recompute), or whichever takes less time (cheaper)?"""
    g = gpu_of(s, i)
    m = request.model
    k = s.inst_level[i]
    size = kv_bytes(p, m, k, tokens)
    if p.preempt_mode == RECOMPUTE or size > swap_free(s, p, p.gpu_host[g]):
        return False
    if p.preempt_mode == CHEAPER:
        moved = tokens * p.kv_gpu_bytes[m, k]
        swap = 2.0 * p.save_s[g] + moved / p.kv_out_cap[g] + moved / p.kv_in_cap[g]
        return swap <= prefill_seconds(p, m, g, k, tokens)
    return True


@compiled
def take_off(s, p, r, log, i, b):
    """Put the request on seat b back into the queue with its progress.

    Returns the bytes of its KV that must cross the link; it keeps the seat until they have. -1: nothing to save,
    the seat is free and the request can be dispatched again.
    """
    j = s.seat[i, b]
    m = r[j].model
    g = gpu_of(s, i)
    k = s.inst_level[i]
    running = r[j].phase == PREFILL or r[j].phase == DECODE
    tokens = resident_tokens(r[j])
    s.num_running[i] -= running
    waiting.push(s, r, j)
    if running or tokens > 0:
        r[j].num_preemptions += 1
        s.num_preempted += 1
        if tokens > 0 and worth_saving(s, p, r[j], i, tokens):
            r[j].phase = SAVING
            r[j].saved_tokens = tokens
            r[j].saved_host = p.gpu_host[g]
            r[j].saved_level = k
            s.host_swap[p.gpu_host[g]] += saved_bytes(p, r[j])
            record(s, log, events.PREEMPT, j, i, m, k, tokens)
            return tokens * p.kv_gpu_bytes[m, k]
        start_over(r[j])
    record(s, log, events.PREEMPT, j, i, m, k, r[j].saved_tokens)
    free_seat(s, p, r, i, b)
    s.decision = 1
    return -1


@compiled
def drop_time(p, request):
    """When the request is dropped if it still waits."""
    return request.arrival_s + p.drop_after * request.predicted_slo_e2e_s


@compiled
def drop(s, p, r, log, j):
    """Waiting request j leaves unserved, charged as if it had stayed until its penalty time."""
    waiting.remove(s, r, j)
    drop_saved(s, p, r[j])
    r[j].phase = DROPPED
    r[j].charged_until_s = max(s.now, r[j].arrival_s + p.drop_penalty * r[j].predicted_slo_e2e_s)
    charge = r[j].weight * (r[j].charged_until_s - s.now)
    s.terms[TERM_FLOW_TIME] += charge
    s.terms[TERM_SLO_MISS] += r[j].weight
    s.weight_in_system -= r[j].weight
    s.num_in_system -= 1
    s.num_dropped += 1
    record(s, log, events.DROP, j, -1, r[j].model, -1, charge)
    s.decision = 1


@compiled
def finish(s, p, r, log, i, b):
    """The request on seat b has all its tokens."""
    j = s.seat[i, b]
    r[j].phase = DONE
    s.num_running[i] -= 1
    r[j].finish_s = s.now
    e2e = s.now - r[j].arrival_s
    ttft = r[j].first_token_s - r[j].arrival_s
    missed = e2e > r[j].slo_e2e_s or ttft > r[j].slo_ttft_s
    s.terms[TERM_SLO_MISS] += r[j].weight if missed else 0.0
    s.terms[TERM_SLOWDOWN] += e2e / r[j].unloaded_s
    s.weight_in_system -= r[j].weight
    s.num_in_system -= 1
    s.num_done += 1
    s.inst_used_s[i] = s.now
    s.cache_used_s[p.gpu_host[gpu_of(s, i)], r[j].model] = s.now
    record(s, log, events.FINISH, j, i, r[j].model, s.inst_level[i], 0.0)
    free_seat(s, p, r, i, b)
    s.decision = 1
