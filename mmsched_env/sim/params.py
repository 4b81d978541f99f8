"""Configuration and cost tables -> the kernel's PARAMS record, padded to the configured sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import PREEMPT_MODES, PREFILL_MODES, RESIZE_MODES, EnvConfig
from ..costmodel.tables import CostTables
from ..errors import ConfigError
from ..reward import reward_weights
from .state import PARAMS, Dims, zeros


def make_params(config: EnvConfig, tables: CostTables, dims: Dims) -> Any:
    """PARAMS records, shape (1,). Unused GPUs, models and hosts stay zero and are never legal."""
    for name in ("save_s", "unload_s", "init_s"):  # an operation must take time, or actions could go round in circles
        if not (getattr(tables, name) > 0).all():
            raise ConfigError(
                f"cost table {name} has an entry of {getattr(tables, name).min()} s; accepted: seconds > 0"
            )
    params = zeros(PARAMS, dims, 1)
    p = params[0]
    for field in dataclasses.fields(CostTables):
        values: NDArray[Any] = getattr(tables, field.name)
        p[field.name][tuple(slice(0, n) for n in values.shape)] = values
    p["num_gpus"] = len(config.cluster.gpus)
    p["num_models"] = len(config.models.names)
    p["num_hosts"] = len(config.cluster.hosts)
    p["prefill_mode"] = PREFILL_MODES.index(config.sim.prefill_mode)
    p["preempt_mode"] = PREEMPT_MODES.index(config.sim.preempt_mode)
    p["resize_mode"] = RESIZE_MODES.index(config.sim.resize_mode)
    p["allow_preempt"] = config.sim.allow_preempt
    p["allow_offload"] = config.sim.allow_offload
    p["ubatch_tokens"] = config.sim.ubatch_tokens
    p["max_steps"] = config.sim.max_steps
    p["max_time_s"] = config.sim.max_time_s
    p["drop_after"] = config.sim.drop_after
    p["drop_penalty"] = config.sim.drop_penalty
    p["reward_weights"] = reward_weights(config.reward)
    p["level_value"] = config.limits.levels
    p["level_valid"] = _first_of_equal(p["units_on_gpu"])
    p["host_swap_bytes"] = (p["host_bytes"] * config.cluster.kv_swap_fraction).astype(np.int64)
    p["host_main_bytes"] = p["host_bytes"] - p["host_swap_bytes"]
    return params


def _first_of_equal(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """[M, K] 1 where a level is the lowest that rounds to its number of units: the others collapse into it."""
    same_as_lower = np.zeros(units.shape, bool)
    same_as_lower[:, 1:] = units[:, 1:] == units[:, :-1]
    return (~same_as_lower).astype(np.int64)
