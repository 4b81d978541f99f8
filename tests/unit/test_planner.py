"""The planner sees nothing that is hidden and improves on its base rule; the clairvoyant bound is marked as one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmsched_env.baselines.planner import Planner
from mmsched_env.bounds.tiny import tiny_config, tiny_trace
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError, MmschedError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.imagine import imagined_worlds, true_world
from mmsched_env.policy import SimulationPolicy
from mmsched_env.workload import RequestTrace

CONFIG = tiny_config(all_actions=True)
SEEDS = range(20, 32)


def trace_of(seed: int, **changes: Any) -> RequestTrace:
    return dataclasses.replace(tiny_trace(CONFIG, seed), **changes)


def decisions(policy: Any, trace: RequestTrace, until_s: float) -> list[tuple[float, int]]:
    """(time, action) up to `until_s`."""
    simulation = Simulation(CONFIG, 1)
    policy.reset(simulation.layout, 0)
    simulation.reset(0, trace)
    policy.attach(simulation)
    out = []
    while float(simulation.state["now"][0]) < until_s:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        action = policy.act(observation, simulation.current.mask[0])
        out.append((float(simulation.state["now"][0]), action))
        if simulation.step(np.array([action]))[0]["terminated"]:
            break
    return [entry for entry in out if entry[0] < until_s]


def test_what_is_hidden_does_not_change_what_the_planner_does() -> None:
    """Other true lengths (not yet reached) and other arrivals to come, equal observations: equal decisions."""
    first = trace_of(21, output_tokens=np.full(6, 300, np.int32))
    until = float(first.arrival_s[3])
    other = dataclasses.replace(
        first,
        output_tokens=np.full(6, 900, np.int32),
        arrival_s=np.append(first.arrival_s[:4], first.arrival_s[4:] + 50.0),
        model=np.append(first.model[:4], (first.model[4:] + 1) % 3).astype(np.int32),
    )
    here, there = (decisions(make_policy("planner")[1], trace, until) for trace in (first, other))
    assert len(here) > 3
    assert here == there
    bound = [decisions(make_policy("clairvoyant")[1], trace, 1e9) for trace in (first, other)]
    assert bound[0] != bound[1], "that which may look ahead does"


def played(policy: Any, trace: RequestTrace) -> list[tuple[float, int]]:
    """(time, action) of the whole episode; a rule needs no simulation."""
    if not isinstance(policy, SimulationPolicy):
        policy.attach = lambda simulation: None
    return decisions(policy, trace, np.inf)


def half_way(seed: int) -> Simulation:
    simulation = Simulation(CONFIG, 1)
    run = make_policy("mect")[1]
    run.reset(simulation.layout, 0)
    simulation.reset(0, trace_of(seed))
    while float(simulation.state["now"][0]) < 12.0:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        simulation.step(np.array([run.act(observation, simulation.current.mask[0])]))
    return simulation


def test_imagined_worlds_look_like_the_real_one_and_can_go_on() -> None:
    simulation = half_way(22)
    before = simulation.state.tobytes(), simulation.requests.tobytes()
    worlds = imagined_worlds(simulation, 3, 20.0, 0.5, np.random.default_rng(0))
    assert (simulation.state.tobytes(), simulation.requests.tobytes()) == before
    branches = Simulation(CONFIG, 3)
    for i, world in enumerate(worlds):
        branches.restore(world, slice(i, i + 1))
    arrived = int(simulation.state["num_arrived"][0])
    for name, values in branches.current.observation().items():
        if name != "action_mask":
            assert all(np.array_equal(row, simulation.current.observation()[name][0]) for row in values), name
    lengths = [world.requests["output_tokens"][:arrived] for world in worlds]
    assert not np.array_equal(lengths[0], lengths[1])
    assert all((world.requests["output_tokens"] <= world.requests["max_tokens"]).all() for world in worlds)
    done = simulation.episode_requests(0)[:arrived]["finish_s"] >= 0
    assert all((length > simulation.episode_requests(0)[:arrived]["generated"])[~done].all() for length in lengths)
    assert all((np.diff(world.requests["arrival_s"]) >= 0).all() for world in worlds)
    mect = make_policy("mect")[1]
    for world in worlds:
        alone = Simulation(CONFIG, 1)
        alone.restore(world)
        mect.reset(alone.layout, 0)
        for _ in range(500):
            observation = {key: values[0] for key, values in alone.current.observation().items()}
            if alone.step(np.array([mect.act(observation, alone.current.mask[0])]))[0]["terminated"]:
                break
        assert (alone.episode_requests(0)["finish_s"] >= 0).all()


def test_the_more_arrive_the_less_far_the_planner_looks() -> None:
    simulation = half_way(22)
    now = float(simulation.state["now"][0])

    def latest_s(**settings: float) -> float:
        planner = Planner(**settings)
        planner.reset(simulation.layout, 0)
        return max(float(world.requests["arrival_s"].max()) - now for world in planner._worlds(simulation, 200))

    rate = float(simulation.current.records["models"]["arrivals_per_s"][0].sum())
    assert 0.8 < latest_s(arrivals=2.0) / (2.0 / rate) <= 1.0
    assert 0.8 < latest_s(arrivals=2.0, horizon_s=1.0 / rate) / (1.0 / rate) <= 1.0, "the shorter of the two"


def test_the_true_world_is_true() -> None:
    simulation = half_way(23)
    world = true_world(simulation, 1e9)
    real = simulation.episode_requests(0)
    for column in ("output_tokens", "arrival_s", "model"):
        np.testing.assert_array_equal(world.requests[column], real[column])
    np.testing.assert_array_equal(world.requests["predicted_tokens"], real["output_tokens"])


@pytest.mark.parametrize("name", ["planner", "clairvoyant"])
def test_look_ahead_improves_on_its_base_rule(name: str) -> None:
    simulation = Simulation(CONFIG, 1)

    def cost(policy: str) -> float:
        made = make_policy(policy)[1]
        episodes = [run_episode(simulation, made, trace_of(seed), seed) for seed in SEEDS]
        return float(np.mean([episode.summary["weighted_mean_e2e_ms"] for episode in episodes]))

    assert cost(name) < cost("composite")


SURE = 1e9
"""standard errors by which nothing is ever better"""


def test_where_nothing_is_better_the_base_rule_decides_or_the_policy_that_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = trace_of(25)
    wary = {"name": "planner", "caution": SURE, "samples": 2}
    rules = {name: make_policy(name)[1] for name in ("composite", "least_loaded")}
    alone = {name: [action for _, action in played(rule, trace)] for name, rule in rules.items()}
    assert alone["composite"] != alone["least_loaded"]
    assert [action for _, action in played(make_policy(wary)[1], trace)] == alone["composite"]
    led = make_policy(wary | {"lead": "least_loaded"})[1]
    assert [action for _, action in played(led, trace)] == alone["least_loaded"]


def test_a_world_in_which_a_rollout_is_cut_says_nothing() -> None:
    """What a cut rollout has not paid for yet would look like a gain of whatever makes decisions more frequent."""
    trace = trace_of(25)
    alone = [action for _, action in played(make_policy("composite")[1], trace)]
    assert [action for _, action in played(make_policy({"name": "planner", "caution": 0.0})[1], trace)] != alone
    cut = {"name": "planner", "caution": 0.0, "max_rounds": 1}
    assert [action for _, action in played(make_policy(cut)[1], trace)] == alone


def raced(monkeypatch: pytest.MonkeyPatch, gain_of: dict[int, float], **settings: int) -> tuple[int, list[list[int]]]:
    """Who wins, and who was in the race at each look, where candidate `c` gains `gain_of[c]` and a noise of 0.1."""
    planner, looks = Planner(**settings), []
    planner._rng = np.random.default_rng(0)

    def gains(candidates: list[int], worlds: list[int]) -> NDArray[np.float64]:
        looks.append(candidates)
        noise = 0.1 * planner._rng.standard_normal((len(worlds), len(candidates)))
        made: NDArray[np.float64] = np.array([gain_of[c] for c in candidates]) + noise
        return np.where(np.array(candidates) == candidates[0], 0.0, made)

    monkeypatch.setattr(planner, "_gains", gains)
    monkeypatch.setattr(planner, "_worlds", lambda simulation, count: list(range(count)))
    simulation = Simulation(CONFIG, 1)
    return planner._race(simulation, list(gain_of), list(range(planner.batch))), looks


def test_candidates_that_are_behind_leave_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    winner, looks = raced(monkeypatch, {7: 0.0, 3: 1.0, 5: -1.0, 4: 1.1}, samples=10, batch=4)
    assert winner == 4
    assert looks == [[7, 3, 5, 4], [7, 3, 4], [7, 3, 4]]


def test_a_race_of_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raced(monkeypatch, {7: 0.0, 3: -1.0, 5: -1.0}, samples=100, batch=4) == (7, [[7, 3, 5]])


def test_a_race_without_a_second_look_weighs_all_worlds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raced(monkeypatch, {7: 0.0, 3: 1.0, 5: -1.0}, samples=6, batch=6) == (3, [[7, 3, 5]])


def test_a_bound_is_marked_and_a_planner_is_none() -> None:
    label, clairvoyant = make_policy("clairvoyant")
    assert label == "clairvoyant (bound)"
    assert isinstance(clairvoyant, SimulationPolicy)
    assert clairvoyant.is_bound
    label, planner = make_policy({"name": "planner", "samples": 2})
    assert label == "planner,samples=2"
    assert isinstance(planner, SimulationPolicy)
    assert not planner.is_bound


def test_a_planner_needs_its_simulation_and_a_base_rule() -> None:
    simulation = half_way(24)
    planner = make_policy("planner")[1]
    planner.reset(simulation.layout, 0)
    observation = {key: values[0] for key, values in simulation.current.observation().items()}
    with pytest.raises(MmschedError, match="attach"):
        planner.act(observation, simulation.current.mask[0])
    with pytest.raises(ConfigError, match=r"unknown base rule 'met' \(did you mean 'mect'"):
        make_policy({"name": "planner", "base": "met"})
    for name in ("samples", "batch", "arrivals", "width", "max_rounds"):
        with pytest.raises(ConfigError, match=f"^planner: {name} is 0; accepted: at least 1$"):
            make_policy({"name": "planner", name: 0})
    for name in ("horizon_s", "caution", "sigma"):
        with pytest.raises(ConfigError, match=f"^planner: {name} is -1; accepted: at least 0$"):
            make_policy({"name": "planner", name: -1})
    with pytest.raises(ConfigError, match=r"policy planner .*unexpected keyword argument 'nope'"):
        make_policy({"name": "planner", "base_settings": {"nope": 1}})
