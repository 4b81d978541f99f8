"""What a policy sees: one field table, from which the space, the encoder's buffers and the doc page come.

Every block is an array of records with named float32 fields in plain units (seconds, tokens, GB); learners squash
them (`agents/extractors.py`), rules read them by name. Nothing here is more than a real scheduler could know: true
output lengths and future arrivals do not appear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .sim.jit import compiled, records
from .sim.kernel.batching import context_tokens
from .sim.kernel.costs import decode_step, prefill_seconds
from .sim.kernel.memory import fits_empty, gpu_free, gpu_of, host_free, kv_tokens_reserved, swap_free
from .sim.kernel.transfers import operation_left
from .sim.kernel.waiting import arrival_rate
from .sim.state import (
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
    Dims,
)

GB = 1e9

# block -> (shape letters, meaning of a row, fields (name, letters, unit, meaning))
TABLE: dict[str, tuple[str, str, tuple[tuple[str, str, str, str], ...]]] = {
    "queue": (
        "Q",
        "a waiting request, the oldest first",
        (
            ("present", "", "0/1", "the slot holds a request"),
            ("ready", "", "0/1", "0 while its KV cache is still being saved"),
            ("model", "", "index", "model asked for"),
            ("age_s", "", "s", "since arrival"),
            ("prompt_tokens", "", "tokens", "text of the prompt"),
            ("image_tokens", "", "tokens", "images of the prompt"),
            ("max_tokens", "", "tokens", "output limit, what memory is reserved for"),
            ("predicted_tokens", "", "tokens", "predicted output length"),
            ("generated_tokens", "", "tokens", "already produced, if it was preempted"),
            ("saved_tokens", "", "tokens", "context whose KV is kept in host RAM"),
            ("weight", "", "", "class weight"),
            ("slo_class", "", "index", "request class"),
            ("ttft_slack_s", "", "s", "time left to the TTFT target, 0 once the first token is out"),
            ("e2e_slack_s", "", "s", "time left to the E2E target, which may rest on the predicted length"),
            ("unloaded_s", "", "s", "E2E if predicted right, alone on the best GPU with the model loaded"),
            ("num_preemptions", "", "count", "times taken off an instance"),
        ),
    ),
    "instances": (
        "I",
        "an instance slot, GPU by GPU",
        (
            ("present", "", "0/1", "a model is there (or on its way in or out)"),
            ("model", "", "index", "its model"),
            ("level", "", "index", "its offload level"),
            ("gpu_share", "", "0..1", "share of its layers + head on the GPU"),
            ("loading", "", "0/1", "being loaded"),
            ("ready", "", "0/1", "serving or idle"),
            ("leaving", "", "0/1", "being unloaded"),
            ("resizing", "", "0/1", "changing its level"),
            ("draining", "", "0/1", "an action waits for the end of its iteration"),
            ("saving", "", "0/1", "KV of a preempted request is being saved"),
            ("operation_left_s", "", "s", "until load, unload, save or resize ends, with disk and links to itself"),
            ("num_seated", "", "count", "requests on it"),
            ("num_running", "", "count", "of them in prefill or decoding"),
            ("free_seats", "", "count", "requests it can still take"),
            ("weight_seated", "", "", "sum of their class weights"),
            ("step_s", "", "s", "its present decode iteration, unshared"),
            ("next_finish_s", "", "s", "until its first request ends, as predicted"),
            ("drain_s", "", "s", "until its last request ends, as predicted"),
            ("longest_left_tokens", "", "tokens", "largest predicted remaining length"),
            ("longest_weight", "", "", "class weight of that request"),
            ("gpu_gb", "", "GB", "GPU memory its weights and buffer hold"),
            ("kv_gb", "", "GB", "GPU memory its requests' KV caches hold"),
            ("idle_s", "", "s", "since its last dispatch or completion, 0 while it has requests"),
            ("uses", "", "count", "requests dispatched to it since it was loaded"),
            ("unload_s", "", "s", "to save its requests' KV and unload it"),
            ("reload_s", "", "s", "to load it again as it is, from host RAM"),
            ("level_gb", "K", "GB", "GPU memory it would hold at each level, KV caches included; 0: no such level"),
            ("level_step_s", "K", "s", "its present decode iteration at each level, unshared; 0: no such level"),
            ("resize_s", "K", "s", "to change it to each level; 0: no such level"),
        ),
    ),
    "gpus": (
        "G",
        "a GPU",
        (
            ("present", "", "0/1", "there is such a GPU"),
            ("total_gb", "", "GB", "usable memory"),
            ("free_gb", "", "GB", "free memory"),
            ("free_slots", "", "count", "instance slots"),
            ("num_busy", "", "count", "its instances that have requests"),
            ("host", "", "index", "host it sits in"),
            ("host_busy", "", "count", "instances of the host that have requests and layers on the CPU"),
            ("host_free_gb", "", "GB", "host RAM for weights and CPU-side KV"),
            ("swap_free_gb", "", "GB", "host RAM for saved KV"),
            ("link_gb_per_s", "", "GB/s", "host-to-device link"),
        ),
    ),
    "models": (
        "M",
        "a model",
        (
            ("present", "", "0/1", "there is such a model"),
            ("weights_gb", "", "GB", "all weights"),
            ("kv_gb_per_ktoken", "", "GB", "KV cache of 1000 tokens"),
            ("queued", "", "count", "waiting requests, those beyond the window too"),
            ("queued_weight", "", "", "their class weights"),
            ("num_instances", "", "count", "where it is loaded or being loaded"),
            ("arrivals_per_s", "", "1/s", "recent rate"),
        ),
    ),
    "pairs": (
        "Q,G",
        "a waiting request on a GPU, estimates for each offload level",
        (
            ("load_s", "K", "s", "until the model is there: 0 if ready, rest of a load, or unload-free load time"),
            ("prefill_s", "K", "s", "prefill (or KV restore), alone"),
            ("token_s", "K", "s", "one decode iteration beside those already there"),
            ("gpu_need_gb", "K", "GB", "GPU memory to join there, or to load the model and serve the request"),
            (
                "fits",
                "K",
                "0/1",
                "would fit with nothing else on the GPU; 0 too for a level that is no level of its own",
            ),
        ),
    ),
    "globals": (
        "1",
        "the whole system",
        (
            ("time_s", "", "s", "clock"),
            ("num_in_system", "", "count", "arrived, unfinished requests"),
            ("queue_length", "", "count", "waiting requests"),
            ("beyond_window", "", "count", "waiting requests the queue block has no room for"),
            ("weight_in_system", "", "", "sum of class weights"),
            ("arrivals_per_s", "", "1/s", "recent rate, all models"),
        ),
    ),
}
BLOCKS = tuple(TABLE)
MASK_KEY = "action_mask"


def block_dtype(block: str, dims: Dims) -> np.dtype[np.void]:
    """Record type of one row of a block: float32 fields without padding."""
    sizes = dims.sizes()
    return np.dtype([(name, "f4", tuple(sizes[c] for c in letters)) for name, letters, _, _ in TABLE[block][2]])


def block_shape(block: str, dims: Dims) -> tuple[int, ...]:
    sizes = dims.sizes() | {"1": 1}
    return tuple(sizes[letter] for letter in TABLE[block][0].split(","))


def block_width(block: str, dims: Dims) -> int:
    """Float32 values in one row."""
    return block_dtype(block, dims).itemsize // 4


def space(dims: Dims) -> gym.spaces.Dict:
    """The observation space: a Box per block, shaped (rows..., fields), and the int8 action mask."""
    spaces: dict[str, gym.Space[Any]] = {
        block: gym.spaces.Box(-np.inf, np.inf, (*block_shape(block, dims), block_width(block, dims)), np.float32)
        for block in BLOCKS
    }
    spaces[MASK_KEY] = gym.spaces.Box(0, 1, (dims.A,), np.int8)
    return gym.spaces.Dict(spaces)


def layout_signature(dims: Dims) -> dict[str, Any]:
    """What a checkpoint must agree with: field names and sizes."""
    fields = {block: [name for name, *_ in TABLE[block][2]] for block in BLOCKS}
    return {"fields": fields, "sizes": {letter: getattr(dims, letter) for letter in "QGHMSBK"}}


@dataclass(frozen=True)
class ObservationBuffer:
    """One contiguous float32 array [N, D], an int8 mask [N, A], and views of them by block."""

    dims: Dims
    flat: NDArray[np.float32]
    mask: NDArray[np.int8]
    arrays: dict[str, NDArray[np.float32]]
    """block -> [N, rows..., fields]"""
    records: dict[str, Any]
    """block -> structured array [N, rows...], the same memory by field name"""

    @classmethod
    def allocate(cls, num_envs: int, dims: Dims) -> ObservationBuffer:
        counts = {b: int(np.prod(block_shape(b, dims))) * block_width(b, dims) for b in BLOCKS}
        flat = np.zeros((num_envs, sum(counts.values())), np.float32)
        arrays: dict[str, NDArray[np.float32]] = {}
        rows: dict[str, Any] = {}
        at = 0
        for block, count in counts.items():
            part = flat[:, at : at + count]
            shape = (num_envs, *block_shape(block, dims))
            arrays[block] = part.reshape(*shape, block_width(block, dims))
            rows[block] = records(part.view(block_dtype(block, dims)).reshape(shape))
            at += count
        return cls(dims, flat, np.zeros((num_envs, dims.A), np.int8), arrays, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have views of their own memory, not copies of the views."""
        return _restored, (self.dims, self.flat, self.mask)

    def observation(self) -> dict[str, NDArray[Any]]:
        """The batch's observation; views, not copies."""
        return {**self.arrays, MASK_KEY: self.mask}


def _restored(dims: Dims, flat: NDArray[np.float32], mask: NDArray[np.int8]) -> ObservationBuffer:
    buffer = ObservationBuffer.allocate(len(flat), dims)
    buffer.flat[:] = flat
    buffer.mask[:] = mask
    return buffer


@compiled
def encode(s, p, r, queue, instances, gpus, models, pairs, whole):  # type: ignore[no-untyped-def]
    """Write one environment's observation into its buffers."""
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
def encode_queue(s, p, r, queue):  # type: ignore[no-untyped-def]
    for q in range(queue.shape[0]):
        j = s.window[q]
        row = queue[q]
        if j < 0:
            row.present = 0.0
            row.ready = 0.0
            row.model = 0.0
            row.age_s = 0.0
            row.prompt_tokens = 0.0
            row.image_tokens = 0.0
            row.max_tokens = 0.0
            row.predicted_tokens = 0.0
            row.generated_tokens = 0.0
            row.saved_tokens = 0.0
            row.weight = 0.0
            row.slo_class = 0.0
            row.ttft_slack_s = 0.0
            row.e2e_slack_s = 0.0
            row.unloaded_s = 0.0
            row.num_preemptions = 0.0
            continue
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
def encode_instances(s, p, r, instances):  # type: ignore[no-untyped-def]
    for i in range(instances.shape[0]):
        row = instances[i]
        m = s.inst_model[i]
        k = s.inst_level[i]
        g = gpu_of(s, i)
        phase = s.inst_phase[i]
        present = phase != EMPTY
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
        step = decode_step(p, m, g, k, max(1, running), context) if present else 0.0
        row.present = 1.0 if present else 0.0
        row.model = m if present else 0.0
        row.level = k if present else 0.0
        row.gpu_share = p.units_on_gpu[m, k] / p.num_units[m] if present else 0.0
        row.loading = 1.0 if phase == LOADING else 0.0
        row.ready = 1.0 if phase == READY else 0.0
        row.leaving = 1.0 if phase == EVICTING else 0.0
        row.resizing = 1.0 if phase == RESIZING else 0.0
        row.draining = 1.0 if s.inst_pending[i] != NO_PENDING else 0.0
        row.saving = 1.0 if phase == READY and s.op[i] != NO_OP else 0.0
        row.operation_left_s = operation_left(s, p, i) if present else 0.0
        row.num_seated = s.num_seated[i]
        row.num_running = running
        row.free_seats = s.seat.shape[1] - s.num_seated[i] if present else 0.0
        row.weight_seated = weight
        row.step_s = step
        row.next_finish_s = shortest * step
        row.drain_s = longest * step
        row.longest_left_tokens = longest
        row.longest_weight = longest_weight
        row.gpu_gb = (p.gpu_weight_bytes[m, k] + p.buffer_bytes[m]) / GB if present else 0.0
        row.kv_gb = reserved * p.kv_gpu_bytes[m, k] / GB if present else 0.0
        row.idle_s = s.now - s.inst_used_s[i] if present and s.num_seated[i] == 0 else 0.0
        row.uses = s.inst_uses[i] if present else 0.0
        save = p.save_s[g] * running + context * p.kv_gpu_bytes[m, k] / p.kv_out_cap[g] if present else 0.0
        row.unload_s = save + p.unload_s[m, g, k] if present else 0.0
        row.reload_s = p.init_s[m, g] + p.gpu_weight_bytes[m, k] / p.link_in_cap[m, g] if present else 0.0
        for level in range(p.level_value.shape[0]):
            row.level_gb[level] = 0.0
            row.level_step_s[level] = 0.0
            row.resize_s[level] = 0.0
            if present and p.level_valid[m, level] == 1:
                held = p.gpu_weight_bytes[m, level] + p.buffer_bytes[m] + reserved * p.kv_gpu_bytes[m, level]
                row.level_gb[level] = held / GB
                row.level_step_s[level] = decode_step(p, m, g, level, max(1, running), context)
                row.resize_s[level] = resize_seconds(s, p, i, level, running, context)


@compiled
def resize_seconds(s, p, i, level, running, context):  # type: ignore[no-untyped-def]
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
def encode_gpus(s, p, gpus):  # type: ignore[no-untyped-def]
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
def encode_models(s, p, models):  # type: ignore[no-untyped-def]
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
def encode_pairs(s, p, r, instances, pairs):  # type: ignore[no-untyped-def]
    levels = p.level_value.shape[0]
    for q in range(pairs.shape[0]):
        j = s.window[q]
        for g in range(pairs.shape[1]):
            row = pairs[q, g]
            for k in range(levels):
                row.load_s[k] = 0.0
                row.prefill_s[k] = 0.0
                row.token_s[k] = 0.0
                row.gpu_need_gb[k] = 0.0
                row.fits[k] = 0.0
            if j >= 0 and g < p.num_gpus:
                encode_pair(s, p, r, r[j], g, instances, row)


@compiled
def seated_context(s, r, i):  # type: ignore[no-untyped-def]
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
def encode_pair(s, p, r, request, g, instances, row):  # type: ignore[no-untyped-def]
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
