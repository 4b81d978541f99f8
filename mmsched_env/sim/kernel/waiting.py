"""The queue of waiting requests, in arrival order, and the window of its oldest ones that policies see.

A linked list through the request records, in order of their indices: removal anywhere and arrival at the tail cost O(1); a
preempted request goes back to its place by arrival, which is near the head. The window is kept beside it: walking the
list at every decision would cost a cache miss for each request.
"""

from math import exp

from ..jit import compiled
from ..state import QUEUED

GONE = -2
RATE_WINDOW_S = 60.0
"""time constant of the per-model arrival rate estimate"""


@compiled
def push(s, r, j):
    """Put request j into the queue at its place by arrival."""
    slot = slot_for(s, j)
    after = before_slot(s, r, j, slot)
    before = s.queue_head if after < 0 else r[after].next
    r[j].previous = after
    r[j].next = before
    if after < 0:
        s.queue_head = j
    else:
        r[after].next = j
    if before < 0:
        s.queue_tail = j
    else:
        r[before].previous = j
    for q in range(s.window.shape[0] - 1, slot, -1):
        s.window[q] = s.window[q - 1]
    if slot < s.window.shape[0]:
        s.window[slot] = j
    r[j].phase = QUEUED
    s.queue_length += 1
    s.model_queued[r[j].model] += 1
    s.model_queued_weight[r[j].model] += r[j].weight


@compiled
def slot_for(s, j):
    """The window's slot for request j; the number of slots: it is beyond the window."""
    slot = 0
    while slot < s.window.shape[0] and 0 <= s.window[slot] < j:
        slot += 1
    return slot


@compiled
def before_slot(s, r, j, slot):
    """The waiting request that comes before j, which belongs into `slot`; -1: none."""
    if slot < s.window.shape[0] or s.queue_tail < j:
        return s.queue_tail if s.queue_tail < j else (s.window[slot - 1] if slot > 0 else -1)
    after = s.window[slot - 1]
    while r[after].next < j:  # the tail comes after j
        after = r[after].next
    return after


@compiled
def remove(s, r, j):
    before = r[j].previous
    after = r[j].next
    if before < 0:
        s.queue_head = after
    else:
        r[before].next = after
    if after < 0:
        s.queue_tail = before
    else:
        r[after].previous = before
    leave_window(s, r, j, after)
    r[j].previous = -1
    r[j].next = -1
    for q in range(s.encoded_window.shape[0]):
        if s.encoded_window[q] == j:
            s.encoded_window[q] = GONE
    s.queue_length -= 1
    s.model_queued[r[j].model] -= 1
    s.model_queued_weight[r[j].model] -= r[j].weight


@compiled
def leave_window(s, r, j, after):
    """Close the gap request j leaves; `after` came next."""
    slots = s.window.shape[0]
    last = s.window[slots - 1]
    if j > last >= 0:
        return
    at = 0
    while s.window[at] != j:
        at += 1
    for q in range(at, slots - 1):
        s.window[q] = s.window[q + 1]
    if last == j:
        s.window[slots - 1] = after
    elif last >= 0:
        s.window[slots - 1] = r[last].next


@compiled
def count_arrival(s, m):
    """Exponentially decayed counts of the models' arrivals: rate estimates once divided by RATE_WINDOW_S."""
    decay = exp((s.arrivals_s - s.now) / RATE_WINDOW_S)
    for other in range(s.model_arrivals.shape[0]):
        s.model_arrivals[other] *= decay
    s.model_arrivals[m] += 1.0
    s.arrivals_s = s.now


@compiled
def rate_per_arrival(s):
    """What the counts are to be multiplied with now."""
    return exp((s.arrivals_s - s.now) / RATE_WINDOW_S) / RATE_WINDOW_S
