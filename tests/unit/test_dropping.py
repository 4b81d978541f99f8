"""R30: requests that wait too long are dropped and charged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsched_env import metrics
from mmsched_env.config import ConfigError, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.rendering.timeline import timeline
from mmsched_env.sim.events import DROP


def test_a_request_nobody_serves_is_dropped_on_time_and_charged(tiny: Any, trace_of: Any) -> None:
    simulation = Simulation(tiny(drop_after=1.5, drop_penalty=3.0), 1, logging=True)
    trace = trace_of(arrival_s=[1.0, 2.0], output_tokens=20, slo_e2e_s=[10.0, 40.0], weight=[1.0, 0.5])
    simulation.reset(0, trace)
    rewards = []
    done = False
    while not done:
        outcome = simulation.step(np.zeros(1, np.int64))[0]
        rewards.append(float(outcome["reward"]))
        done = bool(outcome["terminated"])
    log = simulation.event_log(0)
    assert log[log["kind"] == DROP]["time_s"].tolist() == [16.0, 62.0]
    records = simulation.episode_requests(0)
    assert records["charged_until_s"].tolist() == [31.0, 122.0]
    assert -sum(rewards) == pytest.approx(30.0 + 0.5 * 120.0, rel=1e-12)
    assert -sum(rewards) == pytest.approx(metrics.weighted_flow_time(records, 62.0), rel=1e-12)
    rows = metrics.per_request(records)
    assert rows["dropped"].all() and not rows["finished"].any() and not rows["slo_met"].any()


def test_who_has_requests_dropped_is_not_better_for_it(tiny: Any, trace_of: Any) -> None:
    """What policies are chosen by charges a dropped request as the reward does, and is the mean E2E where none is dropped."""
    trace = trace_of(arrival_s=[0.0, 0.0], output_tokens=[2, 400], slo_e2e_s=[10.0, 40.0], weight=[1.0, 0.5])
    charged = {}
    for served in (1, 2):
        simulation = Simulation(tiny(drop_after=1.0, drop_penalty=3.0), 1)
        simulation.reset(0, trace)
        outcome = simulation.outcomes[0]
        for _ in range(served):
            outcome = simulation.step(np.array([simulation.layout.dispatch(0, 0, 4)]))[0]
        while not outcome["terminated"]:
            outcome = simulation.step(np.zeros(1, np.int64))[0]
        records, summary = (
            simulation.episode_requests(0),
            metrics.summary(simulation.episode_requests(0), simulation.state[0]),
        )
        assert summary["completed"] == served
        charged[served] = metrics.charged_mean_e2e_ms(records)
        if served == 2:
            assert charged[2] == summary["weighted_mean_e2e_ms"]
        else:
            assert charged[1] == pytest.approx((summary["weighted_mean_e2e_ms"] + 0.5 * 120e3) / 1.5)
    assert charged[2] < charged[1]


def test_the_picture_of_who_waits_knows_of_it(tiny: Any, trace_of: Any) -> None:
    simulation = Simulation(tiny(drop_after=1.5), 1, logging=True)
    simulation.reset(0, trace_of(arrival_s=[1.0, 2.0], output_tokens=20, slo_e2e_s=[10.0, 40.0]))
    while not simulation.step(np.zeros(1, np.int64))[0]["terminated"]:
        pass
    queued = timeline(simulation, 0).queued
    assert queued.at(10.0).sum() == 2 and queued.at(20.0).sum() == 1 and queued.at(62.0).sum() == 0


def test_a_served_request_is_not_dropped(tiny: Any, trace_of: Any) -> None:
    simulation = Simulation(tiny(drop_after=0.001), 1)
    simulation.reset(0, trace_of(arrival_s=[0.0], output_tokens=20, slo_e2e_s=1000.0))
    outcome = simulation.step(np.array([simulation.layout.dispatch(0, 0, 4)]))[0]
    while not outcome["terminated"]:
        outcome = simulation.step(np.zeros(1, np.int64))[0]
    assert metrics.per_request(simulation.episode_requests(0))["finished"].all()


@pytest.mark.parametrize("key", ["drop_after", "drop_penalty"])
def test_bad_values(key: str) -> None:
    with pytest.raises(ConfigError, match=f"sim.{key} is -1"):
        SimConfig(**{key: -1.0})
