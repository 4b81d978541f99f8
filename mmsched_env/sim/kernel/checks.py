"""Invariants recounted from the records after every step, if `sim.debug_checks` asks for it.

An entry point of its own, compiled only when asked for. Each check returns an index into BROKEN, FINE if all is well.
The tests recount more, and in Python (tests/invariants/recount.py); this finds the step at which something breaks in
any run.
"""

import numpy as np

from ..jit import compiled, entry_point
from ..state import (
    BOUND,
    DECODE,
    DONE,
    DROPPED,
    EMPTY,
    FUTURE,
    NO_ITERATION,
    NO_OP,
    PREFILL,
    QUEUED,
    READY,
    RESTORING,
    SAME_INSTANT_S,
    SAVING,
    UNIT_IDLE,
)
from .memory import footprint, gpu_of, kv_tokens_reserved, saved_bytes

BROKEN = (
    "",
    "I1: every arrived request is waiting, on a seat, done or dropped, and counted as that",
    "I1: the queue is the waiting requests in order of arrival",
    "I1: every request on a seat belongs there, and is on one only",
    "I2: GPU memory in use is what weights, buffers and KV take, and fits",
    "I2: host RAM in use is what pinned weights and CPU-side KV take, and fits",
    "I2: swap in use is what saved KV and reloads take, and fits",
    "I2: cached weights are at least the pinned ones, valid as far as read, and fit",
    "I3: no event lies in the past",
    "I4: a request is dispatched after its arrival, gets its first token after that, and ends last",
    "I6: a request has all its tokens if and only if it is done",
    "an instance has at most one kind of work under way, and only what its phase allows",
)
(
    FINE,
    REQUEST_COUNTS,
    QUEUE,
    SEATS,
    GPU_MEMORY,
    HOST_MEMORY,
    SWAP,
    CACHE,
    CLOCK,
    REQUEST_TIMES,
    TOKENS,
    PHASES,
) = range(len(BROKEN))


@entry_point
def check_batch(state, params, requests, faults):
    """Write the first invariant found broken in each environment, FINE if none."""
    for e in range(state.shape[0]):
        p = params[e % params.shape[0]]
        faults[e] = check(state[e], p, requests[e]) if state[e].num_requests > 0 else FINE


@compiled
def check(s, p, r):
    fault = check_requests(s, r)
    if fault == FINE:
        fault = check_queue(s, r)
    if fault == FINE:
        fault = check_seats(s, r)
    if fault == FINE:
        fault = check_instances(s)
    for g in range(p.num_gpus):
        if fault == FINE:
            fault = check_gpu(s, p, r, g)
    for h in range(p.num_hosts):
        if fault == FINE:
            fault = check_host(s, p, r, h)
    return fault


@compiled
def on_seat(phase):
    return phase == BOUND or phase == RESTORING or phase == PREFILL or phase == DECODE or phase == SAVING


@compiled
def check_requests(s, r):
    waiting = 0
    seated = 0
    done = 0
    dropped = 0
    for j in range(s.num_requests):
        phase = r[j].phase
        if (phase == FUTURE) != (j >= s.num_arrived):
            return REQUEST_COUNTS
        waiting += phase == QUEUED
        seated += on_seat(phase)
        done += phase == DONE
        dropped += phase == DROPPED
        if phase != FUTURE and not times_in_order(r[j]):
            return REQUEST_TIMES
        if r[j].generated > r[j].output_tokens or (r[j].generated == r[j].output_tokens) != (phase == DONE):
            return TOKENS
        if (r[j].generated > 0) != (r[j].first_token_s >= 0.0) or (phase == DONE) != (r[j].finish_s >= 0.0):
            return TOKENS
    if done != s.num_done or dropped != s.num_dropped or waiting + seated != s.num_in_system:
        return REQUEST_COUNTS
    return FINE if waiting + seated + done + dropped == s.num_arrived else REQUEST_COUNTS


@compiled
def times_in_order(request):
    last = request.arrival_s - SAME_INSTANT_S
    for t in (request.dispatch_s, request.first_token_s, request.finish_s):
        if t >= 0.0:
            if t < last:
                return False
            last = t
        else:
            last = np.inf  # what comes later cannot have happened
    return True


@compiled
def check_queue(s, r):
    length = 0
    before = -1
    j = s.queue_head
    while j >= 0 and length <= s.num_arrived:
        if j <= before or r[j].previous != before or (r[j].phase != QUEUED and r[j].phase != SAVING):
            return QUEUE
        if length < s.window.shape[0] and s.window[length] != j:
            return QUEUE
        length += 1
        before = j
        j = r[j].next
    if length < s.window.shape[0] and s.window[length] >= 0:
        return QUEUE
    waiting = 0
    for j in range(s.num_arrived):
        waiting += r[j].phase == QUEUED or r[j].phase == SAVING
    if s.queue_tail != before or s.queue_length != length or waiting != length or s.model_queued.sum() != length:
        return QUEUE
    return FINE


@compiled
def check_seats(s, r):
    seated = 0
    for i in range(s.seat.shape[0]):
        taken = 0
        running = 0
        tokens = 0
        for b in range(s.seat.shape[1]):
            j = s.seat[i, b]
            if j < 0:
                continue
            taken += 1
            running += r[j].phase == PREFILL or r[j].phase == DECODE
            tokens += kv_tokens_reserved(r[j])
            if r[j].instance != i or r[j].model != s.inst_model[i] or not on_seat(r[j].phase):
                return SEATS
            for other in range(b):
                if s.seat[i, other] == j:
                    return SEATS
        if taken != s.num_seated[i] or running != s.num_running[i] or tokens != s.reserved_tokens[i]:
            return SEATS
        seated += taken
    for j in range(s.num_requests):
        seated -= on_seat(r[j].phase)
    return FINE if seated == 0 else SEATS


@compiled
def check_instances(s):
    """What is under way fits the phase, and nothing of it should have ended already."""
    instances = s.inst_model.shape[0]
    for i in range(instances):
        phase = s.inst_phase[i]
        if (phase == EMPTY) != (s.inst_model[i] < 0) or (phase == EMPTY and s.num_seated[i] > 0):
            return PHASES
        if phase != READY and (s.it_kind[i] != NO_ITERATION or (phase == EMPTY) != (s.op[i] == NO_OP)):
            return PHASES
        if (s.op[i] == NO_OP) != (s.unit_phase[i] == UNIT_IDLE):
            return PHASES
        if (s.restore_request[i] < 0) != (s.unit_phase[instances + i] == UNIT_IDLE):
            return PHASES
        if phase != EMPTY and s.inst_at[gpu_of(s, i), s.inst_model[i]] != i:
            return PHASES
        if min(s.it_end[i], s.unit_end[i], s.unit_end[instances + i]) < s.now:
            return CLOCK
        if s.it_kind[i] == NO_ITERATION and s.it_end[i] < np.inf:
            return CLOCK
        g = gpu_of(s, i)
        if s.stirred[g] == 0 and min(s.it_end[i], s.unit_end[i], s.unit_end[instances + i]) < s.gpu_next[g]:
            return CLOCK
    return FINE


@compiled
def reserved_on(s, r, i):
    """Context tokens the requests on instance i reserve KV for."""
    tokens = 0
    for b in range(s.seat.shape[1]):
        if s.seat[i, b] >= 0:
            tokens += kv_tokens_reserved(r[s.seat[i, b]])
    return tokens


@compiled
def check_gpu(s, p, r, g):
    used = 0
    for i in range(s.inst_model.shape[0]):
        if gpu_of(s, i) == g and s.inst_phase[i] != EMPTY:
            m = s.inst_model[i]
            k = s.inst_level[i]
            used += footprint(s, p, g, m, k) + s.inst_hold_gpu[i]
            used += reserved_on(s, r, i) * p.kv_gpu_bytes[m, k]
    return FINE if used == s.gpu_used[g] and used <= p.gpu_bytes[g] else GPU_MEMORY


@compiled
def check_host(s, p, r, h):
    kv = 0
    swap = 0
    for i in range(s.inst_model.shape[0]):
        if s.inst_phase[i] != EMPTY and p.gpu_host[gpu_of(s, i)] == h:
            kv += reserved_on(s, r, i) * p.kv_cpu_bytes[s.inst_model[i], s.inst_level[i]] + s.inst_hold_kv[i]
            swap += s.inst_hold_swap[i]
    for j in range(s.num_requests):
        if r[j].saved_host == h:
            swap += saved_bytes(p, r[j])
    if swap != s.host_swap[h] or swap > p.host_swap_bytes[h]:
        return SWAP
    pinned = 0
    cached = 0
    for m in range(p.num_models):
        pinned += s.pinned[h, m]
        cached += s.cached[h, m]
        if s.pinned[h, m] != pinned_need(s, p, h, m):
            return HOST_MEMORY
        if not (s.pinned[h, m] <= s.cached[h, m] <= p.file_bytes[m] and 0 <= s.cache_valid[h, m] <= s.cached[h, m]):
            return CACHE
    if kv != s.host_kv[h] or pinned != s.host_pinned[h] or pinned + kv > p.host_main_bytes[h]:
        return HOST_MEMORY
    return FINE if cached + kv <= p.host_main_bytes[h] else CACHE


@compiled
def pinned_need(s, p, h, m):
    """Bytes of model m's weights that instances on host h use from its RAM."""
    need = 0
    for i in range(s.inst_model.shape[0]):
        if s.inst_model[i] == m and p.gpu_host[gpu_of(s, i)] == h:
            need = max(need, s.inst_cpu_weights[i], p.cpu_weight_bytes[m, s.inst_level[i]])
    return need
