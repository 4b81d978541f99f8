"""Bytes on GPUs and hosts. All integers, so that used + free = capacity exactly."""

from math import floor

from ..jit import compiled

STALE_INSTANCE, STALE = 1, 2
"""what `s.stale` says has changed: the instance at its level, or everything about the model on the GPU"""


@compiled
def kv_tokens_reserved(request):
    """Context tokens a request's KV cache is reserved for."""
    return request.prompt_tokens + request.image_tokens + request.max_tokens


@compiled
def gpu_of(s, i):
    """GPU of instance i: instances are numbered GPU by GPU."""
    return i // (s.inst_model.shape[0] // s.gpu_used.shape[0])


@compiled
def slots_of(s, g):
    """The instances of GPU g, as a range."""
    slots = s.inst_model.shape[0] // s.gpu_used.shape[0]
    return range(g * slots, (g + 1) * slots)


@compiled
def footprint(s, p, g, m, k):
    """Bytes an instance of model m at level k takes on GPU g, KV apart, as far as is known."""
    return footprint_with(p, m, k, s.footprint_extra[g, m])


@compiled
def footprint_with(p, m, k, extra):
    """Weights and compute buffer, and a share of them beyond the estimate."""
    estimate = p.gpu_weight_bytes[m, k] + p.buffer_bytes[m]
    return estimate if extra == 0.0 else estimate + int(floor(estimate * extra))  # noqa: RUF046 (Numba's floor is a float)


@compiled
def gpu_free(s, p, g):
    return p.gpu_bytes[g] - s.gpu_used[g]


@compiled
def host_free(s, p, h):
    """RAM that pinned weights and CPU-side KV leave; cached weights not in use give way."""
    return p.host_main_bytes[h] - s.host_pinned[h] - s.host_kv[h]


@compiled
def swap_free(s, p, h):
    return p.host_swap_bytes[h] - s.host_swap[h]


@compiled
def pin_growth(s, p, h, m, cpu_weights):
    """Extra bytes pinned on host h when one more instance of model m keeps `cpu_weights` there (shared, as by mmap)."""
    return max(0, cpu_weights - s.pinned[h, m])


@compiled
def mark(s, i):
    """Something about instance i is about to change or has: what policies see of it, and of requests that might join it, has to
    be written anew, and what comes next on its GPU looked up again."""
    g = gpu_of(s, i)
    s.stirred[g] = 1
    s.stale[g, s.inst_model[i]] = max(STALE_INSTANCE, s.stale[g, s.inst_model[i]])


@compiled
def mark_all(s, g, m):
    """And what they see of loading model m on GPU g: its instance has come, gone or changed its level, or the model takes
    other memory or another time to load than was known."""
    s.stale[g, m] = STALE


@compiled
def set_valid(s, p, h, m, valid):
    """Bytes of model m's weights read into host h's RAM: loads of it on the host's GPUs take another time."""
    if valid == s.cache_valid[h, m]:
        return
    s.cache_valid[h, m] = valid
    for g in range(p.num_gpus):
        if p.gpu_host[g] == h:
            mark_all(s, g, m)


@compiled
def fits_empty(s, p, request, g, k):
    """Would the request and its model fit on GPU g at level k with nothing else there?"""
    m = request.model
    tokens = kv_tokens_reserved(request)
    gpu = footprint(s, p, g, m, k) + tokens * p.kv_gpu_bytes[m, k]
    host = p.cpu_weight_bytes[m, k] + tokens * p.kv_cpu_bytes[m, k]
    return gpu <= p.gpu_bytes[g] and host <= p.host_main_bytes[p.gpu_host[g]]


@compiled
def fits_joining(s, p, request, g, k):
    """Is there memory for the request's KV cache in its model's instance on GPU g?"""
    m = request.model
    tokens = kv_tokens_reserved(request)
    return tokens * p.kv_gpu_bytes[m, k] <= gpu_free(s, p, g) and tokens * p.kv_cpu_bytes[m, k] <= host_free(
        s, p, p.gpu_host[g]
    )


@compiled
def reserve_kv(s, p, request, i, k, sign):
    """Take (sign 1) or free (sign -1) the request's KV cache on instance i at level k."""
    m = request.model
    g = gpu_of(s, i)
    h = p.gpu_host[g]
    tokens = kv_tokens_reserved(request)
    s.gpu_used[g] += sign * tokens * p.kv_gpu_bytes[m, k]
    s.host_kv[h] += sign * tokens * p.kv_cpu_bytes[m, k]
    if sign > 0:
        shrink_cache(s, p, h, -1)


@compiled
def repin(s, p, h, m):
    """Recompute the weights of model m that instances on host h keep in RAM."""
    need = 0
    for g in range(p.num_gpus):
        if p.gpu_host[g] != h:
            continue
        for i in slots_of(s, g):
            if s.inst_model[i] == m:
                need = max(need, s.inst_cpu_weights[i])
    s.host_pinned[h] += need - s.pinned[h, m]
    s.pinned[h, m] = need
    if s.cached[h, m] < need:
        s.cached[h, m] = need
    shrink_cache(s, p, h, m)


@compiled
def cached_total(s, h):
    total = 0
    for m in range(s.cached.shape[1]):
        total += s.cached[h, m]
    return total


@compiled
def shrink_cache(s, p, h, keep):
    """Evict unused cached weights, least recently used first, until the host's RAM holds what it must."""
    excess = cached_total(s, h) + s.host_kv[h] - p.host_main_bytes[h]
    while excess > 0:
        victim = -1
        for m in range(s.cached.shape[1]):
            unused = s.cached[h, m] - s.pinned[h, m]
            if m != keep and unused > 0 and (victim < 0 or s.cache_used_s[h, m] < s.cache_used_s[h, victim]):
                victim = m
        if victim < 0:
            victim = keep
        give = min(excess, s.cached[h, victim] - s.pinned[h, victim]) if victim >= 0 else 0
        if give <= 0:
            return  # only if a caller reserved more than it checked for: the invariant tests catch that
        s.cached[h, victim] -= give
        set_valid(s, p, h, victim, min(s.cache_valid[h, victim], s.cached[h, victim]))
        excess -= give


@compiled
def admit_to_cache(s, p, h, m):
    """Give model m's file room in host RAM, as far as pinned weights and KV leave it. Returns the bytes to read."""
    missing = p.file_bytes[m] - s.cache_valid[h, m]
    room = p.host_main_bytes[h] - s.host_kv[h] - (s.host_pinned[h] - s.pinned[h, m])
    s.cached[h, m] = max(s.cached[h, m], min(p.file_bytes[m], room))
    s.cache_used_s[h, m] = s.now
    shrink_cache(s, p, h, m)
    return missing


@compiled
def kv_bytes(p, m, k, tokens):
    """Of so many context tokens at level k, GPU and host taken together."""
    return tokens * (p.kv_gpu_bytes[m, k] + p.kv_cpu_bytes[m, k])


@compiled
def saved_bytes(p, request):
    """Host RAM taken by the request's saved KV."""
    return kv_bytes(p, request.model, request.saved_level, request.saved_tokens)


@compiled
def drop_saved(s, p, request):
    """Free the request's saved KV; what it held must be prefilled again."""
    if request.saved_host >= 0:
        s.host_swap[request.saved_host] -= saved_bytes(p, request)
        request.saved_host = -1
        request.saved_tokens = 0
