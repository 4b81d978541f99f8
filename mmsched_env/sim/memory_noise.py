"""True footprints that differ from the estimates: fragmentation, driver contexts, engine versions, drawn per episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import EnvConfig
from ..costmodel.tables import CostTables, fitting_levels
from ..workload.source import stream
from ..workload.trace import RequestTrace


def footprint_noise(config: EnvConfig, tables: CostTables, trace: RequestTrace, seed: int) -> NDArray[np.float64]:
    """What each model really takes on each GPU beyond its estimate, as a share of that, [G, M] (stream "memory").

    Log-normal of median 0 beyond, limited where more would leave no level at which the longest request of the trace that
    should fit on the GPU does: what fits on an empty machine by the estimates still fits somewhere.
    """
    shape = (len(tables.gpu_bytes), len(tables.num_units))
    drawn = np.expm1(config.sim.memory_noise * stream(seed, "memory").standard_normal(shape))
    reserved = np.asarray(trace.prompt_tokens, np.int64) + trace.image_tokens + trace.max_tokens
    for m in np.unique(trace.model):
        tokens = int(reserved[trace.model == m].max())
        drawn[:, m] = np.minimum(drawn[:, m], _room(tables, config.cluster.kv_swap_fraction, int(m), tokens))
    return drawn


def _room(tables: CostTables, kv_swap_fraction: float, m: int, tokens: int) -> NDArray[np.float64]:
    """[G] share of the estimate that is free beside it and the KV of `tokens`, at the level with the most; inf: no such."""
    estimate = tables.gpu_weight_bytes[m] + tables.buffer_bytes[m]  # [K]
    free = tables.gpu_bytes[:, None] - estimate - tokens * tables.kv_gpu_bytes[m]  # [G, K]
    share = np.where(fitting_levels(tables, kv_swap_fraction, tokens)[m], free / estimate, -np.inf)
    most: NDArray[np.float64] = share.max(axis=1)
    return np.where(np.isinf(most), np.inf, most)
