"""What an instance's operations consist of (load, evict, save a request, resize) and what follows each stage."""

from .. import events
from ..jit import compiled
from ..state import (
    BOUND,
    DECODE,
    EMPTY,
    EVICTING,
    LOADING,
    MOVE,
    NO_OP,
    NO_PENDING,
    NUM_STAGES,
    OP_EVICT,
    OP_LOAD,
    OP_RESIZE,
    OP_SAVE_REQUEST,
    PENDING_PREEMPT,
    PENDING_PREEMPT_REQUEST,
    PENDING_RESIZE,
    PREFILL,
    QUEUED,
    READY,
    RESIZING,
    SAVING,
    STAGE_DISK,
    STAGE_INIT,
    STAGE_MOVE_OUT,
    STAGE_RESTORE,
    STAGE_SAVE,
    STAGE_UNLOAD,
    STAGE_WEIGHTS,
)
from .batching import resident_tokens
from .logbook import record
from .memory import (
    admit_to_cache,
    footprint,
    footprint_with,
    gpu_of,
    mark_all,
    repin,
    set_valid,
    shrink_cache,
)
from .requests import free_seat, take_off
from .transfers import clear_stages, seconds_after, stage_cap, stage_resource, start_unit

# ---------------------------------------------------------------- running the stages of an operation


@compiled
def begin(s, p, r, log, i, op):
    """Start operation `op` on instance i; its stages have been filled in."""
    s.op[i] = op
    s.op_stage[i] = -1
    next_stage(s, p, r, log, i)


@compiled
def next_stage(s, p, r, log, i):
    """Go on to the next stage that takes time; after the last one the operation has ended."""
    for stage in range(s.op_stage[i] + 1, NUM_STAGES):
        if s.stage_s[i, stage] > 0.0 or s.stage_bytes[i, stage] > 0:
            s.op_stage[i] = stage
            s.op_rest_s[i] = seconds_after(s, p, i, stage)
            start_unit(
                s,
                i,
                s.stage_s[i, stage],
                s.stage_bytes[i, stage],
                stage_resource(s, p, i, stage),
                stage_cap(s, p, i, stage),
            )
            return
    end_operation(s, p, r, log, i)


@compiled
def end_stage(s, p, r, log, i):
    """The running stage of instance i's operation is over."""
    stage = s.op_stage[i]
    if stage == STAGE_INIT and s.op[i] == OP_LOAD and not allocated(s, p, i):
        fail_load(s, p, r, log, i)
        return
    if stage == STAGE_SAVE and s.op[i] != OP_RESIZE:
        release_saved(s, p, r, log, i)
    elif stage == STAGE_DISK:
        h = p.gpu_host[gpu_of(s, i)]
        m = s.inst_model[i]
        set_valid(s, p, h, m, s.cached[h, m])
    next_stage(s, p, r, log, i)


@compiled
def release_saved(s, p, r, log, i):
    """The KV of preempted requests has reached host RAM: they can be dispatched again."""
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and r[j].phase == SAVING:
            r[j].phase = QUEUED
            free_seat(s, p, r, i, b)
            record(s, log, events.SAVE_END, j, i, r[j].model, s.inst_level[i], r[j].saved_tokens)
    s.decision = 1


@compiled
def end_operation(s, p, r, log, i):
    op = s.op[i]
    s.op[i] = NO_OP
    s.op_stage[i] = -1
    s.decision = 1
    if op == OP_LOAD:
        end_load(s, r, log, i)
    elif op == OP_EVICT:
        end_evict(s, p, log, i)
    elif op == OP_RESIZE:
        end_resize(s, p, r, log, i)


# ---------------------------------------------------------------- load and evict


@compiled
def start_load(s, p, r, log, i, m, k):
    """Load model m at level k into the empty slot i: engine start, disk -> RAM of what is not cached, RAM -> GPU."""
    g = gpu_of(s, i)
    h = p.gpu_host[g]
    s.inst_model[i] = m
    s.inst_phase[i] = LOADING
    s.inst_level[i] = k
    s.inst_new_level[i] = k
    s.inst_at[g, m] = i
    mark_all(s, g, m)
    s.inst_uses[i] = 0
    s.inst_used_s[i] = s.now
    s.gpu_used[g] += footprint(s, p, g, m, k)
    s.inst_cpu_weights[i] = p.cpu_weight_bytes[m, k]
    repin(s, p, h, m)
    s.num_loads += 1
    record(s, log, events.LOAD_START, -1, i, m, k, 0.0)
    clear_stages(s, i)
    fill_load_stages(s, p, i, g, h, m, k)
    begin(s, p, r, log, i, OP_LOAD)


@compiled
def fill_load_stages(s, p, i, g, h, m, k):
    s.stage_s[i, STAGE_INIT] = p.init_s[m, g]
    s.stage_bytes[i, STAGE_DISK] = admit_to_cache(s, p, h, m)
    s.stage_bytes[i, STAGE_WEIGHTS] = p.gpu_weight_bytes[m, k]


@compiled
def allocated(s, p, i):
    """The engine has started and asks for the true footprint: take it if it fits."""
    g = gpu_of(s, i)
    m = s.inst_model[i]
    k = s.inst_level[i]
    more = footprint_with(p, m, k, s.footprint_hidden[g, m]) - footprint(s, p, g, m, k)
    if s.gpu_used[g] + more > p.gpu_bytes[g]:
        return False
    s.gpu_used[g] += more
    s.footprint_extra[g, m] = s.footprint_hidden[g, m]
    mark_all(s, g, m)
    return True


@compiled
def fail_load(s, p, r, log, i):
    """Out of memory: the requests go back to the queue, the instance is unloaded."""
    g = gpu_of(s, i)
    m = s.inst_model[i]
    s.num_failed_loads += 1
    wanted = footprint_with(p, m, s.inst_level[i], s.footprint_hidden[g, m])
    record(s, log, events.LOAD_FAILED, -1, i, m, s.inst_level[i], wanted)
    count_load_time(s, r, i)
    start_evict(s, p, r, log, i)
    s.decision = 1


@compiled
def count_load_time(s, r, i):
    """The instance's bound requests have waited for its load until now."""
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and r[j].phase == BOUND:
            r[j].load_s += s.now - r[j].bound_s


@compiled
def end_load(s, r, log, i):
    s.inst_phase[i] = READY
    s.inst_used_s[i] = s.now
    count_load_time(s, r, i)
    record(s, log, events.LOAD_END, -1, i, s.inst_model[i], s.inst_level[i], 0.0)


@compiled
def start_evict(s, p, r, log, i):
    """Preempt the whole instance: save the KV of its requests (or drop it), then unload."""
    g = gpu_of(s, i)
    clear_stages(s, i)
    s.inst_phase[i] = EVICTING
    s.num_unloads += 1
    record(s, log, events.UNLOAD_START, -1, i, s.inst_model[i], s.inst_level[i], 0.0)
    for b in range(s.seat.shape[1]):
        if s.seat[i, b] >= 0:
            moved = take_off(s, p, r, log, i, b)
            if moved >= 0:
                s.stage_s[i, STAGE_SAVE] += p.save_s[g]
                s.stage_bytes[i, STAGE_SAVE] += moved
    s.stage_s[i, STAGE_UNLOAD] = p.unload_s[s.inst_model[i], g, s.inst_level[i]]
    begin(s, p, r, log, i, OP_EVICT)


@compiled
def end_evict(s, p, log, i):
    g = gpu_of(s, i)
    m = s.inst_model[i]
    record(s, log, events.UNLOAD_END, -1, i, m, s.inst_level[i], 0.0)
    s.gpu_used[g] -= footprint(s, p, g, m, s.inst_level[i])
    s.footprint_extra[g, m] = s.footprint_hidden[g, m]  # news only after a load that failed
    s.inst_cpu_weights[i] = 0
    s.inst_at[g, m] = -1
    mark_all(s, g, m)
    s.inst_phase[i] = EMPTY
    s.inst_model[i] = -1
    repin(s, p, p.gpu_host[g], m)


# ---------------------------------------------------------------- preempting one request


@compiled
def longest_request(s, r, i):
    """Seat of the running request with the largest predicted remaining length (ties: the oldest); -1: none."""
    best = -1
    most = 0.0
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j < 0 or (r[j].phase != PREFILL and r[j].phase != DECODE):
            continue
        left = r[j].predicted_tokens - r[j].generated
        if best < 0 or left > most or (left == most and j < s.seat[i, best]):
            best = b
            most = left
    return best


@compiled
def preempt_longest(s, p, r, log, i):
    """Save or drop the KV of the longest request; the instance goes on with the others."""
    b = longest_request(s, r, i)
    if b < 0:  # all ended in the iteration that was waited for
        return
    moved = take_off(s, p, r, log, i, b)
    if moved >= 0:
        clear_stages(s, i)
        s.stage_s[i, STAGE_SAVE] = p.save_s[gpu_of(s, i)]
        s.stage_bytes[i, STAGE_SAVE] = moved
        begin(s, p, r, log, i, OP_SAVE_REQUEST)


# ---------------------------------------------------------------- resizing


@compiled
def resize_holds(s, p, i, k):
    """Extra bytes (GPU, pinned weights, CPU-side KV, swap) a resize of instance i to level k needs until it ends."""
    m = s.inst_model[i]
    old = s.inst_level[i]
    g = gpu_of(s, i)
    tokens = s.reserved_tokens[i]
    gpu = footprint(s, p, g, m, k) - footprint(s, p, g, m, old)
    gpu += tokens * (p.kv_gpu_bytes[m, k] - p.kv_gpu_bytes[m, old])
    pin = p.cpu_weight_bytes[m, k] - s.pinned[p.gpu_host[g], m]
    kv = tokens * (p.kv_cpu_bytes[m, k] - p.kv_cpu_bytes[m, old])
    swap = 0 if p.resize_mode == MOVE else tokens * p.kv_gpu_bytes[m, old]
    return max(0, gpu), max(0, pin), max(0, kv), swap


@compiled
def hold_for_resize(s, p, i, k):
    """From the decision on, the instance holds the larger of its old and new footprint in each memory."""
    g = gpu_of(s, i)
    h = p.gpu_host[g]
    m = s.inst_model[i]
    gpu, _, kv, swap = resize_holds(s, p, i, k)
    s.inst_new_level[i] = k
    s.inst_hold_gpu[i] = gpu
    s.inst_hold_kv[i] = kv
    s.inst_hold_swap[i] = swap
    s.gpu_used[g] += gpu
    s.host_kv[h] += kv
    s.host_swap[h] += swap
    s.inst_cpu_weights[i] = max(p.cpu_weight_bytes[m, k], p.cpu_weight_bytes[m, s.inst_level[i]])
    repin(s, p, h, m)
    shrink_cache(s, p, h, m)


@compiled
def start_resize(s, p, r, log, i):
    g = gpu_of(s, i)
    m = s.inst_model[i]
    old = s.inst_level[i]
    new = s.inst_new_level[i]
    s.inst_phase[i] = RESIZING
    s.num_resizes += 1
    record(s, log, events.RESIZE_START, -1, i, m, old, new)
    clear_stages(s, i)
    count = 0
    tokens = 0
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0 and resident_tokens(r[j]) > 0:
            count += 1
            tokens += resident_tokens(r[j])
    if p.resize_mode == MOVE:
        grown = p.gpu_weight_bytes[m, new] - p.gpu_weight_bytes[m, old]
        grown += tokens * (p.kv_gpu_bytes[m, new] - p.kv_gpu_bytes[m, old])
        s.stage_bytes[i, STAGE_RESTORE] = max(0, grown)
        s.stage_bytes[i, STAGE_MOVE_OUT] = max(0, -grown)
    else:
        s.stage_s[i, STAGE_SAVE] = count * p.save_s[g]
        s.stage_bytes[i, STAGE_SAVE] = tokens * p.kv_gpu_bytes[m, old]
        s.stage_s[i, STAGE_UNLOAD] = p.unload_s[m, g, old]
        fill_load_stages(s, p, i, g, p.gpu_host[g], m, new)
        s.stage_s[i, STAGE_RESTORE] = count * p.save_s[g]
        s.stage_bytes[i, STAGE_RESTORE] = tokens * p.kv_gpu_bytes[m, new]
    begin(s, p, r, log, i, OP_RESIZE)


@compiled
def end_resize(s, p, r, log, i):
    g = gpu_of(s, i)
    h = p.gpu_host[g]
    m = s.inst_model[i]
    old = s.inst_level[i]
    new = s.inst_new_level[i]
    tokens = s.reserved_tokens[i]
    s.gpu_used[g] += footprint(s, p, g, m, new) - footprint(s, p, g, m, old) - s.inst_hold_gpu[i]
    s.gpu_used[g] += tokens * (p.kv_gpu_bytes[m, new] - p.kv_gpu_bytes[m, old])
    s.host_kv[h] += tokens * (p.kv_cpu_bytes[m, new] - p.kv_cpu_bytes[m, old]) - s.inst_hold_kv[i]
    s.host_swap[h] -= s.inst_hold_swap[i]
    s.inst_hold_gpu[i] = 0
    s.inst_hold_kv[i] = 0
    s.inst_hold_swap[i] = 0
    s.inst_level[i] = new
    mark_all(s, g, m)
    s.inst_cpu_weights[i] = p.cpu_weight_bytes[m, new]
    if p.resize_mode == MOVE:
        set_valid(s, p, h, m, max(s.cache_valid[h, m], min(s.cached[h, m], s.inst_cpu_weights[i])))
    repin(s, p, h, m)
    s.inst_phase[i] = READY
    s.inst_used_s[i] = s.now
    record(s, log, events.RESIZE_END, -1, i, m, new, old)


# ---------------------------------------------------------------- actions that waited for the end of the iteration


@compiled
def run_pending(s, p, r, log, i):
    """Carry out the action the instance was draining for."""
    pending = s.inst_pending[i]
    s.inst_pending[i] = NO_PENDING
    if pending == PENDING_PREEMPT:
        start_evict(s, p, r, log, i)
    elif pending == PENDING_PREEMPT_REQUEST:
        preempt_longest(s, p, r, log, i)
    elif pending == PENDING_RESIZE:
        start_resize(s, p, r, log, i)
