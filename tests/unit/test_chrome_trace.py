"""The exported trace says what the event log says, in a form that viewers accept."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from mmsched_env.core import Simulation
from mmsched_env.env import ServingEnv
from mmsched_env.errors import MmschedError
from mmsched_env.rendering.chrome_trace import REQUESTS, chrome_trace
from mmsched_env.sim.events import NAMES


@pytest.fixture(scope="module")
def episode(tiny: Any, random_action: Any) -> Simulation:
    env = ServingEnv(tiny(25, memory_noise=0.4))
    observation, _ = env.reset(seed=3)
    rng, ended = np.random.default_rng(3), False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(random_action(rng, env.layout, observation["action_mask"]))
        ended = terminated or truncated
    return env.simulation


@pytest.fixture(scope="module")
def records(episode: Simulation) -> list[dict[str, Any]]:
    return list(json.loads(json.dumps(chrome_trace(episode, 0), allow_nan=False))["traceEvents"])


def test_every_record_has_what_its_phase_asks_for(records: list[dict[str, Any]]) -> None:
    named = {(r["pid"], r["tid"]) for r in records if r["name"] == "thread_name"}
    for r in records:
        assert r["ph"] in "MXCbnestf" and isinstance(r["pid"], int) and isinstance(r["tid"], int)
        if r["ph"] == "M":
            continue
        assert r["ts"] >= 0 and (r["pid"], r["tid"]) in named
        assert r["ph"] != "X" or r["dur"] >= 0
        assert r["ph"] not in "bnestf" or "id" in r


def test_slots_do_one_thing_at_a_time(records: list[dict[str, Any]], episode: Simulation) -> None:
    spans = defaultdict(list)
    for r in records:
        if r["ph"] == "X" and r["cat"] not in ("save", "restore", "cpu"):
            spans[r["pid"], r["tid"]].append((r["ts"], r["ts"] + r["dur"]))
    assert len(spans) > 2
    for mine in spans.values():
        mine.sort()
        assert all(before[1] <= after[0] + 1e-3 for before, after in itertools.pairwise(mine))
    log = episode.event_log(0)
    loads = [r for r in records if r["ph"] == "X" and r["cat"] == "load"]
    assert len(loads) == (log["kind"] == NAMES.index("load_start")).sum()


def test_every_request_begins_and_ends_once(records: list[dict[str, Any]], episode: Simulation) -> None:
    rows = episode.episode_requests(0)
    for j, row in enumerate(rows):
        mine = [r for r in records if r["pid"] == REQUESTS and r.get("id") == j]
        assert [r["ph"] for r in mine] == ["b", *["n"] * (len(mine) - 2), "e"]
        assert mine[0]["ts"] == pytest.approx(1e6 * row["arrival_s"], abs=1e-2)
        assert mine[-1]["ts"] == pytest.approx(1e6 * row["finish_s"], abs=1e-2)
        dispatches = sum(r["args"]["step"] == "dispatch" for r in mine[1:-1])
        assert dispatches == sum(r["args"]["step"] == "preempt" for r in mine[1:-1]) + 1


def test_arrows_start_once_and_end_at_a_slot(records: list[dict[str, Any]]) -> None:
    flows = defaultdict(list)
    for r in records:
        if r["ph"] in "stf":
            flows[r["id"]].append(r)
    assert len(flows) == 25
    for mine in flows.values():
        assert [r["ph"] for r in mine] == ["s", *["t"] * (len(mine) - 2), "f"]
        assert all(before["ts"] <= after["ts"] for before, after in itertools.pairwise(mine))
        assert all(r["pid"] > REQUESTS for r in mine)


def test_it_needs_an_episode_and_a_log(tiny: Any) -> None:
    with pytest.raises(MmschedError, match="no episode"):
        chrome_trace(Simulation(tiny(), 1, logging=True), 0)
    silent = Simulation(tiny(), 1)
    silent.reset(0, silent.config.workload.sample(0, silent.config.models.names))
    with pytest.raises(MmschedError, match="keeps no event log"):
        chrome_trace(silent, 0)
