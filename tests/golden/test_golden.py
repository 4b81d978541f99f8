"""The environment does what it did when the golden episodes were written, event by event (see make.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import episodes
import make
import pytest
from recount import Recount, check_log, flow_time_from_log

from mmsched_env.action import Kind
from mmsched_env.sim.events import NAMES

EPISODES = {path.stem: episodes.load(path) for path in episodes.FILES}
REL = 1e-12


def replay(episode: episodes.Episode, after: Any = None) -> episodes.Episode:
    actions = iter(episode["actions"])
    return episodes.run(episode, lambda simulation: next(actions, None), after)


def close(a: float, b: float) -> bool:
    return abs(a - b) <= REL * max(abs(a), abs(b))


@pytest.mark.parametrize("name", EPISODES)
def test_same_events_records_and_reward(name: str) -> None:
    golden = EPISODES[name]
    now = replay(golden)
    for at, (old, new) in enumerate(zip(golden["events"], now["events"], strict=False)):
        same = old[:-2] == new[:-2] and all(map(close, old[-2:], new[-2:]))
        assert same, f"event {at} was {old} and is {new}"
    assert len(now["events"]) == len(golden["events"])
    for j, (old, new) in enumerate(zip(golden["requests"], now["requests"], strict=True)):
        for field, value in old.items():
            assert close(new[field], value), f"request {j}: {field} was {value} and is {new[field]}"
    assert now["ended"] == golden["ended"] and close(now["reward"], golden["reward"])


@pytest.mark.parametrize("name", EPISODES)
def test_invariants_hold_at_every_step(name: str) -> None:
    """The companion: a file that was accepted by mistake is no excuse."""
    watched: list[Recount] = []

    def watch(simulation: Any) -> Recount:
        watched.append(Recount(simulation))
        watched[0].after()
        return watched[0]

    now = replay(EPISODES[name], watch)
    simulation = watched[0].sim
    log, records, state = simulation.event_log(0), simulation.episode_requests(0), simulation.state[0]
    check_log(log, records, state, simulation.dims.S)
    weights = simulation.config.reward
    if weights.slo_miss == weights.slowdown == 0:
        flow = flow_time_from_log(log, records["weight"], float(state["now"]))
        assert -now["reward"] == pytest.approx(flow, rel=1e-9)


def test_together_they_show_everything() -> None:
    """Every kind of action and event, and every mode."""
    layout = episodes.simulation_of(next(iter(EPISODES.values()))).layout
    actions = [layout.decode(a) for episode in EPISODES.values() for a in episode["actions"]]
    assert {a.kind for a in actions} == set(Kind)
    assert {a.scope for a in actions if a.kind == Kind.PREEMPT} == {0, 1}
    assert {event[0] for episode in EPISODES.values() for event in episode["events"]} == set(NAMES)
    sims = [episode["config"]["sim"] for episode in EPISODES.values()]
    assert {sim["prefill_mode"] for sim in sims} == {"mixed", "prefill_first"}
    assert {sim["preempt_mode"] for sim in sims} == {"swap", "recompute", "cheaper"}
    assert {sim.get("resize_mode", "reload") for sim in sims} == {"reload", "move"}
    images = [sum(episode["trace"]["image_tokens"]) for episode in EPISODES.values()]
    assert max(images) > 0 and len(EPISODES) == 5
    assert all(8 <= len(episode["requests"]) <= 20 for episode in EPISODES.values())


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "serving-v0-x.json"
    assert make.write(path, "old", accept=False) and path.read_text() == "old"
    assert make.write(path, "new", accept=False) and path.read_text() == "old"
    assert make.write(path, "new", accept=True) and path.read_text() == "new"
    assert not make.write(path, "new", accept=False)


@pytest.mark.slow
def test_make_writes_the_files_there_are() -> None:
    """Unlike the replay this draws the actions anew, from the masks."""
    done = subprocess.run([sys.executable, make.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as before") == len(EPISODES)
