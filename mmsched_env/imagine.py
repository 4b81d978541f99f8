"""Worlds a planner may simulate: copies of a simulation whose hidden facts are drawn anew from what has been observed.

Hidden are true output lengths, requests to come and true memory footprints. Lengths are drawn from their predictions,
given the tokens produced so far; arrivals from the observed rates, each looking like one of its model seen before.
`near_world` and `true_world` keep the facts instead: for rollouts in training and for bounds, never for policies.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from .core import Simulation, Snapshot
from .sim.jit import as_bytes, copy_records, records
from .sim.kernel.progress import forget_plans
from .sim.state import DONE, DROPPED, FUTURE

BEFORE_ARRIVAL = {
    "dispatch_s": -1.0,
    "first_token_s": -1.0,
    "finish_s": -1.0,
    "charged_until_s": -1.0,
    "bound_s": 0.0,
    "load_s": 0.0,
    "phase": FUTURE,
    "instance": -1,
    "level": -1,
    "generated": 0,
    "prefill_left": 0,
    "encoded": 0,
    "saved_tokens": 0,
    "saved_host": -1,
    "saved_level": 0,
    "num_preemptions": 0,
    "previous": -1,
    "next": -1,
}
"""a REQUEST record's own history, before there is any"""


def imagined_worlds(
    simulation: Simulation, count: int, horizon_s: float, sigma: float, rng: np.random.Generator, env: int = 0
) -> list[Snapshot]:
    """`count` worlds that all look like environment `env` of `simulation` does now to a policy, with `horizon_s` of arrivals.

    Parameters
    ----------
    sigma
        Spread the length predictions are taken to have: standard deviation of the logarithm of their error.
    """
    seen = simulation.snapshot(env)  # copies: what follows does not change the simulation
    state, requests = seen.state, seen.requests
    arrived = int(state["num_arrived"][0])
    tokens = np.zeros((1, len(requests)), np.int64)
    forget_plans(records(state), records(seen.params), records(requests[None]), tokens)
    state["footprint_hidden"] = state["footprint_extra"]
    past = requests[:arrived]
    past["slo_ttft_s"], past["slo_e2e_s"] = past["predicted_slo_ttft_s"], past["predicted_slo_e2e_s"]
    past["unloaded_s"] = past["predicted_unloaded_s"]
    least = np.maximum(tokens[0, :arrived], past["generated"] + 1)
    going_on = (past["phase"] != DONE) & (past["phase"] != DROPPED)
    rates = simulation.current.records["models"]["arrivals_per_s"][env]
    worlds = []
    for _ in range(count):
        present = copy_records(past)
        lengths = _lengths(present["predicted_tokens"], least, present["max_tokens"], sigma, rng)
        present["output_tokens"] = np.where(going_on, lengths, present["output_tokens"])
        future = _arrivals(float(state["now"][0]), rates, past, horizon_s, sigma, rng)
        together = np.concatenate([as_bytes(present), as_bytes(future)]).view(requests.dtype)
        worlds.append(_world(seen, state, together))
    return worlds


def near_world(simulation: Simulation, horizon_s: float, env: int = 0) -> Snapshot:
    """Environment `env` of `simulation` with the arrivals of the next `horizon_s` as they will come."""
    seen = simulation.snapshot(env)
    until = float(seen.state["now"][0]) + horizon_s
    # the next arrival belongs to it however late, or waiting for it could be waiting for ever
    count = max(int(seen.state["num_arrived"][0]) + 1, int(np.searchsorted(seen.requests["arrival_s"], until, "right")))
    return _world(seen, seen.state, seen.requests[:count])


def true_world(simulation: Simulation, horizon_s: float) -> Snapshot:
    """The same, with true lengths as predictions, of environment 0."""
    world = near_world(simulation, horizon_s)
    world.requests["predicted_tokens"] = world.requests["output_tokens"]
    for hidden in ("slo_ttft_s", "slo_e2e_s", "unloaded_s"):
        world.requests[f"predicted_{hidden}"] = world.requests[hidden]
    return world


def _world(seen: Snapshot, state: NDArray[np.void], requests: NDArray[np.void]) -> Snapshot:
    state = copy_records(state)
    state["num_requests"] = len(requests)
    return dataclasses.replace(seen, state=state, requests=requests, log=seen.log[:0])


def _lengths(
    predicted: NDArray[np.float64],
    least: NDArray[np.int64],
    limit: NDArray[np.int64],
    sigma: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """[N] output lengths: the prediction with a log-normal error, given that the length is at least `least`."""
    from scipy.special import ndtr, ndtri

    u = rng.random(len(predicted))
    if sigma == 0:
        drawn = predicted
    else:
        below = ndtr(np.log((least - 0.5) / predicted) / sigma)
        drawn = predicted * np.exp(sigma * ndtri(np.clip(below + u * (1 - below), 1e-12, 1 - 1e-12)))
    out: NDArray[np.int64] = np.clip(np.round(drawn), least, np.maximum(least, limit)).astype(np.int64)
    return out


def _arrivals(
    now: float,
    rates: NDArray[np.float32],
    past: NDArray[np.void],
    horizon_s: float,
    sigma: float,
    rng: np.random.Generator,
) -> NDArray[np.void]:
    """REQUEST records that arrive in the next `horizon_s`, at each model's observed rate; one at least, or waiting for an
    arrival could be waiting for ever."""
    counts = rng.poisson(rates * horizon_s)
    picked = [rng.choice(np.flatnonzero(past["model"] == m), size) for m, size in enumerate(counts) if size]
    future = past[np.concatenate(picked) if picked else rng.integers(len(past), size=1)].copy()
    rng.shuffle(future)
    future["arrival_s"] = np.sort(now + rng.uniform(0.0, horizon_s, len(future)))
    for name, value in BEFORE_ARRIVAL.items():
        future[name] = value
    least = np.ones(len(future), np.int64)
    future["output_tokens"] = _lengths(future["predicted_tokens"], least, future["max_tokens"], sigma, rng)
    return future
