"""The queue of waiting requests, in arrival order, and the window of its oldest ones that policies see.

A linked list through the request records: removal anywhere and arrival at the tail cost O(1); a preempted request
goes back to its place by arrival, which is near the head.
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
    after = s.queue_tail
    if after > j:  # comes back from an instance: search from the head, where the old ones are
        after = -1
        scan = s.queue_head
        while scan >= 0 and scan < j:
            after = scan
            scan = r[scan].next
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
    r[j].phase = QUEUED
    s.queue_length += 1
    s.model_queued[r[j].model] += 1
    s.model_queued_weight[r[j].model] += r[j].weight


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
    r[j].previous = -1
    r[j].next = -1
    for q in range(s.encoded_window.shape[0]):
        if s.encoded_window[q] == j:
            s.encoded_window[q] = GONE
    s.queue_length -= 1
    s.model_queued[r[j].model] -= 1
    s.model_queued_weight[r[j].model] -= r[j].weight


@compiled
def fill_window(s, r):
    scan = s.queue_head
    for q in range(s.window.shape[0]):
        s.window[q] = scan
        if scan >= 0:
            scan = r[scan].next


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
