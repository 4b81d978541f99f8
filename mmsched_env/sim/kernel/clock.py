"""Time: the next event, and everything that happens at one instant, in a fixed order."""

import numpy as np

from .. import events
from ..jit import compiled
from ..state import (
    DECODE,
    NO_PENDING,
    QUEUED,
    SAME_INSTANT_S,
    TERM_FLOW_TIME,
    UNIT_DELAY,
)
from . import waiting
from .batching import end_iterations, plan_all, share_devices
from .logbook import record
from .memory import mark, slots_of
from .operations import end_stage, run_pending
from .requests import drop, drop_time, end_restore, finish, start_over, start_restores
from .transfers import delay_over, finish_unit, share_resources


@compiled
def next_drop(s, p, r):
    """Drop time of the waiting request that is dropped first; inf if requests are never dropped."""
    t = np.inf
    if p.drop_after < np.inf:
        j = s.queue_head
        while j >= 0:
            if r[j].phase == QUEUED:
                t = min(t, drop_time(p, r[j]))
            j = r[j].next
    return t


@compiled
def next_on(s, g):
    """When the first iteration or transfer on GPU g ends; inf: none is under way."""
    t = np.inf
    instances = s.it_end.shape[0]
    for i in slots_of(s, g):
        t = min(t, s.it_end[i], s.unit_end[i], s.unit_end[instances + i])
    return t


@compiled
def next_event(s, p, r):
    """Time of the next event; inf if nothing will ever happen."""
    t = np.inf
    for g in range(s.gpu_next.shape[0]):
        if s.stirred[g] == 1:
            s.stirred[g] = 0
            s.gpu_next[g] = next_on(s, g)
        t = min(t, s.gpu_next[g])
    if s.num_arrived < s.num_requests:
        t = min(t, r[s.num_arrived].arrival_s)
    t = min(t, next_drop(s, p, r))
    return max(t, s.now)


@compiled
def let_time_pass(s, until):
    seconds = until - s.now
    s.terms[TERM_FLOW_TIME] += s.weight_in_system * seconds
    for g in range(s.gpu_busy.shape[0]):
        if s.gpu_busy[g] > 0:
            s.gpu_busy_s[g] += seconds
    s.now = until


@compiled
def advance(s, p, r, log):
    """Run on to the next decision point. Returns False if nothing is left to happen or the time limit is reached."""
    s.decision = 0
    s.ran = 1
    while s.decision == 0:
        start_restores(s, p, r, log)
        plan_all(s, p, r, log)
        share_devices(s, p)
        share_resources(s, p)
        t = next_event(s, p, r)
        if t > p.max_time_s:
            let_time_pass(s, p.max_time_s)
            return False
        if t == np.inf:
            return False
        let_time_pass(s, t)
        one_instant(s, p, r, log, t + SAME_INSTANT_S)
    return True


@compiled
def due(s, g, limit):
    """May something on GPU g end by `limit`?"""
    return s.stirred[g] == 1 or s.gpu_next[g] <= limit


@compiled
def one_instant(s, p, r, log, limit):
    """Process all events up to `limit`: iteration ends, then transfers, drops, arrivals, each by index."""
    for g in range(s.gpu_next.shape[0]):
        if due(s, g, limit):
            for i in slots_of(s, g):
                if s.it_end[i] <= limit:
                    end_of_iterations(s, p, r, log, i)
    instances = s.it_end.shape[0]
    for first in range(0, 2 * instances, instances):  # operations, then restores
        for g in range(s.gpu_next.shape[0]):
            if due(s, g, limit):
                for i in slots_of(s, g):
                    if s.unit_end[first + i] <= limit:
                        end_of_unit(s, p, r, log, first + i)
    if p.drop_after < np.inf:
        drop_overdue(s, p, r, log, limit)
    while s.num_arrived < s.num_requests and r[s.num_arrived].arrival_s <= limit:
        arrive(s, r, log)


@compiled
def drop_overdue(s, p, r, log, limit):
    j = s.queue_head
    while j >= 0:
        after = r[j].next
        if r[j].phase == QUEUED and drop_time(p, r[j]) <= limit:
            drop(s, p, r, log, j)
        j = after


@compiled
def end_of_iterations(s, p, r, log, i):
    mark(s, i)
    prompted = end_iterations(s, p, r, i)
    if prompted >= 0 and r[prompted].first_token_s < 0.0:
        r[prompted].first_token_s = s.now
        record(s, log, events.FIRST_TOKEN, prompted, i, r[prompted].model, s.inst_level[i], 0.0)
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and r[j].phase == DECODE and r[j].generated >= r[j].output_tokens:
            finish(s, p, r, log, i, b)
    if s.inst_pending[i] != NO_PENDING:
        run_pending(s, p, r, log, i)


@compiled
def end_of_unit(s, p, r, log, unit):
    instances = s.inst_model.shape[0]
    mark(s, unit if unit < instances else unit - instances)
    if s.unit_phase[unit] == UNIT_DELAY:
        if not delay_over(s, unit):
            return
    else:
        finish_unit(s, unit)
    if unit < instances:
        end_stage(s, p, r, log, unit)
    else:
        end_restore(s, p, r, log, unit - instances)


@compiled
def arrive(s, r, log):
    j = s.num_arrived
    s.num_arrived += 1
    s.num_in_system += 1
    s.weight_in_system += r[j].weight
    start_over(r[j])
    r[j].phase = QUEUED
    waiting.push(s, r, j)
    waiting.count_arrival(s, r[j].model)
    record(s, log, events.ARRIVE, j, -1, r[j].model, -1, 0.0)
    s.decision = 1
