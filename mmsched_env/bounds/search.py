"""Depth-first branch and bound over copies of the simulator's records, compiled.

A node is a decision point, its children the legal actions. What a node can cost at least: the flow time so far, and for
every unfinished request the time until it could be done if it had all devices to itself from now on.
"""

import numpy as np

from ..sim.jit import compiled, entry_point
from ..sim.kernel.batching import context_tokens, finished_iterations
from ..sim.kernel.costs import chunk_const, prefill_seconds
from ..sim.kernel.step import decide
from ..sim.kernel.transfers import operation_left
from ..sim.state import (
    CHUNK,
    DECODE,
    DECODING,
    DONE,
    EMPTY,
    EVICTING,
    FUTURE,
    LOADING,
    PREFILL,
    TERM_FLOW_TIME,
)

ADVANTAGE_S = 1e-9
"""a schedule must be so much better, in weighted seconds, to count as better"""


@compiled
def token_seconds(p, m, g, k, context):
    """Least seconds of an iteration that gives a token to a request of so many context tokens."""
    slope_gpu = p.depth_gpu[m, g, 0]
    slope_cpu = p.depth_cpu[m, g, 0]
    for d in range(1, p.depth_gpu.shape[2]):
        slope_gpu = min(slope_gpu, p.depth_gpu[m, g, d])
        slope_cpu = min(slope_cpu, p.depth_cpu[m, g, d])
    attention = p.gpu_kv[m, g, k] * slope_gpu * context
    gpu = p.gpu_base[m, g, k] + p.gpu_head[m, g, k]
    cpu = p.cpu_base[m, g, k] + p.cpu_head[m, g, k] + p.cpu_kv[m, g, k] * slope_cpu * context
    alone = p.iter_const[m, g, k] + gpu + attention + cpu
    if p.units_on_gpu[m, k] == p.num_units[m]:
        return alone
    beside_a_streamed_chunk = chunk_const(p, m, g, k, p.ubatch_tokens) + gpu + attention + p.cpu_head[m, g, k]
    return min(alone, beside_a_streamed_chunk)


@compiled
def service_table(p, r, num_requests, service, token):
    """service [R, G, K]: seconds of prefill and decoding alone; token [R, G, K]: of one token at its shortest context."""
    for j in range(num_requests):
        m = r[j].model
        prompt = r[j].prompt_tokens + r[j].image_tokens
        for g in range(p.num_gpus):
            for k in range(p.level_value.shape[0]):
                token[j, g, k] = token_seconds(p, m, g, k, prompt)
                total = prefill_seconds(p, m, g, k, prompt) + r[j].image_tokens * p.encode_s[m, g]
                for n in range(1, r[j].output_tokens):
                    total += token_seconds(p, m, g, k, prompt + n)
                service[j, g, k] = total if p.level_valid[m, k] == 1 else np.inf


@compiled
def ready_after(s, p, i):
    """Seconds until instance i could serve a request at the earliest."""
    if s.inst_phase[i] == LOADING:
        return operation_left(s, i)
    return 0.0


@compiled
def load_seconds(s, p, m, g, k):
    missing = max(0, p.file_bytes[m] - s.cache_valid[p.gpu_host[g], m])
    return p.init_s[m, g] + missing / p.disk_cap[m, g] + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g]


@compiled
def tokens_left(s, p, r, j):
    """Output tokens request j needs after the running iteration, at least."""
    left = r[j].output_tokens - r[j].generated
    i = r[j].instance
    if r[j].phase != DECODE:
        return max(0, left - 1)  # the end of its prefill gives a token
    if s.it_kind[i] == DECODING or s.it_kind[i] == CHUNK:
        left -= s.it_before[i] + finished_iterations(s, i) + 1
    return max(0, left)


@compiled
def left_at_least(s, p, r, service, token):
    """Weighted flow time that is still to come, at least."""
    total = 0.0
    gpus = p.num_gpus
    levels = p.level_value.shape[0]
    for m in range(p.num_models):
        first_s = -1.0  # when its first unfinished request is there: before, nothing can load the model
        for j in range(s.num_requests):
            if r[j].model != m or r[j].phase == DONE:
                continue
            since = max(s.now, r[j].arrival_s)
            if first_s < 0.0:
                first_s = since
            done_s = np.inf
            for g in range(gpus):
                i = s.inst_at[g, m]
                there = i >= 0 and s.inst_phase[i] != EMPTY and s.inst_phase[i] != EVICTING
                for k in range(levels):
                    if p.level_valid[m, k] == 0:
                        continue
                    if not there:
                        ready_s = first_s + load_seconds(s, p, m, g, k)
                    elif s.inst_level[i] == k:
                        ready_s = s.now + ready_after(s, p, i)
                    else:
                        ready_s = s.now + (0.0 if p.allow_offload == 1 else load_seconds(s, p, m, g, k))
                    rest = service[j, g, k]
                    begun = r[j].phase == PREFILL or r[j].phase == DECODE
                    if begun or r[j].generated > 0 or (r[j].phase != FUTURE and context_tokens(r[j]) > 0):
                        rest = tokens_left(s, p, r, j) * token[j, g, k]
                    done_s = min(done_s, max(since, ready_s) + rest)
            total += r[j].weight * (done_s - since)
    return total


@compiled
def key_of(s, p, action):
    """Number of an action that stays the same while others are taken at the same instant; -1 for WAIT."""
    if action == 0:
        return -1
    per_request = s.gpu_used.shape[0] * p.level_value.shape[0]
    dispatches = s.window.shape[0] * per_request
    code = action - 1
    if code < dispatches:
        return s.window[code // per_request] * per_request + code % per_request
    return s.num_requests * per_request + code - dispatches


@compiled
def legal_before(s, p, key):
    """Was the action of this key legal at node s?"""
    per_request = s.gpu_used.shape[0] * p.level_value.shape[0]
    dispatches = s.window.shape[0] * per_request
    code = key - s.num_requests * per_request
    if code >= 0:
        return s.mask[1 + dispatches + code] == 1
    j = key // per_request
    for q in range(s.window.shape[0]):
        if s.window[q] == j:
            return s.mask[1 + q * per_request + key % per_request] == 1
    return False


@compiled
def first_action(s):
    """Children are tried from the last action to WAIT."""
    return s.mask.shape[0] - 1


@entry_point
def search(params, states, requests, logs, outcomes, limit, max_nodes, best_actions):
    """Cheapest way from node 0 to the end, if it costs less than `limit`.

    `states` [D], `requests` [D, R] and `logs` [D, 1] are a stack whose entry 0 is the start; `best_actions` [D] is filled
    in. Returns (weighted flow time, actions, nodes visited, 1 if the search was complete).
    """
    p = params[0]
    depth = states.shape[0]
    size = requests.shape[1]
    service = np.zeros((size, p.num_gpus, p.level_value.shape[0]))
    token = np.zeros(service.shape)
    service_table(p, requests[0], states[0].num_requests, service, token)
    cost = np.zeros(depth)
    action = np.zeros(depth, np.int64)  # next to try at each node of the path
    taken = np.zeros(depth, np.int64)
    key = np.full(depth, -1)  # of the action that led to the node
    best = limit
    found = 0
    nodes = 0
    complete = 1
    d = 0
    action[0] = first_action(states[0])
    while d >= 0:
        a = action[d]
        if a < 0:
            d -= 1
            continue
        action[d] = a - 1
        if states[d].mask[a] == 0:
            continue
        if nodes >= max_nodes:
            return best, found, nodes, 0
        own = key_of(states[d], p, a)
        if d > 0 and 0 <= own < key[d] and legal_before(states[d - 1], p, own):
            continue  # the same two actions in the other order are another node
        nodes += 1
        states[d + 1] = states[d]
        for j in range(states[d].num_requests):
            requests[d + 1, j] = requests[d, j]
        s = states[d + 1]
        r = requests[d + 1]
        decide(s, p, r, logs[d + 1], a, outcomes[0])
        if outcomes[0].stalled == 1:
            continue
        taken[d] = a
        cost[d + 1] = cost[d] + s.terms[TERM_FLOW_TIME]
        if outcomes[0].terminated == 1:
            if cost[d + 1] < best - ADVANTAGE_S:
                best = cost[d + 1]
                found = d + 1
                for n in range(found):
                    best_actions[n] = taken[n]
            continue
        if cost[d + 1] + left_at_least(s, p, r, service, token) >= best - ADVANTAGE_S:
            continue
        if d + 2 >= depth:
            complete = 0
            continue
        same_instant = a > 0 and s.now == states[d].now
        key[d + 1] = own if same_instant else -1
        d += 1
        action[d] = first_action(states[d])
    return best, found, nodes, complete
