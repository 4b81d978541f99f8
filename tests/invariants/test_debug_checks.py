"""`sim.debug_checks` raises at the step at which a record is wrong, and names the invariant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsched_env.core import Simulation
from mmsched_env.sim import state as c
from mmsched_env.sim.kernel import checks

FAULTS = {
    "num_done": (("state", "num_done", (), 1), "I1: every arrived"),
    "in_system": (("state", "num_in_system", (), 1), "I1: every arrived"),
    "queue_length": (("state", "queue_length", (), 1), "I1: the queue"),
    "queue_link": (("requests", "previous", 2, 1), "I1: the queue"),
    "seats": (("state", "num_seated", 0, 1), "I1: every request on a seat"),
    "seat_of_another": (("requests", "instance", 0, 1), "I1: every request on a seat"),
    "gpu": (("state", "gpu_used", 0, 1), "I2: GPU"),
    "kv": (("state", "host_kv", 0, 1), "I2: host RAM"),
    "pinned": (("state", "host_pinned", 0, 1), "I2: host RAM"),
    "swap": (("state", "host_swap", 0, -1), "I2: swap"),
    "cached": (("state", "cached", (0, 0), 10**12), "I2: cached"),
    "past": (("state", "unit_end", 0, -1e6), "I3"),
    "times": (("requests", "dispatch_s", 0, -0.5), "I4"),
    "tokens": (("requests", "generated", 0, 40), "I6"),
    "operation": (("state", "op", 0, -c.OP_LOAD), "at most one kind of work"),
}


def simulation(tiny: Any, trace_of: Any, debug: bool) -> Simulation:
    """Request 0 is bound to a loading instance, 1 and 2 wait, 3 is to come; decided at 1.0 s."""
    sim = Simulation(tiny(debug_checks=debug), 1)
    sim.reset(0, trace_of(arrival_s=[1.0, 1.0, 1.0, 2.0], output_tokens=40, prompt_tokens=10))
    sim.step(np.array([sim.layout.dispatch(0, 0, 2)]))
    return sim


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_record_is_found(tiny: Any, trace_of: Any, name: str) -> None:
    sim = simulation(tiny, trace_of, debug=True)
    (table, field, at, change), what = FAULTS[name]
    record = getattr(sim, table)[field][0:1] if at == () else getattr(sim, table)[field][0]
    record[0 if at == () else at] += change
    with pytest.raises(RuntimeError, match=rf"environment 0, step 1, 1.0 s: broken invariant: .*{what}"):
        sim._check_invariants(slice(None))


def test_every_invariant_has_a_name() -> None:
    assert len(checks.BROKEN) - 1 == checks.PHASES and len(set(checks.BROKEN)) == len(checks.BROKEN)


def test_nothing_is_checked_unless_asked_for(tiny: Any, trace_of: Any) -> None:
    sim = simulation(tiny, trace_of, debug=False)
    sim.state["gpu_used"][0, 0] += 1
    sim.step(np.zeros(1, np.int64))
