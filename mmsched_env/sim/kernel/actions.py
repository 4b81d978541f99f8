"""Which actions are legal now, and what they do. Layout of the action index: ../../action.py."""

import numpy as np

from ..jit import compiled
from ..state import (
    EMPTY,
    LOADING,
    NO_ITERATION,
    NO_OP,
    NO_PENDING,
    NUM_SCOPES,
    PENDING_PREEMPT,
    PENDING_PREEMPT_REQUEST,
    PENDING_RESIZE,
    QUEUED,
    READY,
    SAME_INSTANT_S,
    SCOPE_INSTANCE,
    SCOPE_REQUEST,
)
from .arrays import fill
from .batching import stop_soon
from .clock import end_of_iterations
from .memory import (
    fits_joining,
    footprint,
    gpu_free,
    gpu_of,
    host_free,
    kv_tokens_reserved,
    mark,
    pin_growth,
    slots_of,
    swap_free,
)
from .operations import hold_for_resize, resize_holds, run_pending, start_load
from .requests import bind


@compiled
def free_slot(s, g):
    """Empty instance slot of GPU g, or -1."""
    for i in slots_of(s, g):
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
def write_mask(s, p, r):
    """Fill s.mask; returns the number of legal actions besides WAIT."""
    clear_mask(s, p)
    legal = mask_dispatch(s, p, r) + mask_changes(s, p)
    s.mask[0] = 1 if legal == 0 or anything_ahead(s, p) else 0
    return legal


@compiled
def clear_mask(s, p):
    """Zeros, but for slots of the window that have none anyway: those are most of a wide mask."""
    row = s.gpu_used.shape[0] * p.level_value.shape[0]
    fill(s.mask[: 1 + s.mask_rows * row], 0)
    fill(s.mask[1 + s.window.shape[0] * row :], 0)
    s.mask_rows = 0


@compiled
def mask_dispatch(s, p, r):
    legal = 0
    gpus = s.gpu_used.shape[0]
    levels = p.level_value.shape[0]
    for q in range(s.window.shape[0]):
        j = s.window[q]
        if j < 0:
            break
        s.mask_rows = q + 1
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
                legal += mask_load(s, p, g, m, kv_tokens_reserved(r[j]), s.mask[at : at + levels])
    return legal


@compiled
def mask_load(s, p, g, m, tokens, mask):
    """At which levels is there memory now to load model m on GPU g and serve a request of so many tokens?"""
    legal = 0
    h = p.gpu_host[g]
    gpu = gpu_free(s, p, g)
    host = host_free(s, p, h)
    for k in range(mask.shape[0]):
        needs_gpu = footprint(s, p, g, m, k) + tokens * p.kv_gpu_bytes[m, k]
        needs_host = pin_growth(s, p, h, m, p.cpu_weight_bytes[m, k]) + tokens * p.kv_cpu_bytes[m, k]
        fits = (p.level_valid[m, k] == 1) & (needs_gpu <= gpu) & (needs_host <= host)
        mask[k] = fits
        legal += fits
    return legal


@compiled
def mask_changes(s, p):
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
        if p.allow_preempt == 1 and s.num_running[i] > 0:
            s.mask[at_preempt + i * NUM_SCOPES + SCOPE_REQUEST] = 1
            legal += 1
        if p.allow_offload == 1:
            at = at_offload + i * levels
            legal += mask_resize(s, p, i, s.mask[at : at + levels])
    return legal


@compiled
def mask_resize(s, p, i, mask):
    """For which levels is there memory now to resize instance i to them?"""
    legal = 0
    g = gpu_of(s, i)
    h = p.gpu_host[g]
    free_gpu = gpu_free(s, p, g)
    free_host = host_free(s, p, h)
    free_swap = swap_free(s, p, h)
    for k in range(mask.shape[0]):
        gpu, pin, kv, swap = resize_holds(s, p, i, k)
        another = (k != s.inst_level[i]) & (p.level_valid[s.inst_model[i], k] == 1)
        fits = another & (gpu <= free_gpu) & (pin + kv <= free_host) & (swap <= free_swap)
        mask[k] = fits
        legal += fits
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
    hold_for_resize(s, p, code // levels, code % levels)
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
