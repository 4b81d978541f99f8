"""The reward: minus a weighted sum of named terms, each a cost collected by the kernel between two decisions."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from .config import RewardConfig
from .sim.state import NUM_TERMS

TERMS = {
    "flow_time": "weighted requests in the system, integrated over simulated time: weight * s",
    "slo_miss": "finished requests that missed a target, by class weight",
    "slowdown": "finished requests, E2E over their unloaded E2E",
}
"""name -> meaning and unit, in the order of the kernel's TERM_* codes; RewardConfig has a weight for each"""

assert len(TERMS) == NUM_TERMS
assert tuple(TERMS) == tuple(f.name for f in dataclasses.fields(RewardConfig))


def reward_weights(config: RewardConfig) -> NDArray[np.float64]:
    """Weights in the order of TERMS, shape (len(TERMS),)."""
    return np.array([getattr(config, name) for name in TERMS], np.float64)
