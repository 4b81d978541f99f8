"""Writing the observation from the simulator's records, compiled. The fields: ../../observation.py."""

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
)
from .batching import context_tokens
from .costs import decode_step, prefill_seconds
from .memory import fits_empty, gpu_free, gpu_of, host_free, kv_tokens_reserved, swap_free
from .transfers import operation_left
from .waiting import arrival_rate

GB = 1e9


@compiled
def encode(s, p, r, queue, instances, gpus, models, pairs, whole):
    """Write one environment's observation into its buffers, which are zero: what is not there stays so."""
    encode_queue(s, p, r, queue)
    encode_instances(s, p, r, instances)
    encode_gpus(s, p, gpus)
    encode_models(s, p, models)
    encode_pairs(s, p, r, instances, pairs)
    rate = 0.0
    for m in range(p.num_models):
        rate += arrival_rate(s, m)
    whole[0].time_s = s.now
    whole[0].num_in_system = s.num_in_system
    whole[0].queue_length = s.queue_length
    whole[0].beyond_window = max(0, s.queue_length - s.window.shape[0])
    whole[0].weight_in_system = s.weight_in_system
    whole[0].arrivals_per_s = rate


@compiled
def encode_queue(s, p, r, queue):
    for q in range(queue.shape[0]):
        j = s.window[q]
        if j < 0:
            break
        row = queue[q]
        age = s.now - r[j].arrival_s
        row.present = 1.0
        row.ready = 1.0 if r[j].phase == QUEUED else 0.0
        row.model = r[j].model
        row.age_s = age
        row.prompt_tokens = r[j].prompt_tokens
        row.image_tokens = r[j].image_tokens
        row.max_tokens = r[j].max_tokens
        row.predicted_tokens = r[j].predicted_tokens
        row.generated_tokens = r[j].generated
        row.saved_tokens = r[j].saved_tokens
        row.weight = r[j].weight
        row.slo_class = r[j].slo_class
        row.ttft_slack_s = r[j].predicted_slo_ttft_s - age if r[j].first_token_s < 0.0 else 0.0
        row.e2e_slack_s = r[j].predicted_slo_e2e_s - age
        row.unloaded_s = r[j].predicted_unloaded_s
        row.num_preemptions = r[j].num_preemptions


@compiled
def encode_instances(s, p, r, instances):
    for i in range(instances.shape[0]):
        if s.inst_phase[i] == EMPTY:
            continue
        row = instances[i]
        m = s.inst_model[i]
        k = s.inst_level[i]
        g = gpu_of(s, i)
        phase = s.inst_phase[i]
        running = 0
        context = 0
        weight = 0.0
        longest = 0.0
        longest_weight = 0.0
        shortest = 0.0
        reserved = 0
        for b in range(s.seat.shape[1]):
            j = s.seat[i, b]
            if j < 0:
                continue
            left = max(1.0, r[j].predicted_tokens - r[j].generated)
            if weight == 0.0 or left < shortest:
                shortest = left
            weight += r[j].weight
            if left > longest:
                longest = left
                longest_weight = r[j].weight
            reserved += r[j].prompt_tokens + r[j].image_tokens + r[j].max_tokens
            if r[j].phase == PREFILL or r[j].phase == DECODE:
                running += 1
                context += context_tokens(r[j])
        step = decode_step(p, m, g, k, max(1, running), context)
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
        row.operation_left_s = operation_left(s, p, i)
        row.num_seated = s.num_seated[i]
        row.num_running = running
        row.free_seats = s.seat.shape[1] - s.num_seated[i]
        row.weight_seated = weight
        row.step_s = step
        row.next_finish_s = shortest * step
        row.drain_s = longest * step
        row.longest_left_tokens = longest
        row.longest_weight = longest_weight
        row.gpu_gb = (p.gpu_weight_bytes[m, k] + p.buffer_bytes[m]) / GB
        row.kv_gb = reserved * p.kv_gpu_bytes[m, k] / GB
        row.idle_s = s.now - s.inst_used_s[i] if s.num_seated[i] == 0 else 0.0
        row.uses = s.inst_uses[i]
        save = p.save_s[g] * running + context * p.kv_gpu_bytes[m, k] / p.kv_out_cap[g]
        row.unload_s = save + p.unload_s[m, g, k]
        row.reload_s = p.init_s[m, g] + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g]
        for level in range(p.level_value.shape[0]):
            if p.level_valid[m, level] == 1:
                held = p.gpu_weight_bytes[m, level] + p.buffer_bytes[m] + reserved * p.kv_gpu_bytes[m, level]
                row.level_gb[level] = held / GB
                row.level_step_s[level] = decode_step(p, m, g, level, max(1, running), context)
                row.resize_s[level] = resize_seconds(s, p, i, level, running, context)


@compiled
def resize_seconds(s, p, i, level, running, context):
    """Seconds to change instance i to a level, with disk and links to itself."""
    m = s.inst_model[i]
    g = gpu_of(s, i)
    old = s.inst_level[i]
    if level == old:
        return 0.0
    if p.resize_mode == MOVE:
        grown = p.gpu_weight_bytes[m, level] - p.gpu_weight_bytes[m, old]
        grown += context * (p.kv_gpu_bytes[m, level] - p.kv_gpu_bytes[m, old])
        return grown / p.kv_in_cap[g] if grown > 0 else -grown / p.kv_out_cap[g]
    missing = p.file_bytes[m] - s.cache_valid[p.gpu_host[g], m]
    load = p.init_s[m, g] + missing / p.disk_cap[m, g] + p.gpu_weight_bytes[m, level] / p.link_in_cap[m, g]
    out = context * p.kv_gpu_bytes[m, old] / p.kv_out_cap[g]
    back = context * p.kv_gpu_bytes[m, level] / p.kv_in_cap[g]
    return 2.0 * running * p.save_s[g] + out + p.unload_s[m, g, old] + load + back


@compiled
def encode_gpus(s, p, gpus):
    slots = s.inst_model.shape[0] // s.gpu_used.shape[0]
    for g in range(p.num_gpus):
        row = gpus[g]
        h = p.gpu_host[g]
        free = 0
        busy = 0
        for i in range(g * slots, (g + 1) * slots):
            free += s.inst_phase[i] == EMPTY
            busy += s.num_seated[i] > 0
        on_cpu = 0
        for i in range(s.inst_phase.shape[0]):
            if s.num_seated[i] > 0 and p.gpu_host[gpu_of(s, i)] == h:
                on_cpu += p.units_on_gpu[s.inst_model[i], s.inst_level[i]] < p.num_units[s.inst_model[i]]
        row.present = 1.0
        row.total_gb = p.gpu_bytes[g] / GB
        row.free_gb = gpu_free(s, p, g) / GB
        row.free_slots = free
        row.num_busy = busy
        row.host = h
        row.host_busy = on_cpu
        row.host_free_gb = host_free(s, p, h) / GB
        row.swap_free_gb = swap_free(s, p, h) / GB
        row.link_gb_per_s = p.link_in_rate[g] / GB


@compiled
def encode_models(s, p, models):
    full = p.level_value.shape[0] - 1
    for m in range(p.num_models):
        row = models[m]
        count = 0
        for g in range(p.num_gpus):
            count += s.inst_at[g, m] >= 0
        row.present = 1.0
        row.weights_gb = p.file_bytes[m] / GB
        row.kv_gb_per_ktoken = 1000.0 * (p.kv_gpu_bytes[m, full] + p.kv_cpu_bytes[m, full]) / GB
        row.queued = s.model_queued[m]
        row.queued_weight = s.model_queued_weight[m]
        row.num_instances = count
        row.arrivals_per_s = arrival_rate(s, m)


@compiled
def encode_pairs(s, p, r, instances, pairs):
    for q in range(pairs.shape[0]):
        if s.window[q] < 0:
            break
        for g in range(p.num_gpus):
            encode_pair(s, p, r, r[s.window[q]], g, instances, pairs[q, g])


@compiled
def seated_context(s, r, i):
    """Requests on instance i and the context tokens they have, or will have once prefilled."""
    count = 0
    context = 0
    for b in range(s.seat.shape[1]):
        j = s.seat[i, b]
        if j >= 0:
            count += 1
            context += r[j].prompt_tokens + r[j].image_tokens + r[j].generated
    return count, context


@compiled
def encode_pair(s, p, r, request, g, instances, row):
    m = request.model
    h = p.gpu_host[g]
    i = s.inst_at[g, m]
    missing = p.file_bytes[m] - s.cache_valid[h, m]
    mine = request.prompt_tokens + request.image_tokens + request.generated
    seated = 0
    others = 0
    if i >= 0:
        seated, others = seated_context(s, r, i)
    for k in range(p.level_value.shape[0]):
        if p.level_valid[m, k] == 0 or not fits_empty(p, request, g, k):
            continue
        row.fits[k] = 1.0
        batch = 1
        context = mine + 0.5 * max(1.0, request.predicted_tokens - request.generated)
        if i >= 0 and s.inst_level[i] == k:
            row.load_s[k] = instances[i].operation_left_s
            batch = min(s.seat.shape[1], seated + 1)
            context += others
            row.gpu_need_gb[k] = kv_tokens_reserved(request) * p.kv_gpu_bytes[m, k] / GB
        else:
            need = p.gpu_weight_bytes[m, k] + p.buffer_bytes[m] + kv_tokens_reserved(request) * p.kv_gpu_bytes[m, k]
            row.gpu_need_gb[k] = need / GB
            row.load_s[k] = p.init_s[m, g] + missing / p.disk_cap[m, g] + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g]
        if request.saved_host == h:
            row.prefill_s[k] = p.save_s[g] + request.saved_tokens * p.kv_gpu_bytes[m, k] / p.kv_in_cap[g]
        else:
            row.prefill_s[k] = prefill_seconds(p, m, g, k, mine) + request.image_tokens * p.encode_s[m, g]
        row.token_s[k] = decode_step(p, m, g, k, batch, context)
