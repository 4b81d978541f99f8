"""Random legal and illegal actions in every mode; after every step everything is recounted from the records."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from recount import Recount, check_log, flow_time_from_log

from mmsched_env.action import WAIT
from mmsched_env.config import ConfigError
from mmsched_env.env import ServingEnv
from mmsched_env.sim import state as c
from mmsched_env.sim.events import PREEMPT

MODES = list(
    itertools.product(("mixed", "prefill_first"), ("swap", "recompute", "cheaper"), ("reload", "move"), (False, True))
)
SCARCE = {"host_bytes": 14_000_000_000}  # weights do not all fit into host RAM; little room for saved KV


def play(env: ServingEnv, choose: Callable[..., int], seed: int, illegal: float = 0.1, trace: Any = None) -> None:
    """One episode to its end, all invariants checked at every step."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed, options=None if trace is None else {"trace": trace})
    recount = Recount(env.simulation)
    recount.after()
    total, ended = 0.0, False
    for _ in range(5000):
        mask = env.simulation.current.mask[0]
        action = choose(rng, env.layout, mask)
        if rng.random() < illegal:
            action = int(rng.integers(-5, env.layout.size + 5))
        legal = 0 <= action < env.layout.size and bool(mask[action])
        if legal:
            recount.before(action)
        _, reward, ended, truncated, info = env.step(action)
        assert info["illegal_action"] == (not legal)
        assert np.isfinite(reward) and reward <= 0 and not truncated
        total += reward
        recount.after(mask=not ended)
        if ended:
            break
    assert ended, "the episode did not drain"
    log = env.simulation.event_log(0)
    check_log(log, recount.r, recount.s, env.simulation.dims.S)
    flow = flow_time_from_log(log, recount.r["weight"], float(recount.s["now"]))
    assert -total == pytest.approx(flow, rel=1e-9), "I7: rewards and event log disagree"
    assert info["metrics"]["completed"] == len(recount.r)


@pytest.mark.parametrize(("prefill", "preempt", "resize", "scarce"), MODES)
def test_random_policy(
    tiny: Any, patch_tables: Any, random_action: Any, prefill: str, preempt: str, resize: str, scarce: bool
) -> None:
    if scarce:
        patch_tables(**SCARCE)
    config = tiny(12, 0.02 if scarce else 0.25, prefill_mode=prefill, preempt_mode=preempt, resize_mode=resize)
    env = ServingEnv(config)
    for seed in range(2):
        play(env, random_action, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("prefill", "preempt", "resize", "scarce"), MODES)
def test_random_policy_longer(
    tiny: Any, patch_tables: Any, random_action: Any, prefill: str, preempt: str, resize: str, scarce: bool
) -> None:
    if scarce:
        patch_tables(**SCARCE)
    config = tiny(30, 0.02 if scarce else 0.25, prefill_mode=prefill, preempt_mode=preempt, resize_mode=resize)
    env = ServingEnv(config)
    for seed in range(100, 108):
        play(env, random_action, seed)


@pytest.mark.parametrize("ablated", ["allow_preempt", "allow_offload"])
def test_random_policy_without_an_action(tiny: Any, random_action: Any, ablated: str) -> None:
    env = ServingEnv(tiny(12, **{ablated: False}))
    for seed in range(2):
        play(env, random_action, seed)
    assert env.simulation.state["num_preempted" if ablated == "allow_preempt" else "num_resizes"][0] == 0


def test_more_waiting_than_the_window_shows(tiny: Any, trace_of: Any, random_action: Any) -> None:
    """All at once, more than queue slots and seats, some at the same instant up to the 1e-9 s of one event."""
    rng = np.random.default_rng(3)
    size = 60
    trace = trace_of(
        arrival_s=np.sort(rng.choice([0.0, 4e-10, 2e-9, 1.0], size)),
        model=rng.integers(3, size=size),
        prompt_tokens=rng.integers(1, 600, size),
        output_tokens=rng.integers(1, 20, size),
        weight=rng.choice([0.25, 1.0], size),
    )
    env = ServingEnv(tiny())
    env.reset(options={"trace": trace})
    waited = int((trace.arrival_s < 1e-9).sum())
    assert env.simulation.current.records["globals"]["beyond_window"][0, 0] == waited - env.simulation.dims.Q > 0
    play(env, random_action, 0, illegal=0.02, trace=trace)


@pytest.mark.parametrize("name", ["save_s", "unload_s", "init_s"])
def test_operations_must_take_time(tiny: Any, patch_tables: Any, name: str) -> None:
    """A save without bytes and without time would never end."""
    patch_tables(**{name: 0.0})
    with pytest.raises(ConfigError, match=f"{name} has an entry of 0.0 s"):
        ServingEnv(tiny())


# ---------------------------------------------------------------- I5: what the mask says is what the kernel does


class Snapshot:
    """The records of one environment, to try several actions from the same point."""

    def __init__(self, env: ServingEnv) -> None:
        sim = env.simulation
        self.sim = sim
        self.mask = sim.current.mask[0].copy()
        self.saved = sim.state.copy(), sim.requests.copy(), sim.logs.copy()

    def restore(self) -> None:
        self.sim.state[:], self.sim.requests[:] = self.saved[0], self.saved[1]
        self.sim.logs[:, : self.saved[2].shape[1]] = self.saved[2]
        self.sim.current.mask[0] = self.mask

    def step(self, action: int) -> tuple[Any, Any, Any]:
        """Outcome, STATE and REQUEST records after the action, from the saved point."""
        self.restore()
        outcome = self.sim.step(np.array([action]))[0].copy()
        return outcome, self.sim.state.copy(), self.sim.requests.copy()


def same(a: Any, b: Any, but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a.dtype.names if name not in but)


@pytest.mark.parametrize("resize", ["reload", "move"])
def test_mask_is_what_is_accepted(tiny: Any, random_action: Any, resize: str) -> None:
    env = ServingEnv(tiny(8, preempt_mode="recompute", resize_mode=resize))
    env.reset(seed=5)
    rng = np.random.default_rng(5)
    for _ in range(60):
        here = Snapshot(env)
        waited = here.step(WAIT)
        for action in rng.choice(np.flatnonzero(here.mask), 4):
            outcome, state, requests = here.step(int(action))
            assert not outcome["illegal"] and not outcome["stalled"]
            if action != WAIT:
                assert not same(state, waited[1]), f"{env.layout.decode(int(action))} did nothing but wait"
        for action in (*rng.choice(np.flatnonzero(here.mask == 0), 4).tolist(), -1, env.layout.size, 2**40):
            outcome, state, requests = here.step(int(action))
            assert outcome["illegal"]
            if here.mask[WAIT]:
                assert outcome["reward"] == waited[0]["reward"], "an illegal action is not WAIT"
                assert same(state, waited[1]) and same(requests, waited[2])
            else:  # waiting would be for ever: only the step is counted
                assert outcome["reward"] == 0 and same(requests, here.saved[1])
                assert same(state, here.saved[0], but=("num_steps", "terms"))
        here.restore()
        _, _, terminated, _, _ = env.step(random_action(rng, env.layout, here.mask))
        if terminated:
            env.reset()


def test_wait_is_illegal_when_nothing_is_pending(tiny: Any, trace_of: Any) -> None:
    env = ServingEnv(tiny())
    obs, _ = env.reset(options={"trace": trace_of(arrival_s=[2.0], output_tokens=[3])})
    assert obs["action_mask"][WAIT] == 0 and obs["action_mask"].sum() > 0
    _, reward, terminated, _, info = env.step(WAIT)
    assert info["illegal_action"] and reward == 0 and not terminated and info["time_s"] == 2.0
    later = trace_of(arrival_s=[2.0, 3.0], output_tokens=[3, 3])
    obs, _ = env.reset(options={"trace": later})
    assert obs["action_mask"][WAIT] == 1


def test_zero_time_decisions_cost_nothing(tiny: Any, trace_of: Any) -> None:
    env = ServingEnv(tiny())
    env.reset(options={"trace": trace_of(arrival_s=[2.0] * 4, output_tokens=9)})
    for _ in range(3):
        _, reward, _, _, info = env.step(env.layout.dispatch(0, 0, 4))
        assert not info["illegal_action"] and info["time_s"] == 2.0 and reward == 0
    _, reward, _, _, info = env.step(env.layout.dispatch(0, 0, 4))  # nothing is left to decide: time runs on
    assert info["time_s"] > 2.0 and reward == pytest.approx(-4 * (info["time_s"] - 2.0), rel=1e-12)


@pytest.mark.parametrize("limit", [{"max_time_s": 3.0}, {"max_steps": 7}])
def test_truncation(tiny: Any, random_action: Any, limit: dict[str, float]) -> None:
    env = ServingEnv(tiny(20, **limit))
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    total, steps, truncated = 0.0, 0, False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(
            random_action(rng, env.layout, env.simulation.current.mask[0])
        )
        total, steps = total + reward, steps + 1
        assert not terminated and steps < 1000
    assert info["time_s"] == 3.0 if "max_time_s" in limit else steps == 7
    log, records = env.simulation.event_log(0), env.simulation.episode_requests(0)
    assert -total == pytest.approx(flow_time_from_log(log, records["weight"], info["time_s"]), rel=1e-9)
    assert info["metrics"]["num_requests"] == (records["phase"] != c.FUTURE).sum()


# ---------------------------------------------------------------- races between a restore and PREEMPT or OFFLOAD


@pytest.mark.parametrize("change", ["preempt", "preempt_request", "offload"])
@pytest.mark.parametrize("late", [False, True], ids=["before_restore", "after_restore"])
def test_change_of_an_instance_with_a_restore(tiny: Any, trace_of: Any, late: bool, change: str) -> None:
    """Request 1's KV was saved and it is dispatched back to the instance on which request 0 decodes.

    The instance is changed in the same instant (the restore has not begun: it must not begin while the instance drains),
    or once the KV is back on the GPU but request 1 has not joined the batch (it must be saved again, not forgotten).
    """
    trace = trace_of(
        arrival_s=[0.0, 0.0, 3.5],
        model=[0, 0, 2],
        prompt_tokens=[300, 900, 5],
        output_tokens=[600, 500, 1],
        predicted_tokens=[600, 1000, 1],
        max_tokens=1000,
    )
    env = ServingEnv(tiny(resize_mode="move"))
    env.reset(options={"trace": trace})
    layout, recount = env.layout, Recount(env.simulation)
    records = env.simulation.episode_requests(0)

    def step(action: int) -> bool:
        assert env.simulation.current.mask[0, action], f"{layout.decode(action)} is illegal"
        recount.before(action)
        ended = bool(env.step(action)[2])
        recount.after(mask=not ended)
        return ended

    def dispatch(j: int) -> None:
        window = env.simulation.state["window"][0].tolist()
        step(layout.dispatch(window.index(j), 0, 4))

    dispatch(0)
    dispatch(1)
    while records["phase"][2] == c.FUTURE:
        step(WAIT)
    assert records["phase"].tolist() == [c.DECODE, c.DECODE, c.QUEUED]
    step(layout.preempt(0, whole_instance=False))
    while records["phase"][1] != c.QUEUED or records["saved_host"][1] < 0:
        step(WAIT)
    dispatch(1)
    while late and records["saved_host"][1] >= 0:
        step(WAIT)
    assert records["phase"].tolist() == [c.DECODE, c.BOUND, c.QUEUED]
    step(
        {"preempt": layout.preempt(0), "preempt_request": layout.preempt(0, False), "offload": layout.offload(0, 2)}[
            change
        ]
    )
    ended = False
    while not ended:
        waiting = [j for j in env.simulation.state["window"][0] if j >= 0]
        ready = [
            layout.dispatch(q, g, k)
            for q in range(len(waiting))
            for g in range(2)
            for k in (4, 2)
            if env.simulation.current.mask[0, layout.dispatch(q, g, k)]
        ]
        ended = step(ready[0] if ready else WAIT)
    log = env.simulation.event_log(0)
    check_log(log, recount.r, recount.s, env.simulation.dims.S)
    if change == "preempt":  # both are taken off, and neither keeps KV for nothing
        taken = log[(log["kind"] == PREEMPT) & (log["request"] == 1)]
        assert taken["value"][-1] == taken["value"][0], (
            "request 1 has not generated anything since its first preemption"
        )
