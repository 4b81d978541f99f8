"""The observation is kept and brought up to date: it must be what writing all of it anew gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsched_env.core import Simulation
from mmsched_env.vector_env import ServingVectorEnv


def anew(simulation: Simulation) -> tuple[Any, Any]:
    """The same state, written from nothing by another simulation."""
    other = Simulation(simulation.config, simulation.num_envs)
    for env in range(simulation.num_envs):
        other.restore(simulation.snapshot(env), slice(env, env + 1))
    return other.current.flat, other.current.mask


@pytest.mark.parametrize("sim", [{}, {"preempt_mode": "recompute", "resize_mode": "move", "memory_noise": 0.5}])
@pytest.mark.parametrize("seed", range(4))
def test_image_equals_a_new_one(tiny: Any, random_action: Any, seed: int, sim: dict[str, Any]) -> None:
    vector = ServingVectorEnv(3, tiny(40, drop_after=3.0, **sim), copy=False)
    vector.reset(seed=seed)
    rng, simulation = np.random.default_rng(seed), vector.simulation
    for step in range(400):
        mask = simulation.current.mask
        vector.step(np.array([random_action(rng, simulation.layout, row) for row in mask]))
        if step % 3 == 0:
            flat, masks = anew(simulation)
            wrong = np.argwhere(flat != simulation.current.flat)
            assert not len(wrong), f"step {step}: values {wrong[:5].tolist()}"
            assert (masks == simulation.current.mask).all()
