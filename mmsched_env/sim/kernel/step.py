"""The way in: one decision of every environment in a batch. The single environment is a batch of one."""

import numpy as np

from ..jit import compiled, kernel_entry_point
from .actions import apply, clear_mask, write_mask
from .arrays import copy, fill
from .clock import advance
from .encoder import encode

OUTCOME = np.dtype(
    [
        ("reward", "f8"),
        ("terminated", "u1"),  # the trace is drained
        ("truncated", "u1"),  # time or step limit
        ("illegal", "u1"),  # the action was not legal and counted as WAIT
        ("stalled", "u1"),  # nothing is left to happen though requests wait: an internal error
    ]
)


@compiled
def drained(s):
    return s.num_done + s.num_dropped == s.num_requests


@compiled
def ended(s, p):
    return drained(s) or s.now >= p.max_time_s


@compiled
def to_decision(s, p, r, log, moved):
    """Go on until a decision point with a choice. Returns False if the environment is stalled."""
    while not ended(s, p):
        if moved and write_mask(s, p, r) > 0:
            return True
        if not advance(s, p, r, log) and not ended(s, p):
            return False
        moved = True
    clear_mask(s, p)
    s.mask[0] = 1
    return True


@compiled
def start(s):
    """Set what is not zero in a fresh record."""
    s.started = 1
    s.queue_head = -1
    s.queue_tail = -1
    s.window[:] = -1
    s.inst_at[:] = -1
    s.inst_model[:] = -1
    s.seat[:] = -1
    s.it_request[:] = -1
    s.it_end[:] = np.inf
    s.gpu_next[:] = np.inf
    s.restore_request[:] = -1
    s.unit_resource[:] = -1
    s.unit_end[:] = np.inf


@compiled
def decide(s, p, r, log, action, outcome):
    fill(s.terms, 0.0)
    s.num_steps += 1
    legal = 0 <= action < s.mask.shape[0] and s.mask[action] == 1
    outcome.illegal = 0 if legal else 1
    if legal and action > 0:
        apply(s, p, r, log, action)
        alive = to_decision(s, p, r, log, True)
    elif s.mask[0] == 1:
        alive = to_decision(s, p, r, log, False)
    else:
        alive = True  # WAIT would wait for ever
    reward = 0.0
    for term in range(s.terms.shape[0]):
        reward -= p.reward_weights[term] * s.terms[term]
    outcome.reward = reward
    outcome.terminated = 1 if drained(s) else 0
    limit = s.now >= p.max_time_s or s.num_steps >= p.max_steps
    outcome.truncated = 1 if limit and not drained(s) else 0
    outcome.stalled = 0 if alive else 1


@kernel_entry_point
def step_batch(
    state,
    params,
    requests,
    logs,
    actions,
    outcomes,
    flat,
    rows,
    mask,
):
    """Take one action in every environment, run to its next decision point and bring its observation up to date: `rows` by
    block and field, `flat` the same memory as float32 values.

    Environments that have been zeroed begin instead; that there is one way in keeps compiling short.
    """
    for e in range(state.shape[0]):
        s = state[e]
        p = params[e % params.shape[0]]
        if s.started == 0:
            start(s)
            to_decision(s, p, requests[e], logs[e], False)
        else:
            decide(s, p, requests[e], logs[e], actions[e], outcomes[e])
        encode(s, p, requests[e], flat[e], rows[e])
        copy(mask[e], s.mask)


@kernel_entry_point
def present_batch(state, params, requests, flat, rows, mask):
    """Write the observations of environments as they stand, all of them: their records have been put back."""
    for e in range(state.shape[0]):
        p = params[e % params.shape[0]]
        state[e].encoded = 0
        encode(state[e], p, requests[e], flat[e], rows[e])
        copy(mask[e], state[e].mask)
