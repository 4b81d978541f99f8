"""Bytes an environment of a batch takes: state, trace, observation."""

from __future__ import annotations

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation


def measure(config: EnvConfig) -> dict[str, float]:
    """KiB per environment by part, summed over the arrays that hold them."""
    count = 16
    simulation = Simulation(config, count)
    for env in range(count):
        simulation.reset(env, config.workload.sample(env, config.models.names))
    parts = {
        "state": simulation.state.nbytes + simulation.outcomes.nbytes,
        "trace": simulation.requests.nbytes,
        "observation": simulation.current.flat.nbytes + simulation.current.mask.nbytes,
    }
    out = {f"{name}, KiB per environment": size / count / 1024 for name, size in parts.items()}
    out["KiB per environment"] = sum(parts.values()) / count / 1024
    out["KiB of cost tables, once"] = simulation.params.nbytes / 1024
    return out
