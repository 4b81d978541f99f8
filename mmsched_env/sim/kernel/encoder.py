"""Writing the observation from the simulator's records, compiled. The fields: ../../observation.py.

It is brought up to date in place: it must be the one written last for the same record. Rows of instances and pairs change
where something about that model on that GPU has (`s.stale`, set by memory.mark); what runs with the clock is written
every time.
"""

from ..jit import compiled
from ..state import (
    DECODE,
    EMPTY,
    EVICTING,
    LOADING,
    MOVE,
    NO_OP,
    NO_PENDING,
    PREFILL,
    QUEUED,
    READY,
    RESIZING,
    UNIT_IDLE,
)
from .arrays import copy, fill
from .batching import context_tokens
from .costs import attended_both, decode_step, prefill_of_chunks
from .memory import STALE, fits_empty, footprint, gpu_free, gpu_of, host_free, kv_tokens_reserved, swap_free
from .transfers import operation_left
from .waiting import rate_per_arrival

GB = 1e9


@compiled
def encode(s, p, r, flat, row):
    """Bring one environment's observation up to date: `flat` is all of it as float32 values, `row` the same by block and
    field."""
    queue, instances, gpus, models, pairs, whole = (
        row.queue,
        row.instances,
        row.gpus,
        row.models,
        row.pairs,
        row.globals,
    )
    at_instances = queue.size * words(queue)
    at_gpus = at_instances + instances.size * words(instances)
    at_pairs = flat.shape[0] - whole.size * words(whole) - pairs.size * words(pairs)
    if s.encoded == 0:
        encode_anew(s, p, flat, gpus, models)
    find_rows(s)
    encode_queue(s, r, queue, flat[:at_instances])
    encode_instances(s, p, r, instances, flat[at_instances:at_gpus])
    encode_gpus(s, p, gpus)
    encode_pairs(s, p, r, instances, pairs, flat[at_pairs:])
    copy(s.encoded_window, s.window)
    fill(s.row_from, 0)  # a restored environment is the same to the last bit
    set_stale(s, 0)
    s.ran = 0
    whole[0].arrivals_per_s = encode_models(s, p, models)
    whole[0].time_s = s.now
    whole[0].num_in_system = s.num_in_system
    whole[0].queue_length = s.queue_length
    whole[0].beyond_window = max(0, s.queue_length - s.window.shape[0])
    whole[0].weight_in_system = s.weight_in_system


@compiled
def encode_anew(s, p, flat, gpus, models):
    """Nothing of an earlier observation is of use."""
    fill(flat, 0.0)
    s.encoded = 1
    fill(s.encoded_window, -1)
    set_stale(s, STALE)
    encode_fixed(p, gpus, models)


@compiled
def set_stale(s, value):
    for g in range(s.stale.shape[0]):
        fill(s.stale[g], value)


@compiled
def words(block):
    """Float32 values in a row of a block."""
    return block.itemsize // 4


@compiled
def clear_row(block, row, width):
    """Zeros in a row of a block's float32 values. Loops over a view of the row are vectorised; over a range of the block they
    are not, as Numba cannot tell that its indices are not negative."""
    fill(block[row * width : (row + 1) * width], 0.0)


@compiled
def move_row(block, source, target, width):
    copy(block[target * width : (target + 1) * width], block[source * width : (source + 1) * width])


@compiled
def encode_fixed(p, gpus, models):
    """What never changes."""
    full = p.level_value.shape[0] - 1
    for g in range(p.num_gpus):
        gpus[g].present = 1.0
        gpus[g].total_gb = p.gpu_bytes[g] / GB
        gpus[g].host = p.gpu_host[g]
        gpus[g].link_gb_per_s = p.link_in_rate[g] / GB
    for m in range(p.num_models):
        models[m].present = 1.0
        models[m].weights_gb = p.file_bytes[m] / GB
        models[m].kv_gb_per_ktoken = 1000.0 * (p.kv_gpu_bytes[m, full] + p.kv_cpu_bytes[m, full]) / GB


@compiled
def encode_queue(s, r, queue, values):
    """What runs with the clock whenever time has moved on, all of a row where another request was before."""
    for q in range(queue.shape[0]):
        j = s.window[q]
        if j < 0:
            if s.encoded_window[q] != -1:
                clear_row(values, q, words(queue))
            continue
        if s.row_from[q] != q:
            encode_request(r[j], queue[q])
        elif s.ran == 0:
            continue
        age = s.now - r[j].arrival_s
        queue[q].ready = 1.0 if r[j].phase == QUEUED else 0.0
        queue[q].age_s = age
        queue[q].ttft_slack_s = r[j].predicted_slo_ttft_s - age if r[j].first_token_s < 0.0 else 0.0
        queue[q].e2e_slack_s = r[j].predicted_slo_e2e_s - age


@compiled
def encode_request(request, row):
    """What stays as it is while a request waits."""
    row.present = 1.0
    row.model = request.model
    row.prompt_tokens = request.prompt_tokens
    row.image_tokens = request.image_tokens
    row.max_tokens = request.max_tokens
    row.predicted_tokens = request.predicted_tokens
    row.generated_tokens = request.generated
    row.saved_tokens = request.saved_tokens
    row.weight = request.weight
    row.slo_class = request.slo_class
    row.unloaded_s = request.predicted_unloaded_s
    row.num_preemptions = request.num_preemptions


@compiled
def encode_instances(s, p, r, instances, values):
    for i in range(instances.shape[0]):
        row = instances[i]
        if s.inst_phase[i] == EMPTY:
            if row.present == 1.0:
                clear_row(values, i, words(instances))
            continue
        m = s.inst_model[i]
        g = gpu_of(s, i)
        if s.stale[g, m] > 0:
            encode_instance(s, p, r, i, m, g, row)
        if s.stale[g, m] > 0 or (s.ran == 1 and (s.num_seated[i] == 0 or s.unit_phase[i] != UNIT_IDLE)):
            row.operation_left_s = operation_left(s, i)
            row.idle_s = s.now - s.inst_used_s[i] if s.num_seated[i] == 0 else 0.0


@compiled
def encode_instance(s, p, r, i, m, g, row):
    """All but what runs with the clock."""
    k = s.inst_level[i]
    phase = s.inst_phase[i]
    running = s.num_running[i]
    context = 0
    weight = 0.0
    longest = 0.0
    longest_weight = 0.0
    shortest = 0.0
    will_have = 0
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j < 0:
            continue
        will_have += r[j].prompt_tokens + r[j].image_tokens + r[j].generated
        left = max(1.0, r[j].predicted_tokens - r[j].generated)
        if weight == 0.0 or left < shortest:
            shortest = left
        weight += r[j].weight
        if left > longest:
            longest = left
            longest_weight = r[j].weight
        if r[j].phase == PREFILL or r[j].phase == DECODE:
            context += context_tokens(r[j])
    s.seated_context[i] = will_have
    batch = max(1, running)
    on_gpu, on_cpu = attended_both(p, m, g, context / batch)
    step = decode_step(p, m, g, k, batch, on_gpu, on_cpu)
    row.present = 1.0
    row.model = m
    row.level = k
    row.gpu_share = p.units_on_gpu[m, k] / p.num_units[m]
    row.loading = 1.0 if phase == LOADING else 0.0
    row.ready = 1.0 if phase == READY else 0.0
    row.leaving = 1.0 if phase == EVICTING else 0.0
    row.resizing = 1.0 if phase == RESIZING else 0.0
    row.draining = 1.0 if s.inst_pending[i] != NO_PENDING else 0.0
    row.saving = 1.0 if phase == READY and s.op[i] != NO_OP else 0.0
    row.num_seated = s.num_seated[i]
    row.num_running = running
    row.free_seats = s.seat.shape[1] - s.num_seated[i]
    row.weight_seated = weight
    row.step_s = step
    row.next_finish_s = shortest * step
    row.drain_s = longest * step
    row.longest_left_tokens = longest
    row.longest_weight = longest_weight
    row.gpu_gb = footprint(s, p, g, m, k) / GB
    row.kv_gb = s.reserved_tokens[i] * p.kv_gpu_bytes[m, k] / GB
    row.uses = s.inst_uses[i]
    save = p.save_s[g] * running + context * p.kv_gpu_bytes[m, k] / p.kv_out_cap[g]
    row.unload_s = save + p.unload_s[m, g, k]
    row.reload_s = p.init_s[m, g] + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g]
    encode_levels(s, p, i, m, g, batch, context, on_gpu, on_cpu, row)


@compiled
def encode_levels(s, p, i, m, g, batch, context, on_gpu, on_cpu, row):
    """Memory, decode iteration and seconds of a resize, with disk and links to itself, at every level."""
    old = s.inst_level[i]
    reserved = s.reserved_tokens[i]
    read_s = (p.file_bytes[m] - s.cache_valid[p.gpu_host[g], m]) / p.disk_cap[m, g]
    out_s = context * p.kv_gpu_bytes[m, old] / p.kv_out_cap[g] + p.unload_s[m, g, old]
    always_s = 2.0 * row.num_running * p.save_s[g] + out_s + p.init_s[m, g] + read_s
    for k in range(p.level_value.shape[0]):
        if p.level_valid[m, k] == 0:
            row.level_gb[k] = 0.0
            row.level_step_s[k] = 0.0
            row.resize_s[k] = 0.0
            continue
        row.level_gb[k] = (footprint(s, p, g, m, k) + reserved * p.kv_gpu_bytes[m, k]) / GB
        row.level_step_s[k] = decode_step(p, m, g, k, batch, on_gpu, on_cpu)
        if k == old:
            row.resize_s[k] = 0.0
        elif p.resize_mode == MOVE:
            row.resize_s[k] = move_seconds(p, m, g, old, k, context)
        else:
            back_s = context * p.kv_gpu_bytes[m, k] / p.kv_in_cap[g]
            row.resize_s[k] = always_s + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g] + back_s


@compiled
def move_seconds(p, m, g, old, new, context):
    grown = p.gpu_weight_bytes[m, new] - p.gpu_weight_bytes[m, old]
    grown += context * (p.kv_gpu_bytes[m, new] - p.kv_gpu_bytes[m, old])
    return grown / p.kv_in_cap[g] if grown > 0 else -grown / p.kv_out_cap[g]


@compiled
def encode_gpus(s, p, gpus):
    slots = s.inst_model.shape[0] // s.gpu_used.shape[0]
    for g in range(p.num_gpus):
        row = gpus[g]
        h = p.gpu_host[g]
        row.free_gb = gpu_free(s, p, g) / GB
        row.free_slots = slots
        row.num_busy = 0.0
        row.host_busy = 0.0
        row.host_free_gb = host_free(s, p, h) / GB
        row.swap_free_gb = swap_free(s, p, h) / GB
    for i in range(p.num_gpus * slots):
        if s.inst_phase[i] == EMPTY:
            continue
        g = gpu_of(s, i)
        gpus[g].free_slots -= 1.0
        if s.num_seated[i] == 0:
            continue
        gpus[g].num_busy += 1.0
        if p.units_on_gpu[s.inst_model[i], s.inst_level[i]] < p.num_units[s.inst_model[i]]:
            for other in range(p.num_gpus):
                gpus[other].host_busy += p.gpu_host[other] == p.gpu_host[g]


@compiled
def encode_models(s, p, models):
    """Returns the arrival rate of all models."""
    total = 0.0
    per_arrival = rate_per_arrival(s)
    for m in range(p.num_models):
        row = models[m]
        count = 0
        for g in range(p.num_gpus):
            count += s.inst_at[g, m] >= 0
        row.queued = s.model_queued[m]
        row.queued_weight = s.model_queued_weight[m]
        row.num_instances = count
        rate = s.model_arrivals[m] * per_arrival
        row.arrivals_per_s = rate
        total += rate
    return total


@compiled
def encode_pairs(s, p, r, instances, pairs, values):
    width = pairs.shape[1] * words(pairs)
    bring_rows(s, values, width)
    for q in range(pairs.shape[0]):
        j = s.window[q]
        if j < 0:
            if s.encoded_window[q] != -1:
                clear_row(values, q, width)
            continue
        m = r[j].model
        for g in range(p.num_gpus):
            i = s.inst_at[g, m]
            row = pairs[q, g]
            if s.row_from[q] < 0 or s.stale[g, m] == STALE:
                encode_pair(s, p, r[j], g, instances, row, 0, p.level_value.shape[0])
            elif i >= 0 and s.stale[g, m] > 0:
                encode_pair(s, p, r[j], g, instances, row, s.inst_level[i], s.inst_level[i] + 1)
            elif i >= 0 and s.ran == 1 and s.unit_phase[i] != UNIT_IDLE and row.fits[s.inst_level[i]] == 1.0:
                row.load_s[s.inst_level[i]] = instances[i].operation_left_s


@compiled
def find_rows(s):
    """Where the observation has the rows of the requests now in the window. Both windows are in order of arrival."""
    slots = s.window.shape[0]
    old = 0
    for q in range(slots):
        j = s.window[q]
        if j < 0:
            break
        while old < slots and s.encoded_window[old] != -1 and s.encoded_window[old] < j:
            old += 1
        s.row_from[q] = old if old < slots and s.encoded_window[old] == j else -1


@compiled
def bring_rows(s, values, width):
    """Rows that move up first, then rows that move down: in the order of their sources nothing is overwritten too early."""
    slots = s.window.shape[0]
    for q in range(slots):
        if s.window[q] >= 0 and s.row_from[q] > q:
            move_row(values, s.row_from[q], q, width)
    for q in range(slots - 1, -1, -1):
        if s.window[q] >= 0 and 0 <= s.row_from[q] < q:
            move_row(values, s.row_from[q], q, width)


@compiled
def encode_pair(s, p, request, g, instances, row, first, end):
    """Levels `first` to `end` - 1 of a waiting request on a GPU."""
    m = request.model
    h = p.gpu_host[g]
    i = s.inst_at[g, m]
    start_s = p.init_s[m, g] + (p.file_bytes[m] - s.cache_valid[h, m]) / p.disk_cap[m, g]
    encode_s = request.image_tokens * p.encode_s[m, g]
    mine = request.prompt_tokens + request.image_tokens + request.generated
    alone = mine + 0.5 * max(1.0, request.predicted_tokens - request.generated)
    alone_on_gpu, alone_on_cpu = attended_both(p, m, g, alone)
    full = mine // p.ubatch_tokens
    for k in range(first, end):
        fits = p.level_valid[m, k] == 1 and fits_empty(s, p, request, g, k)
        row.fits[k] = 1.0 if fits else 0.0
        if not fits:
            row.load_s[k] = 0.0
            row.prefill_s[k] = 0.0
            row.token_s[k] = 0.0
            row.gpu_need_gb[k] = 0.0
            continue
        if i >= 0 and s.inst_level[i] == k:
            batch = min(s.seat.shape[1], s.num_seated[i] + 1)
            on_gpu, on_cpu = attended_both(p, m, g, (alone + s.seated_context[i]) / batch)
            row.token_s[k] = decode_step(p, m, g, k, batch, on_gpu, on_cpu)
            row.load_s[k] = instances[i].operation_left_s
            row.gpu_need_gb[k] = kv_tokens_reserved(request) * p.kv_gpu_bytes[m, k] / GB
        else:
            row.token_s[k] = decode_step(p, m, g, k, 1, alone_on_gpu, alone_on_cpu)
            need = footprint(s, p, g, m, k) + kv_tokens_reserved(request) * p.kv_gpu_bytes[m, k]
            row.gpu_need_gb[k] = need / GB
            row.load_s[k] = start_s + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g]
        if request.saved_host == h:
            row.prefill_s[k] = p.save_s[g] + request.saved_tokens * p.kv_gpu_bytes[m, k] / p.kv_in_cap[g]
        else:
            row.prefill_s[k] = prefill_of_chunks(p, m, g, k, mine, full) + encode_s
