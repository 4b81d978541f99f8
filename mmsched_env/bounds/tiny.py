"""Random tiny episodes on which an exact optimum can be found: 6 requests for 3 models on 2 unequal GPUs."""

from __future__ import annotations

import numpy as np

from ..config import EnvConfig, env_config
from ..workload import RequestTrace

MODELS = ("qwen2.5-3b-f16", "qwen2.5-14b-q4_k_m", "qwen3-32b-q4_k_m")
"""6, 9 and 20 GB: the two larger ones do not fit side by side on either GPU"""
NUM_REQUESTS = 6


def tiny_config(all_actions: bool) -> EnvConfig:
    """Two GPUs of 25 and 17 GB, two offload levels; PREEMPT of running work and OFFLOAD only with `all_actions`."""
    return env_config(
        {
            "cluster": {"gpus": ["rtx-4090-24gb", "rtx-5060-ti-16gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": [0, 0]},
            "models": {"names": list(MODELS)},
            "limits": {"queue": 8, "gpus": 2, "hosts": 1, "models": 3, "slots": 2, "levels": [0.5, 1.0], "batch": 8},
            "sim": {"allow_preempt": all_actions, "allow_offload": all_actions},
        }
    )


def tiny_trace(config: EnvConfig, seed: int) -> RequestTrace:
    """Random arrivals over about 20 s, models, lengths and weights; predictions with an error of a factor 1.65 (sigma 0.5)."""
    rng = np.random.default_rng(seed)
    output = rng.integers(20, 400, NUM_REQUESTS)
    predicted = np.clip(np.round(output * np.exp(0.5 * rng.standard_normal(NUM_REQUESTS))), 1, 1000)
    return RequestTrace.from_columns(
        config.models.names,
        arrival_s=np.append(0.0, np.sort(rng.uniform(0.0, 20.0, NUM_REQUESTS - 1))),
        model=rng.integers(0, len(MODELS), NUM_REQUESTS),
        prompt_tokens=rng.integers(20, 1500, NUM_REQUESTS),
        output_tokens=output,
        predicted_tokens=predicted,
        max_tokens=1000,
        weight=rng.choice([1.0, 0.25], NUM_REQUESTS),
    )
