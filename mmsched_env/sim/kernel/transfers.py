"""Operations run through serial stages; the bytes of a stage cross a disk or a link shared with other transfers.

A unit is one stream of work: unit i is instance i's operation, unit I + i the KV restore of a request on it. Each
stage is a fixed delay and then bytes. Concurrent transfers share a resource max-min fairly, each capped by the rate
it reaches alone. Where a device's own processor does the work (`operation_share`), all of it takes longer beside others.
"""

import numpy as np

from ..jit import compiled
from ..state import (
    NUM_STAGES,
    STAGE_DISK,
    STAGE_MOVE_OUT,
    STAGE_RESTORE,
    STAGE_SAVE,
    STAGE_WEIGHTS,
    UNIT_DELAY,
    UNIT_IDLE,
    UNIT_MOVING,
)
from .memory import gpu_of, slots_of


@compiled
def disk_resource(p, g):
    return p.gpu_host[g]


@compiled
def link_in_resource(s, g):
    return s.host_kv.shape[0] + g


@compiled
def link_out_resource(s, g):
    return s.host_kv.shape[0] + s.gpu_used.shape[0] + g


@compiled
def resource_rate(s, p, resource):
    hosts = s.host_kv.shape[0]
    gpus = s.gpu_used.shape[0]
    if resource < hosts:
        return p.disk_rate[resource]
    if resource < hosts + gpus:
        return p.link_in_rate[resource - hosts]
    return p.link_out_rate[resource - hosts - gpus]


@compiled
def stage_resource(s, p, i, stage):
    """Shared resource a stage's bytes cross; -1 for stages that move none."""
    g = gpu_of(s, i)
    if stage == STAGE_DISK:
        return disk_resource(p, g)
    if stage == STAGE_WEIGHTS or stage == STAGE_RESTORE:
        return link_in_resource(s, g)
    if stage == STAGE_SAVE or stage == STAGE_MOVE_OUT:
        return link_out_resource(s, g)
    return -1


@compiled
def stage_cap(s, p, i, stage):
    """bytes/s the stage reaches alone."""
    g = gpu_of(s, i)
    m = s.inst_model[i]
    if stage == STAGE_DISK:
        return p.disk_cap[m, g]
    if stage == STAGE_WEIGHTS:
        return p.link_in_cap[m, g]
    if stage == STAGE_RESTORE:
        return p.kv_in_cap[g]
    return p.kv_out_cap[g]


@compiled
def start_unit(s, unit, seconds, num_bytes, resource, cap):
    """Start a delay of `seconds` followed by `num_bytes` over `resource`."""
    s.unit_phase[unit] = UNIT_DELAY
    s.unit_bytes[unit] = num_bytes
    s.unit_resource[unit] = resource
    s.unit_cap[unit] = cap
    s.unit_slow[unit] = 1.0
    set_unit_end(s, unit, s.now + seconds)


@compiled
def delay_over(s, unit):
    """The fixed part is over: begin to move bytes. Returns True if there are none and the unit is done."""
    if s.unit_bytes[unit] <= 0:
        finish_unit(s, unit)
        return True
    s.unit_phase[unit] = UNIT_MOVING
    s.unit_left[unit] = s.unit_bytes[unit]
    s.unit_rate[unit] = 0.0
    s.unit_since[unit] = s.now
    s.unit_end[unit] = np.inf
    s.resource_dirty[s.unit_resource[unit]] = 1
    return False


@compiled
def finish_unit(s, unit):
    if s.unit_phase[unit] == UNIT_MOVING:
        s.resource_dirty[s.unit_resource[unit]] = 1
    s.unit_phase[unit] = UNIT_IDLE
    s.unit_resource[unit] = -1
    s.unit_end[unit] = np.inf


@compiled
def set_unit_end(s, unit, end):
    s.unit_end[unit] = end
    s.stirred[gpu_of(s, unit % s.inst_model.shape[0])] = 1


@compiled
def set_slow(s, unit, slow):
    """From now on the rest of the unit's delay, or of its bytes at the rate it reaches alone, takes `slow` times as long."""
    if slow == s.unit_slow[unit]:
        return
    if s.unit_phase[unit] == UNIT_DELAY:
        set_unit_end(s, unit, s.now + (s.unit_end[unit] - s.now) * (slow / s.unit_slow[unit]))
    else:
        s.resource_dirty[s.unit_resource[unit]] = 1
    s.unit_slow[unit] = slow


@compiled
def cap_of(s, unit):
    """bytes/s the unit can use at most, beside what its device has to do."""
    return s.unit_cap[unit] / s.unit_slow[unit]


@compiled
def share_resources(s, p):
    """Give every transfer its max-min fair rate where a transfer began or ended."""
    for resource in range(s.resource_dirty.shape[0]):
        if s.resource_dirty[resource] == 1:
            s.resource_dirty[resource] = 0
            share_resource(s, p, resource)


@compiled
def find_crossing(s, p, resource):
    """Write the units whose bytes cross a resource to `s.crossing`; returns how many. A link is used by its own GPU's only."""
    hosts = s.host_kv.shape[0]
    gpus = s.gpu_used.shape[0]
    instances = s.inst_model.shape[0]
    first = 0 if resource < hosts else (resource - hosts) % gpus
    count = 0
    for g in range(first, gpus if resource < hosts else first + 1):
        if resource < hosts and p.gpu_host[g] != resource:
            continue
        for i in slots_of(s, g):
            for unit in range(i, 2 * instances, instances):
                if s.unit_phase[unit] == UNIT_MOVING and s.unit_resource[unit] == resource:
                    s.crossing[count] = unit
                    count += 1
    return count


@compiled
def share_resource(s, p, resource):
    """Progressive filling: transfers capped below the equal share take their cap, the others split what is left."""
    crossing = s.crossing[: find_crossing(s, p, resource)]
    waiting = crossing.shape[0]
    left = resource_rate(s, p, resource)
    limit = 0.0  # caps up to here have been served
    while waiting > 0:
        share = left / waiting
        lowest = np.inf
        for unit in crossing:
            if cap_of(s, unit) > limit:
                lowest = min(lowest, cap_of(s, unit))
        if lowest >= share:
            for unit in crossing:
                if cap_of(s, unit) > limit:
                    set_rate(s, unit, share)
            return
        for unit in crossing:
            if cap_of(s, unit) == lowest:
                set_rate(s, unit, lowest)
                left -= lowest
                waiting -= 1
        limit = lowest


@compiled
def set_rate(s, unit, rate):
    """Change a transfer's rate from now on. An unchanged rate leaves its end untouched, to the last bit."""
    if rate == s.unit_rate[unit]:
        return
    s.unit_left[unit] = max(0.0, s.unit_left[unit] - s.unit_rate[unit] * (s.now - s.unit_since[unit]))
    s.unit_since[unit] = s.now
    s.unit_rate[unit] = rate
    set_unit_end(s, unit, s.now + s.unit_left[unit] / rate)


@compiled
def clear_stages(s, i):
    for stage in range(NUM_STAGES):
        s.stage_s[i, stage] = 0.0
        s.stage_bytes[i, stage] = 0


@compiled
def seconds_after(s, p, i, stage):
    """Seconds of the stages of instance i's operation after `stage`, if nothing else used the disk and the links."""
    total = 0.0
    for later in range(stage + 1, NUM_STAGES):
        total += s.stage_s[i, later]
        if s.stage_bytes[i, later] > 0:
            total += s.stage_bytes[i, later] / stage_cap(s, p, i, later)
    return total


@compiled
def operation_left(s, i):
    """Seconds until instance i's operation ends if nothing else used the disk, the links and the device from now on."""
    if s.unit_phase[i] == UNIT_IDLE:
        return 0.0
    if s.unit_phase[i] == UNIT_DELAY:
        bytes_s = s.unit_bytes[i] / s.unit_cap[i] if s.unit_bytes[i] > 0 else 0.0
        return (s.unit_end[i] - s.now) / s.unit_slow[i] + bytes_s + s.op_rest_s[i]
    done = s.unit_rate[i] * (s.now - s.unit_since[i])
    return max(0.0, s.unit_left[i] - done) / s.unit_cap[i] + s.op_rest_s[i]
