"""Gymnasium ids of this package."""

import gymnasium as gym

SERVING = "mmsched/Serving-v0"


def register() -> None:
    """Make the ids known to Gymnasium; called by ``import mmsched_env``."""
    if SERVING not in gym.registry:
        gym.register(
            SERVING,
            entry_point="mmsched_env.env:ServingEnv",
            vector_entry_point="mmsched_env.vector_env:ServingVectorEnv",
        )
