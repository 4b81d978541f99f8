"""Same seed, same bits: in one process, across processes, compiled or not, and with bounds checks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsched_env.env import ServingEnv

EPISODE = """
import hashlib, sys
import numpy as np
from mmsched_env.env import ServingEnv

def digest(config, seed, max_steps):
    env = ServingEnv(config)
    obs, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    sha, over, steps = hashlib.sha256(), False, 0
    while not over and steps < max_steps:
        for value in obs.values():
            sha.update(value.tobytes())
        action = int(rng.choice(np.flatnonzero(obs["action_mask"])))
        obs, reward, terminated, truncated, info = env.step(action)
        sha.update(np.float64([reward, info["time_s"]]).tobytes())
        over, steps = terminated or truncated, steps + 1
    log = env.simulation.event_log(0)
    for name in log.dtype.names:
        sha.update(log[name].tobytes())
    return sha.hexdigest(), steps, over
"""
CONFIG: dict[str, Any] = {
    "cluster": {"gpus": ["rtx-3060-12gb", "rtx-5060-ti-16gb"], "hosts": ["desktop-ddr4"], "gpu_hosts": [0, 0]},
    "models": {"names": ["llama-3.2-1b-f16", "qwen2.5-vl-7b-q4_k_m", "qwen2.5-14b-q4_k_m"]},
    "sim": {"preempt_mode": "recompute"},
    "workload": {"kind": "generator", "num_requests": 6, "output": {"median": 20, "max": 60}},
}


def digest(seed: int, max_steps: int = 10_000, **environment: str) -> tuple[str, int, bool]:
    """Of an episode in a fresh process."""
    code = EPISODE + f"\nprint(*digest({CONFIG!r}, {seed}, {max_steps}))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert out.returncode == 0, out.stderr
    sha, steps, over = out.stdout.split()
    return sha, int(steps), over == "True"


def here(seed: int, max_steps: int = 10_000) -> tuple[str, int, bool]:
    namespace: dict[str, Any] = {}
    exec(EPISODE, namespace)
    result: tuple[str, int, bool] = namespace["digest"](CONFIG, seed, max_steps)
    return result


def test_same_seed_same_bits() -> None:
    first = here(1)
    assert first[2], "the episode should drain"
    assert here(1) == first
    assert here(2)[0] != first[0]


def test_same_bits_in_another_process() -> None:
    assert digest(1, PYTHONHASHSEED="12345") == here(1)


def test_an_episode_does_not_depend_on_the_one_before(tiny: Any, random_action: Any) -> None:
    def final(env: ServingEnv) -> str:
        rng = np.random.default_rng(0)
        obs, _ = env.reset(seed=7)
        over = False
        while not over:
            obs, _, over, _, _ = env.step(random_action(rng, env.layout, obs["action_mask"]))
        return hashlib.sha256(b"".join(value.tobytes() for value in obs.values())).hexdigest()

    used = ServingEnv(tiny())
    obs, _ = used.reset(seed=1)
    for _ in range(25):  # left in the middle
        obs = used.step(int(np.flatnonzero(obs["action_mask"])[-1]))[0]
    assert final(used) == final(ServingEnv(tiny()))


def test_policy_does_not_shift_the_workload(tiny: Any) -> None:
    """The traces of later episodes are the same whatever was done in the first."""
    traces = []
    for pick in (0, -1):
        env = ServingEnv(tiny(4, max_steps=30))
        obs, _ = env.reset(seed=5)
        for _ in range(30):
            obs = env.step(int(np.flatnonzero(obs["action_mask"])[pick]))[0]
        env.reset()
        traces.append(env.simulation.traces[0])
    for name in ("arrival_s", "model", "prompt_tokens", "output_tokens", "predicted_tokens"):
        assert np.array_equal(getattr(traces[0], name), getattr(traces[1], name))


def test_same_bits_without_compilation() -> None:
    assert digest(1, 25, NUMBA_DISABLE_JIT="1") == here(1, 25)


@pytest.mark.slow
def test_with_bounds_checks(tmp_path: Path) -> None:
    """Compiles anew: Numba's disk cache does not tell code with checks from code without."""
    for seed in (1, 2):
        assert digest(seed, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path)) == here(seed)
