"""Hypothesis chooses the configuration, the trace and every action, and shrinks what breaks an invariant to a short story."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from recount import Recount, check_log, flow_time_from_log

from mmsched_env.env import ServingEnv
from mmsched_env.workload import RequestTrace

REQUEST = st.tuples(
    st.sampled_from([0.0, 4e-10, 0.1, 1.0, 5.0]),  # s after the one before: within one instant, soon, late
    st.integers(0, 2),
    st.integers(1, 900),  # prompt tokens
    st.integers(1, 60),  # output tokens
    st.integers(0, 80),  # tokens reserved beyond
    st.sampled_from([0.25, 1.0]),
)
SIM = st.fixed_dictionaries(
    {
        "prefill_mode": st.sampled_from(["mixed", "prefill_first"]),
        "preempt_mode": st.sampled_from(["swap", "recompute", "cheaper"]),
        "resize_mode": st.sampled_from(["reload", "move"]),
        "drop_after": st.sampled_from([np.inf, 2.0]),
        "memory_noise": st.sampled_from([0.0, 0.3]),
    }
)
PICK = st.floats(0, 1, exclude_max=True)


class Serving(RuleBasedStateMachine):
    """One episode under random actions. Everything is recounted from the records after every step (recount.py)."""

    make_config: Any  # the fixture `tiny`
    patch_tables: Any

    env: ServingEnv | None = None
    ended = False
    total = 0.0

    @initialize(
        sim=SIM,
        requests=st.lists(REQUEST, min_size=1, max_size=20),
        swap=st.sampled_from([0.0, 0.02, 0.25]),
        side_by_side=st.tuples(st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.0, 0.25])),
    )
    def begin(self, sim: Any, requests: Any, swap: float, side_by_side: tuple[float, float]) -> None:
        self.patch_tables(operation_share=side_by_side[0], interference=side_by_side[1])
        config = self.make_config(10, swap, debug_checks=True, **sim)
        gap, model, prompt, output, more, weight = (np.array(column) for column in zip(*requests, strict=True))
        self.trace = RequestTrace.from_columns(
            config.models.names,
            arrival_s=np.cumsum(gap),
            model=model,
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=output + more,
            weight=weight,
        )
        self.env = ServingEnv(config)
        self.start()

    def start(self) -> None:
        assert self.env is not None
        self.env.reset(seed=0, options={"trace": self.trace})
        self.recount = Recount(self.env.simulation)
        self.saved: Any = None
        self.ended, self.total = False, 0.0

    def going_on(self) -> bool:
        return self.env is not None and not self.ended

    def take(self, action: int) -> None:
        assert self.env is not None
        layout, mask = self.env.layout, self.env.simulation.current.mask[0]
        legal = 0 <= action < layout.size and bool(mask[action])
        if legal:
            self.recount.before(action)
        _, reward, self.ended, _, info = self.env.step(action)
        assert info["illegal_action"] == (not legal)
        self.total += float(reward)

    def of_kind(self, first: int, last: int, pick: float) -> int:
        """A legal action with an index from `first` on, before `last`; WAIT or the first legal one if there is none."""
        assert self.env is not None
        mask = self.env.simulation.current.mask[0]
        legal = np.flatnonzero(mask[first:last]) + first
        return int(legal[int(pick * len(legal))]) if len(legal) else int(np.argmax(mask))

    @precondition(going_on)
    @rule()
    def wait(self) -> None:
        self.take(self.of_kind(0, 1, 0.0))

    @precondition(going_on)
    @rule(pick=PICK)
    def dispatch(self, pick: float) -> None:
        assert self.env is not None
        self.take(self.of_kind(1, self.env.layout.preempt_at, pick))

    @precondition(going_on)
    @rule(pick=PICK)
    def preempt(self, pick: float) -> None:
        assert self.env is not None
        self.take(self.of_kind(self.env.layout.preempt_at, self.env.layout.offload_at, pick))

    @precondition(going_on)
    @rule(pick=PICK)
    def offload(self, pick: float) -> None:
        assert self.env is not None
        self.take(self.of_kind(self.env.layout.offload_at, self.env.layout.size, pick))

    @precondition(going_on)
    @rule(action=st.integers(-3, 500))
    def whatever(self, action: int) -> None:
        """Legal or not; what is not counts as WAIT."""
        self.take(action)

    @precondition(going_on)
    @rule()
    def remember(self) -> None:
        assert self.env is not None
        watch = copy.deepcopy(self.recount.holds), self.recount.last_now
        self.saved = self.env.get_state(), watch, self.total

    @precondition(lambda self: self.going_on() and self.saved is not None)
    @rule()
    def go_back(self) -> None:
        assert self.env is not None
        state, watch, self.total = self.saved
        self.env.set_state(state)
        self.recount.holds, self.recount.last_now = copy.deepcopy(watch[0]), watch[1]

    @precondition(lambda self: self.ended)
    @rule()
    def look_back_and_begin_again(self) -> None:
        assert self.env is not None
        log = self.env.simulation.event_log(0)
        check_log(log, self.recount.r, self.recount.s, self.env.simulation.dims.S)
        flow = flow_time_from_log(log, self.recount.r["weight"], float(self.recount.s["now"]))
        assert abs(-self.total - flow) <= 1e-9 * max(1.0, flow), "I7: rewards and event log disagree"
        self.start()

    @invariant()
    def all_is_well(self) -> None:
        if self.env is not None:
            self.recount.after(mask=not self.ended)


def test_any_story_keeps_the_invariants(tiny: Any, patch_tables: Any) -> None:
    machine = type("Story", (Serving,), {"make_config": staticmethod(tiny), "patch_tables": staticmethod(patch_tables)})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=checks
        ),
    )
