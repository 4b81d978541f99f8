"""The simulator's own records moved on by what really happened in place of predicted times, compiled.

The transitions are the kernel's: a real load ends in the same function as a simulated one. No iteration is ever planned; what the
requests do is told. So the observation, the mask and the event log are the simulator's, of a real system.
"""

from mmsched_env.sim import events
from mmsched_env.sim.jit import compiled, entry_point
from mmsched_env.sim.kernel.actions import dispatch, write_mask
from mmsched_env.sim.kernel.batching import join_waiting
from mmsched_env.sim.kernel.clock import arrive, let_time_pass
from mmsched_env.sim.kernel.logbook import record
from mmsched_env.sim.kernel.memory import gpu_of
from mmsched_env.sim.kernel.operations import end_operation, release_saved, run_pending
from mmsched_env.sim.kernel.requests import end_restore, finish, start_restores
from mmsched_env.sim.kernel.step import start
from mmsched_env.sim.kernel.transfers import finish_unit
from mmsched_env.sim.state import (
    DECODE,
    NO_PENDING,
    NUM_SCOPES,
    OP_LOAD,
    PENDING_PREEMPT,
    PENDING_PREEMPT_REQUEST,
    PREFILL,
    READY,
    SCOPE_REQUEST,
    UNIT_DELAY,
)

ARRIVAL, TOKEN, SAVED, OPERATION, RESTORED, DRAINED = range(6)
"""what can happen; its index: a request (TOKEN), an instance (the others), nothing (ARRIVAL)"""


@compiled
def token(s, p, r, log, j):
    """Request j got a token; the first one ends its prefill, the last one finishes it."""
    r[j].generated += 1
    if r[j].phase == PREFILL:
        r[j].prefill_left = 0
        r[j].phase = DECODE
    i = r[j].instance
    if r[j].first_token_s < 0.0:
        r[j].first_token_s = s.now
        record(s, log, events.FIRST_TOKEN, j, i, r[j].model, r[j].level, 0.0)
    if r[j].generated >= r[j].output_tokens:
        for b in range(s.seat.shape[1]):
            if s.seat[i, b] == j:
                finish(s, p, r, log, i, b)


@compiled
def operation_over(s, p, r, log, i):
    """All stages of instance i's operation are over."""
    if s.op[i] == OP_LOAD:
        g = gpu_of(s, i)
        s.cache_valid[p.gpu_host[g], s.inst_model[i]] = s.cached[p.gpu_host[g], s.inst_model[i]]
    finish_unit(s, i)
    end_operation(s, p, r, log, i)


@compiled
def expect_ends(s):
    """Every transfer as one delay of its predicted length: stages are not seen from outside. Overdue: any moment now."""
    instances = s.inst_phase.shape[0]
    for unit in range(s.unit_end.shape[0]):
        if s.unit_phase[unit] != UNIT_DELAY:
            continue
        if s.unit_bytes[unit] > 0:
            s.unit_end[unit] += s.unit_bytes[unit] / s.unit_cap[unit]
            s.unit_bytes[unit] = 0
        if unit < instances:
            s.unit_end[unit] += s.op_rest_s[unit]
            s.op_rest_s[unit] = 0.0
        s.unit_end[unit] = max(s.unit_end[unit], s.now)


@compiled
def count_busy(s, log):
    """Which instances compute, for the log and the seconds that their GPUs are busy."""
    s.gpu_busy[:] = 0
    for i in range(s.inst_phase.shape[0]):
        busy = s.num_running[i] > 0
        if busy:
            s.gpu_busy[gpu_of(s, i)] += 1
        if busy != (s.inst_busy[i] == 1):
            s.inst_busy[i] = busy
            kind = events.BUSY_START if busy else events.BUSY_END
            record(s, log, kind, -1, i, s.inst_model[i], s.inst_level[i], 0.0)


@entry_point
def begin(state):
    """Set what is not zero in a fresh record."""
    start(state[0])


@entry_point
def happen(state, params, requests, logs, now, kind, index):
    """Something happened at `now` (s, not before the clock)."""
    s = state[0]
    p = params[0]
    r = requests[0]
    log = logs[0]
    let_time_pass(s, max(now, s.now))
    if kind == ARRIVAL:
        arrive(s, r, log)
    elif kind == TOKEN:
        token(s, p, r, log, index)
    elif kind == SAVED:
        release_saved(s, p, r, log, index)
    elif kind == OPERATION:
        operation_over(s, p, r, log, index)
    elif kind == RESTORED:
        finish_unit(s, s.inst_model.shape[0] + index)
        end_restore(s, p, r, log, index)
    elif kind == DRAINED:
        run_pending(s, p, r, log, index)


@entry_point
def act(state, params, requests, logs, action):
    """Carry out a legal action other than WAIT. A PREEMPT waits for DRAINED: real iterations end when they end."""
    s = state[0]
    gpus = s.gpu_used.shape[0]
    levels = params[0].level_value.shape[0]
    code = action - 1
    dispatches = s.window.shape[0] * gpus * levels
    if code < dispatches:
        j = s.window[code // (gpus * levels)]
        dispatch(s, params[0], requests[0], logs[0], j, code // levels % gpus, code % levels)
    else:
        code -= dispatches
        whole = code % NUM_SCOPES != SCOPE_REQUEST
        s.inst_pending[code // NUM_SCOPES] = PENDING_PREEMPT if whole else PENDING_PREEMPT_REQUEST


@entry_point
def settle(state, params, requests, logs):
    """Start what can start, write the mask. Returns the number of legal actions besides WAIT."""
    s = state[0]
    r = requests[0]
    log = logs[0]
    start_restores(s, params[0], r, log)
    for i in range(s.inst_phase.shape[0]):
        if s.inst_phase[i] == READY and s.inst_pending[i] == NO_PENDING:
            join_waiting(s, r, log, i)
    expect_ends(s)
    count_busy(s, log)
    return write_mask(s, params[0], r)
