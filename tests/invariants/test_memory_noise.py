"""R31: true footprints that differ from the estimates, and loads that fail for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from recount import Recount
from test_by_hand import FULL, GB, HALF, Run, hand_tables

import mmsched_env.core
from mmsched_env.core import Simulation
from mmsched_env.env import ServingEnv
from mmsched_env.sim.memory_noise import footprint_noise
from mmsched_env.vector_env import ServingVectorEnv

TABLES = hand_tables()
TIGHT = dataclasses.replace(TABLES, gpu_bytes=np.array([1_200_000_000, 30 * GB]))
"""GPU 0 holds model 0 at every level by the estimate: 1.05 GB of 1.2"""


@pytest.fixture(autouse=True)
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmsched_env.core, "build_tables", lambda *args: TIGHT)


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """The draw of the tests below: model 0 takes 30 % more than estimated on GPU 0."""
    share = np.zeros((2, 3))
    share[0, 0] = 0.3
    monkeypatch.setattr(mmsched_env.core, "footprint_noise", lambda *args: share)
    return share


def test_a_load_that_does_not_fit_fails_once_and_costs_init_and_unload(tiny: Any, trace_of: Any, hidden: Any) -> None:
    legal: list[list[int]] = []

    def choose(run: Run) -> int | None:
        if not run.window():
            return None
        levels = [k for k in range(5) if run.sim.current.mask[0, run.layout.dispatch(0, 0, k)]]
        if not levels:
            return None  # the slot is still unloading
        legal.append(levels)
        return run.layout.dispatch(0, 0, FULL if FULL in levels else HALF)

    run = Run(tiny(memory_noise=0.5), trace_of(arrival_s=[1.0], prompt_tokens=8, output_tokens=3), choose)
    assert legal == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]  # 1.365 GB do not fit, 0.8 of the weights do: 1.04 GB
    failed = 1.0 + TIGHT.init_s[0, 0]
    unloaded = failed + TIGHT.unload_s[0, 0, FULL]
    assert run.times("load_failed") == pytest.approx([failed], rel=1e-12)
    assert run.times("unload_end") == pytest.approx([unloaded], rel=1e-12)
    assert run.times("dispatch") == pytest.approx([1.0, unloaded], rel=1e-12)
    load_s = TIGHT.init_s[0, 0] + TIGHT.file_bytes[0] / 2.0e9 + TIGHT.gpu_weight_bytes[0, HALF] / 5.0e9
    assert run.times("load_end") == pytest.approx([unloaded + load_s], rel=1e-12)
    request = run.records[0]
    assert request["load_s"] == pytest.approx(TIGHT.init_s[0, 0] + load_s, rel=1e-12)
    assert request["generated"] == 3 and request["num_preemptions"] == 0
    assert run.sim.state["num_failed_loads"][0] == 1


def test_what_fits_takes_its_true_footprint_from_the_allocation_on(tiny: Any, trace_of: Any, hidden: Any) -> None:
    sim = Simulation(tiny(memory_noise=0.5), 1)
    sim.reset(0, trace_of(arrival_s=[0.0, 0.1, 2.0], model=[0, 1, 1], prompt_tokens=8, output_tokens=50))
    estimate = int(TIGHT.gpu_weight_bytes[0, HALF] + TIGHT.buffer_bytes[0])
    kv = 8000 * 4 * (8 + int(sim.requests["max_tokens"][0, 0]))
    sim.step(np.array([sim.layout.dispatch(0, 0, HALF)]))
    assert sim.state["gpu_used"][0, 0] == estimate + kv
    sim.step(np.array([0]))  # on to 2.0 s: the engine has allocated at 0.8 s
    assert sim.state["gpu_used"][0, 0] == estimate + int(0.3 * estimate) + kv


def test_the_draw_leaves_a_level_for_the_longest_request(tiny: Any, trace_of: Any) -> None:
    config = tiny(memory_noise=1.0)
    trace = trace_of(arrival_s=[0.0, 1.0, 2.0], model=[0, 1, 2], prompt_tokens=[2000, 100, 10], output_tokens=5)
    no_host = dataclasses.replace(TIGHT, host_bytes=np.array([200_000_000]))  # the weights must be on the GPU
    draws = np.array([footprint_noise(config, no_host, trace, seed) for seed in range(200)])
    room = (1.2e9 - 8 * 8000 * (2000 + trace.max_tokens[0])) / 1.05e9 - 1
    assert draws[:, 0, 0].max() == pytest.approx(room) and draws[:, 1, 0].max() > 1
    assert np.median(draws[:, 1]) == pytest.approx(0, abs=0.15) and draws.min() > -1
    assert (draws[7] == footprint_noise(config, no_host, trace, 7)).all()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_and_vector_equals_single(tiny: Any, seed: int) -> None:
    config = tiny(memory_noise=0.6)
    single, vector = ServingEnv(config), ServingVectorEnv(2, config)
    observation, _ = single.reset(seed=seed)
    batch, _ = vector.reset(seed=[seed, seed + 1])
    rng, ended = np.random.default_rng(seed), False
    recount = Recount(single.simulation)
    while not ended:
        assert all((observation[key] == batch[key][0]).all() for key in observation)
        action = int(rng.choice(np.flatnonzero(observation["action_mask"])))
        recount.before(action)
        observation, reward, terminated, truncated, _ = single.step(action)
        batch, rewards, *_ = vector.step(np.array([action, 0]))
        ended = terminated or truncated
        recount.after(mask=not ended)
        assert reward == rewards[0]
        if ended:
            break
    state = single.simulation.state[0]
    assert state["num_done"] == state["num_requests"]


def test_without_noise_the_seed_changes_nothing(tiny: Any, trace_of: Any) -> None:
    a, b = Simulation(tiny(), 1), Simulation(tiny(), 1)
    trace = trace_of(arrival_s=[0.0, 0.5], prompt_tokens=8, output_tokens=3)
    a.reset(0, trace, 1)
    b.reset(0, trace, 2)
    assert a.state.tobytes() == b.state.tobytes()
