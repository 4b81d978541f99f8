"""Which actions are legal now, and what they do. Layout of the action index: ../../action.py."""

import numpy as np

from ..jit import compiled
from ..state import (
    DECODE,
    EMPTY,
    LOADING,
    NO_ITERATION,
    NO_OP,
    NO_PENDING,
    NUM_SCOPES,
    PENDING_PREEMPT,
    PENDING_PREEMPT_REQUEST,
    PENDING_RESIZE,
    PREFILL,
    QUEUED,
    READY,
    SAME_INSTANT_S,
    SCOPE_INSTANCE,
    SCOPE_REQUEST,
)
from . import waiting
from .arrays import fill
from .batching import stop_soon
from .clock import end_of_iterations
from .memory import fits_joining, fits_new, gpu_free, gpu_of, host_free, mark, swap_free
from .operations import hold_for_resize, resize_holds, run_pending, seated_tokens, start_load
from .requests import bind


@compiled
def free_slot(s, g):
    """Empty instance slot of GPU g, or -1."""
    slots = s.inst_model.shape[0] // s.gpu_used.shape[0]
    for i in range(g * slots, (g + 1) * slots):
        if s.inst_phase[i] == EMPTY:
            return i
    return -1


@compiled
def can_join(s, p, request, i):
    """Can the request be added to its model's instance i?"""
    phase = s.inst_phase[i]
    if (phase != READY and phase != LOADING) or s.inst_pending[i] != NO_PENDING:
        return False
    if phase == READY and s.op[i] != NO_OP:
        return False
    if s.num_seated[i] >= s.seat.shape[1]:
        return False
    return fits_joining(s, p, request, gpu_of(s, i), s.inst_level[i])


@compiled
def can_change(s, i):
    """Is instance i ready, with no transfer and no other action under way?"""
    return (
        s.inst_phase[i] == READY and s.inst_pending[i] == NO_PENDING and s.op[i] == NO_OP and s.restore_request[i] < 0
    )


@compiled
def has_running(s, r, i):
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and (r[j].phase == PREFILL or r[j].phase == DECODE):
            return True
    return False


@compiled
def write_mask(s, p, r):
    """Fill s.window and s.mask; returns the number of legal actions besides WAIT."""
    waiting.fill_window(s, r)
    fill(s.mask, 0)
    legal = mask_dispatch(s, p, r) + mask_changes(s, p, r)
    s.mask[0] = 1 if legal == 0 or anything_ahead(s, p) else 0
    return legal


@compiled
def mask_dispatch(s, p, r):
    legal = 0
    gpus = s.gpu_used.shape[0]
    levels = p.level_value.shape[0]
    for q in range(s.window.shape[0]):
        j = s.window[q]
        if j < 0:
            break
        if r[j].phase != QUEUED:
            continue
        m = r[j].model
        for g in range(p.num_gpus):
            at = 1 + (q * gpus + g) * levels
            i = s.inst_at[g, m]
            if i >= 0:
                if can_join(s, p, r[j], i):
                    s.mask[at + s.inst_level[i]] = 1
                    legal += 1
            elif free_slot(s, g) >= 0:
                for k in range(levels):
                    if p.level_valid[m, k] == 1 and fits_new(s, p, r[j], g, k):
                        s.mask[at + k] = 1
                        legal += 1
    return legal


@compiled
def mask_changes(s, p, r):
    """PREEMPT and OFFLOAD."""
    legal = 0
    instances = s.inst_model.shape[0]
    levels = p.level_value.shape[0]
    at_preempt = 1 + s.window.shape[0] * s.gpu_used.shape[0] * levels
    at_offload = at_preempt + instances * NUM_SCOPES
    for i in range(instances):
        if not can_change(s, i):
            continue
        if p.allow_preempt == 1 or s.num_seated[i] == 0:
            s.mask[at_preempt + i * NUM_SCOPES + SCOPE_INSTANCE] = 1
            legal += 1
        if p.allow_preempt == 1 and has_running(s, r, i):
            s.mask[at_preempt + i * NUM_SCOPES + SCOPE_REQUEST] = 1
            legal += 1
        if p.allow_offload == 0:
            continue
        g = gpu_of(s, i)
        h = p.gpu_host[g]
        tokens = seated_tokens(s, r, i)
        for k in range(levels):
            if k == s.inst_level[i] or p.level_valid[s.inst_model[i], k] == 0:
                continue
            gpu, pin, kv, swap = resize_holds(s, p, i, k, tokens)
            if gpu <= gpu_free(s, p, g) and pin + kv <= host_free(s, p, h) and swap <= swap_free(s, p, h):
                s.mask[at_offload + i * levels + k] = 1
                legal += 1
    return legal


@compiled
def anything_ahead(s, p):
    """Will something happen if time runs on?"""
    if s.num_arrived < s.num_requests or (p.drop_after < np.inf and s.queue_length > 0):
        return True
    for i in range(s.inst_model.shape[0]):
        if s.num_seated[i] > 0 or s.op[i] != NO_OP:
            return True
    return False


@compiled
def apply(s, p, r, log, action):
    """Carry out a legal action other than WAIT."""
    gpus = s.gpu_used.shape[0]
    levels = p.level_value.shape[0]
    instances = s.inst_model.shape[0]
    code = action - 1
    dispatches = s.window.shape[0] * gpus * levels
    if code < dispatches:
        dispatch(s, p, r, log, s.window[code // (gpus * levels)], code // levels % gpus, code % levels)
        return
    code -= dispatches
    if code < instances * NUM_SCOPES:
        scope = code % NUM_SCOPES
        change(s, p, r, log, code // NUM_SCOPES, PENDING_PREEMPT_REQUEST if scope == SCOPE_REQUEST else PENDING_PREEMPT)
        return
    code -= instances * NUM_SCOPES
    hold_for_resize(s, p, r, code // levels, code % levels)
    change(s, p, r, log, code // levels, PENDING_RESIZE)


@compiled
def dispatch(s, p, r, log, j, g, k):
    """Bind request j to its model's instance on GPU g, loading it at level k if there is none."""
    i = s.inst_at[g, r[j].model]
    if i < 0:
        i = free_slot(s, g)
        start_load(s, p, r, log, i, r[j].model, k)
    bind(s, p, r, log, j, i)
    mark(s, i)


@compiled
def change(s, p, r, log, i, pending):
    """PREEMPT or OFFLOAD instance i at the end of its running iteration, or now if it has none."""
    mark(s, i)
    s.inst_pending[i] = pending
    if s.it_kind[i] == NO_ITERATION:
        run_pending(s, p, r, log, i)
        return
    stop_soon(s, i)
    if s.it_end[i] <= s.now + SAME_INSTANT_S:  # one iteration of the plan ends just now, and no other has begun
        end_of_iterations(s, p, r, log, i)
