"""Deliberate faults: a piece of the kernel's text and what to put in its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    what: str
    file: str  # in mmsched_env/sim/kernel
    old: str  # stands there exactly once
    new: str


FAULTS = (
    Fault("gpu-not-shared", "instances on one GPU do not slow each other", "batching.py", "share_gpu = (max(1, s.gpu_busy[g])", "share_gpu = (1"),
    Fault("bandwidth", "every transfer gets the whole link", "transfers.py", "share = left / waiting", "share = left"),
    Fault("retime", "a change of sharing starts the running iteration anew", "batching.py", "s.it_start[i] = s.now - fraction * first_seconds(s, i)", "s.it_start[i] = s.now"),
    Fault("knot", "a decode plan runs past a knot of the depth table", "batching.py", "if segment + 1 < p.depth_knot.shape[2] and", "if segment < 0 and"),
    Fault("streaming", "prompts of just the streaming limit are not streamed", "costs.py", "tokens >= p.stream_min_tokens[g]", "tokens > p.stream_min_tokens[g]"),
    Fault("off-by-one", "a request decodes one token too many", "batching.py", "left = r[j].output_tokens - r[j].generated", "left = r[j].output_tokens - r[j].generated + 1"),
    Fault("mixed", "decoding requests get no token beside a chunk", "batching.py", "if kind == DECODING or p.prefill_mode == MIXED:", "if kind == DECODING:"),
    Fault("kv-not-freed", "KV is not freed when a seat is left", "requests.py", "    reserve_kv(s, p, r[j], i, s.inst_level[i], -1)\n", ""),
    Fault("swap-not-freed", "swap is not freed after a restore", "memory.py", "        s.host_swap[request.saved_host] -= saved_bytes(p, request)\n", ""),
    Fault("hold-not-freed", "the swap held for a reload stays held", "operations.py", "    s.host_swap[h] -= s.inst_hold_swap[i]\n", ""),
    Fault("buffer-not-freed", "an unload leaves the compute buffer", "operations.py", "s.gpu_used[g] -= footprint(s, p, g, m, s.inst_level[i])", "s.gpu_used[g] -= footprint(s, p, g, m, s.inst_level[i]) - p.buffer_bytes[m]"),
    Fault("lost-request", "a preempted request is not put back into the queue", "requests.py", "    waiting.push(s, r, j)\n", ""),
    Fault("free-progress", "a preempted request keeps its progress without saved KV", "requests.py", "        start_over(r[j])\n    record(s, log, events.PREEMPT", "        pass\n    record(s, log, events.PREEMPT"),
    Fault("victim", "PREEMPT takes the shortest request", "operations.py", "left > most or (left == most", "left < most or (left == most"),
    Fault("image-not-encoded-again", "images are not encoded again when a request starts over", "requests.py", "    request.encoded = 0\n", ""),
    Fault("lru", "the most recently used weights are evicted", "memory.py", "s.cache_used_s[h, m] < s.cache_used_s[h, victim]", "s.cache_used_s[h, m] > s.cache_used_s[h, victim]"),
    Fault("always-cold", "a load reads the whole file though it is cached", "memory.py", "missing = p.file_bytes[m] - s.cache_valid[h, m]", "missing = p.file_bytes[m]"),
    Fault("join-while-saving", "DISPATCH is legal while a request of the instance is saved", "actions.py", "if phase == READY and s.op[i] != NO_OP:", "if phase == READY and s.op[i] < 0:"),
    Fault("preempt-while-restoring", "PREEMPT and OFFLOAD are legal during a restore", "actions.py", " and s.restore_request[i] < 0\n", "\n"),
    Fault("drop-while-saving", "requests are dropped while their KV is being saved", "clock.py", "if r[j].phase == QUEUED and drop_time(p, r[j]) <= limit:", "if drop_time(p, r[j]) <= limit:"),
    Fault("load-never-fails", "a load takes its true footprint whether or not it fits", "operations.py", "    if s.gpu_used[g] + more > p.gpu_bytes[g]:\n        return False\n", ""),
    Fault("operation-free", "an operation does not slow the iterations of a device that copies itself", "batching.py", " + p.operation_share[g] * s.gpu_operations[g])", ")"),
    Fault("operation-undisturbed", "iterations do not slow an operation on such a device", "batching.py", "(s.gpu_busy[g] + s.gpu_operations[g] - 1)", "(s.gpu_operations[g] - 1)"),
    Fault("no-interference", "busy GPUs of a host do not slow each other", "batching.py", "slow = 1.0 + p.interference[h] *", "slow = 1.0 + 0.0 *"),
    Fault("kept-observation", "what policies see of a cached model is not brought up to date", "memory.py", "            mark_all(s, g, m)\n", "            pass\n"),
)  # fmt: skip
