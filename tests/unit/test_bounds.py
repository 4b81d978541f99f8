"""Bounds: the optimum against enumeration and policies, the relaxation against both."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from mmsched_env import metrics
from mmsched_env.bounds.exact import exact_optimum
from mmsched_env.bounds.fluid import least_weighted_completion, shortest_rest_first, weighted_e2e_lower_bound
from mmsched_env.bounds.tiny import tiny_config, tiny_trace
from mmsched_env.config import ConfigError, EnvConfig, SimConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.workload import RequestTrace

CONFIG = tiny_config(all_actions=False)


def flow_time(simulation: Simulation) -> float:
    return metrics.weighted_flow_time(simulation.episode_requests(0), float(simulation.state["now"][0]))


def replay(config: EnvConfig, trace: RequestTrace, actions: tuple[int, ...]) -> float:
    simulation = Simulation(config, 1)
    simulation.reset(0, trace)
    for action in actions:
        outcome = simulation.step(np.array([action]))[0]
        assert not outcome["illegal"]
    assert outcome["terminated"]
    return flow_time(simulation)


@pytest.mark.parametrize("seed", range(6))
def test_no_policy_is_below_the_optimum_and_its_schedule_is_real(seed: int) -> None:
    simulation, trace = Simulation(CONFIG, 1), tiny_trace(CONFIG, seed)
    costs = {}
    for name in ("mect", "fcfs", "cmu"):
        run_episode(simulation, make_policy(name)[1], trace, 0)
        costs[name] = flow_time(simulation)
    simulation.reset(0, trace)
    best = exact_optimum(simulation, limit=min(costs.values()) + 1e-6)
    assert best.complete
    assert best.flow_time <= min(costs.values()) + 1e-6, "a schedule at least as good as the best rule's was found"
    assert replay(CONFIG, trace, best.actions) == pytest.approx(best.flow_time, abs=1e-6)


def enumerate_all(config: EnvConfig, trace: RequestTrace, best: float) -> float:
    """Least cost below `best` over all sequences of legal actions, only dearer prefixes left out: no bound, no order of
    actions."""
    simulation = Simulation(config, 1)
    simulation.reset(0, trace)
    open_nodes = [(0.0, simulation.snapshot(0))]
    while open_nodes:
        cost, node = open_nodes.pop()
        for action in np.flatnonzero(node.state["mask"][0]):
            simulation.restore(node)
            outcome = simulation.step(np.array([action]))[0]
            now = cost - float(outcome["reward"])
            if now >= best or outcome["stalled"]:
                continue
            if outcome["terminated"]:
                best = now
            else:
                open_nodes.append((now, simulation.snapshot(0)))
    return float(best)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_leaves_out_nothing(seed: int) -> None:
    config = CONFIG
    few = tiny_trace(config, seed).select([0, 1, 2])
    simulation = Simulation(config, 1)
    run_episode(simulation, make_policy("mect")[1], few, 0)
    limit = flow_time(simulation) + 1e-6
    simulation.reset(0, few)
    best = exact_optimum(simulation, limit)
    assert best.complete
    assert best.flow_time == pytest.approx(enumerate_all(config, few, limit), abs=1e-6)


def test_the_search_says_when_it_gave_up() -> None:
    simulation = Simulation(CONFIG, 1)
    simulation.reset(0, tiny_trace(CONFIG, 0))
    assert not exact_optimum(simulation, max_nodes=50).complete
    assert not exact_optimum(simulation, max_decisions=5).complete


def test_what_the_bound_does_not_know_is_refused() -> None:
    config = dataclasses.replace(CONFIG, sim=SimConfig(drop_after=3.0))
    simulation = Simulation(config, 1)
    simulation.reset(0, tiny_trace(config, 0))
    with pytest.raises(ConfigError, match="drop_after"):
        exact_optimum(simulation)


def test_shortest_rest_first_by_hand() -> None:
    """5 s at 0, 1 s at 1: the short one is served from 1 to 2, the long one is done at 6."""
    assert shortest_rest_first(np.array([0.0, 1.0]), np.array([5.0, 1.0])) == pytest.approx(6 + 1)
    assert shortest_rest_first(np.array([0.0, 10.0]), np.array([5.0, 1.0])) == pytest.approx(5 + 1)
    assert shortest_rest_first(np.array([0.0, 4.5]), np.array([5.0, 1.0])) == pytest.approx(5 + 1.5)


def test_weighted_completion_by_hand() -> None:
    """3 s of weight 1 at 0, 1 s of weight 3 at 1: served 0-1, 2-4 and 1-2, mean busy times 13/6 and 3/2."""
    ready, seconds, weight = np.array([0.0, 1.0]), np.array([3.0, 1.0]), np.array([1.0, 3.0])
    bound = least_weighted_completion(ready, seconds, weight)
    assert bound == pytest.approx(1 * (13 / 6 + 3 / 2) + 3 * (3 / 2 + 1 / 2))
    assert bound <= 1 * 4 + 3 * 2
    assert least_weighted_completion(ready, seconds, np.ones(2)) == pytest.approx(4 + 2)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_relaxation_is_below_the_optimum(seed: int, equal: bool) -> None:
    trace = tiny_trace(CONFIG, seed)
    if equal:
        trace = dataclasses.replace(trace, weight=np.ones(6, np.float32))
    simulation = Simulation(CONFIG, 1)
    simulation.reset(0, trace)
    run_episode(simulation, make_policy("mect")[1], trace, 0)
    limit = flow_time(simulation) + 1e-6
    simulation.reset(0, trace)
    best = exact_optimum(simulation, limit=limit)
    bound = weighted_e2e_lower_bound(CONFIG, trace)
    assert 0 < bound <= best.flow_time / trace.weight.sum()


def test_the_first_request_of_a_model_waits_for_a_cold_load() -> None:
    """One request alone: the bound is what the simulator takes, but for the time an instance is unloaded or levels round."""
    trace = tiny_trace(CONFIG, 0).select([0])
    run = run_episode(Simulation(CONFIG, 1), make_policy("mect")[1], trace, 0)
    bound = weighted_e2e_lower_bound(CONFIG, trace)
    assert 0.5 * run.summary["mean_e2e_ms"] / 1e3 < bound <= run.summary["mean_e2e_ms"] / 1e3


def test_a_bound_that_is_none_is_refused() -> None:
    config = dataclasses.replace(CONFIG, sim=SimConfig(drop_after=3.0))
    with pytest.raises(ConfigError, match="drop_after"):
        weighted_e2e_lower_bound(config, tiny_trace(config, 0))


def test_the_relaxation_grows_with_the_load_where_queues_form() -> None:
    config = env_config(
        {
            "cluster": {"gpus": ["rtx-4090-24gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": [0]},
            "models": {"names": ["qwen3-32b-q4_k_m"]},
            "workload": {"kind": "generator", "num_requests": 200, "rate_per_s": 0.05},
        }
    )
    trace = config.workload.sample(3, config.models.names)
    bounds = [weighted_e2e_lower_bound(config, trace.rescale_time(factor)) for factor in (1.0, 1e-3)]
    assert bounds[1] > 2 * bounds[0]
    for factor, bound in zip((1.0, 1e-3), bounds, strict=True):
        run = run_episode(Simulation(config, 1), make_policy("mect")[1], trace.rescale_time(factor), 0)
        assert bound < run.summary["weighted_mean_e2e_ms"] / 1e3


def test_the_table_of_gaps_counts_what_is_proven_and_what_cannot_be() -> None:
    module = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "distance_to_optimum.py"))
    names = module["POLICIES"]
    rows = [
        {"optimum": 10.0, "nodes": 100, **dict.fromkeys(names, 11.0), "composite": 10.0},
        {"optimum": 20.0, "nodes": 300, **dict.fromkeys(names, 20.0), "composite": 19.0},
        {"optimum": float("nan"), "nodes": 5000, **dict.fromkeys(names, 1.0)},
    ]
    lines = module["table"](rows).splitlines()
    assert lines[0] == "2 of 3 optima proven; nodes: median 200, most 300"
    assert "| fcfs | 5.0 | 5.0 | 10 | 1 | 0 |" in lines
    assert "| composite | -2.5 | -2.5 | 0 | 1 | 1 |" in lines
