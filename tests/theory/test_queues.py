"""The simulator as a single-server queue: measured means and distributions against queueing theory.

Every statement compares a formula with the 99.9 % interval over independent replications (batches), see README.md.
The numbers come with ``pytest tests/theory -s``; the slow versions take more than 10^6 requests a statement.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from formulas import cyclic_polling, erlang_c, patient_polling, poisson, pollaczek_khinchine
from queue_runs import (
    MANY_SEATS,
    MEAN_TOKENS,
    MEASURED,
    ONE_SEAT,
    STEP_S,
    Runs,
    flat_tables,
    serve_and_switch,
    simulate,
)

LOAD = 0.7
HYPER_SHARE = 0.5 * (1 + math.sqrt(3 / 5))
"""of the shorter lengths: squared coefficient of variation 4, both kinds the same work"""
HYPER_MEANS = (MEAN_TOKENS / (2 * HYPER_SHARE), MEAN_TOKENS / (2 * (1 - HYPER_SHARE)))
SECONDS = MEAN_TOKENS * STEP_S

pytestmark = pytest.mark.parametrize("requests", [MEASURED, pytest.param(10 * MEASURED, marks=pytest.mark.slow)])


def deterministic(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, MEAN_TOKENS)


def uniform(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.integers(1, 2 * MEAN_TOKENS, shape)


def exponential(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Geometric: exponential but for steps of a hundred thousandth of the mean."""
    return rng.geometric(1 / MEAN_TOKENS, shape)


def hyperexponential(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    short, long = (rng.geometric(1 / mean, shape) for mean in HYPER_MEANS)
    return np.where(rng.random(shape) < HYPER_SHARE, short, long)


LENGTHS = {f.__name__: f for f in (deterministic, uniform, exponential, hyperexponential)}
SECOND_MOMENTS = {  # of the length in tokens, exact
    "deterministic": MEAN_TOKENS**2,
    "uniform": MEAN_TOKENS**2 + ((2 * MEAN_TOKENS - 1) ** 2 - 1) / 12,
    "exponential": MEAN_TOKENS * (2 * MEAN_TOKENS - 1),
    "hyperexponential": sum(
        share * mean * (2 * mean - 1) for share, mean in zip((HYPER_SHARE, 1 - HYPER_SHARE), HYPER_MEANS, strict=True)
    ),
}


def assert_waits(runs: Runs, servers: int, within_s: float) -> None:
    """Every single wait follows from the ones before: the recursion of Lindley, for several servers Kiefer-Wolfowitz."""
    each = np.arange(len(runs.arrival))
    free_s = np.zeros((len(each), servers))
    for j in range(runs.arrival.shape[1]):
        server = free_s.argmin(axis=1)
        start = np.maximum(runs.arrival[:, j], free_s[each, server])
        np.testing.assert_allclose(runs.dispatch[:, j], start, rtol=0, atol=within_s)
        free_s[each, server] = start + runs.service[:, j]


def assert_busy(runs: Runs) -> None:
    """The GPU was busy exactly as long as there was work: no discipline makes or destroys any."""
    np.testing.assert_allclose(runs.gpu_busy_s, runs.service.sum(axis=1), rtol=0, atol=1e-7)


# ---------------------------------------------------------------- one seat, first come first served


@pytest.mark.parametrize("name", LENGTHS)
def test_mean_wait_is_pollaczek_khinchine(name: str, requests: int) -> None:
    runs = simulate(flat_tables(ONE_SEAT), ONE_SEAT, LOAD / SECONDS, LENGTHS[name], requests, seed=1)
    assert_waits(runs, servers=1, within_s=1e-8)
    assert_busy(runs)
    expected = pollaczek_khinchine(LOAD / SECONDS, SECONDS, SECOND_MOMENTS[name] * STEP_S**2)
    runs.agree(f"M/G/1 {name} mean wait", runs.mean(runs.wait), expected)


def test_tail_of_the_wait_is_exponential(requests: int) -> None:
    runs = simulate(flat_tables(ONE_SEAT), ONE_SEAT, LOAD / SECONDS, exponential, requests, seed=2)
    for x in (1e-6, 1.0, 3.0, 6.0, 10.0):
        runs.agree(f"M/M/1 P(wait > {x:g} s)", runs.mean(runs.wait > x), LOAD * math.exp(-(1 - LOAD) / SECONDS * x))


def test_mean_wait_with_every_term_of_the_cost_model(requests: int) -> None:
    """M/G/1 whose service is prompts in chunks of 512 tokens, attention, and decoding with a bent KV cost."""
    terms = {
        "iter_const": 1e-3,
        "gpu_base": 4e-3,
        "gpu_head": 2e-3,
        "gpu_kv": 4e-6,
        "cpu_head": 5e-4,
        "cpu_kv": 1e-6,
        "prefill_gpu": 2e-4,
        "gpu_attn": 3e-7,
        "depth_knot": [0.0, 300.0, 900.0, np.inf],
        "depth_gpu": [1.0, 2.0, 3.0, 1.0],
    }
    prompts, outputs = 1500, 300
    prompt, output = np.arange(1, prompts + 1)[:, None], np.arange(1, outputs + 1)[None, :]
    chunks = -(-prompt // 512)
    context = np.arange(prompts + outputs + 1)
    depth = np.minimum(context, 300) + 2 * np.clip(context - 300, 0, 600) + 3 * np.maximum(context - 900, 0)
    attend = np.cumsum(4e-6 * depth + 1e-6 * context)
    seconds = chunks * 7.5e-3 + 2e-4 * prompt + 3e-7 * prompt**2 / 2
    seconds = seconds + (output - 1) * 7.5e-3 + attend[prompt + output - 1] - attend[prompt]
    rate = LOAD / seconds.mean()
    runs = simulate(
        flat_tables(ONE_SEAT, **terms),
        ONE_SEAT,
        rate,
        lambda rng, shape: rng.integers(1, outputs + 1, shape),
        requests,
        seed=3,
        prompt=lambda rng, shape: rng.integers(1, prompts + 1, shape),
        service=lambda model, prompt, tokens: seconds[prompt - 1, tokens - 1],
        mean_service_s=seconds.mean(),
    )
    assert_waits(runs, servers=1, within_s=1e-8)
    assert_busy(runs)
    expected = pollaczek_khinchine(rate, seconds.mean(), (seconds**2).mean())
    runs.agree("M/G/1 all cost terms, mean wait", runs.mean(runs.wait), expected)


def test_two_instances_that_share_a_gpu_conserve_work(requests: int) -> None:
    """Two models, one seat each, slowing each other down: with exponential lengths the total is that of M/M/1."""
    tables = flat_tables(ONE_SEAT)
    runs = simulate(tables, ONE_SEAT, LOAD / SECONDS, exponential, requests, seed=4, second_model=0.3)
    assert_busy(runs)
    runs.agree("two instances on a GPU, mean sojourn", runs.mean(runs.sojourn), SECONDS / (1 - LOAD))
    for n in (0, 1, 2, 5):
        runs.agree(f"two instances on a GPU, P(N = {n})", runs.occupancy()[:, n], (1 - LOAD) * LOAD**n)


# ---------------------------------------------------------------- many seats


def shared_runs(name: str, requests: int, seed: int) -> Runs:
    """Step time proportional to the batch: processor sharing in steps of one token each."""
    tables = flat_tables(MANY_SEATS, batch_gpu=np.arange(1, MANY_SEATS.batch + 1))
    rate = LOAD / SECONDS
    return simulate(tables, MANY_SEATS, rate, LENGTHS[name], requests, seed, prefill_mode="prefill_first")


def shared_finish(arrival: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When requests finish that share a server equally: in the time every one of them has been served so far."""
    finish, present = np.zeros(len(arrival)), []
    now = served = 0.0
    for j, next_s in enumerate(np.append(arrival, np.inf)):
        while present and now + (present[0][0] - served) * len(present) <= next_s:
            now += (present[0][0] - served) * len(present)
            served, done = heapq.heappop(present)
            finish[done] = now
        if present:
            served += (next_s - now) / len(present)
        now = next_s
        if j < len(arrival):
            heapq.heappush(present, (served + service[j], j))
    return finish


def assert_shared(runs: Runs) -> None:
    """Every single finish is that of ideal sharing but for a few steps of the batch, on average about one token's."""
    ideal = np.array([shared_finish(*rows) for rows in zip(runs.arrival, runs.service, strict=True)])
    np.testing.assert_allclose(runs.finish, ideal, rtol=0, atol=4 * MANY_SEATS.batch * STEP_S)
    late = (runs.finish - ideal).mean()
    print(f"later than with ideal sharing, mean: {late:.2g} s")
    assert abs(late) < 10 * STEP_S


@pytest.mark.parametrize("name", ["deterministic", "exponential", "hyperexponential"])
def test_processor_sharing_is_insensitive_to_the_length_distribution(name: str, requests: int) -> None:
    runs = shared_runs(name, requests, seed=5)
    assert (runs.dispatch == runs.arrival).all()
    assert_busy(runs)
    assert_shared(runs)
    runs.agree(f"M/G/1-PS {name} mean sojourn", runs.mean(runs.sojourn), SECONDS / (1 - LOAD))
    runs.agree(f"M/G/1-PS {name} mean slowdown", runs.mean(runs.sojourn / runs.service), 1 / (1 - LOAD))
    for n in (0, 1, 2, 5):
        runs.agree(f"M/G/1-PS {name} P(N = {n})", runs.occupancy()[:, n], (1 - LOAD) * LOAD**n)


@pytest.mark.parametrize("name", ["deterministic", "uniform", "exponential"])
def test_constant_step_time_is_m_g_infinity(name: str, requests: int) -> None:
    offered = 10.0
    runs = simulate(flat_tables(MANY_SEATS), MANY_SEATS, offered / SECONDS, LENGTHS[name], requests, seed=7)
    beyond = runs.sojourn - runs.service  # a request joins at the end of the running step
    assert beyond.min() > -1e-6 and beyond.max() < 4 * STEP_S
    occupancy, n = runs.occupancy(), np.arange(len(runs.occupancy()[0]))
    runs.agree(f"M/G/inf {name} mean number", occupancy @ n, offered)
    runs.agree(f"M/G/inf {name} variance of the number", occupancy @ (n - offered) ** 2, offered)
    for k in (5, 10, 15, 20):
        runs.agree(f"M/G/inf {name} P(N = {k})", occupancy[:, k], poisson(offered, k))


def test_room_for_eight_requests_is_eight_servers(requests: int) -> None:
    """Constant step time and GPU memory for the KV of eight requests: M/M/8."""
    tables = flat_tables(MANY_SEATS, kv_gpu_bytes=1, gpu_bytes=8 * 10**8)
    offered = 0.8 * 8
    runs = simulate(tables, MANY_SEATS, offered / SECONDS, exponential, requests, seed=8)
    assert_waits(runs, servers=8, within_s=4 * STEP_S)
    runs.agree("M/M/8 P(wait > 0)", runs.mean(runs.wait > 0), erlang_c(8, offered))
    runs.agree("M/M/8 mean wait", runs.mean(runs.wait), erlang_c(8, offered) * SECONDS / (8 - offered))


# ---------------------------------------------------------------- two models that do not fit together


def switching_tables(**changes: object) -> object:
    """Weights of 0.6 of the GPU, kept in host RAM after the first load; the link takes 1 s for them."""
    weights = 6 * 10**11
    rates = {"link_in_cap": weights, "link_in_rate": weights, "disk_cap": weights, "disk_rate": weights}
    sizes = {"gpu_weight_bytes": weights, "file_bytes": weights, "host_bytes": 4 * 10**12}
    return flat_tables(ONE_SEAT, **sizes, **rates, **changes)


def test_exhaustive_service_of_two_queues_with_switch_over_times(requests: int) -> None:
    """Unequal queues, so busy that the server is never idle: the pseudo-conservation law of cyclic service."""
    tables = switching_tables(
        gpu_base=np.array([0.5, 1.0])[:, None, None] * STEP_S,
        unload_s=np.array([1.0, 2.0])[:, None, None],
        init_s=np.array([3.0, 4.0])[:, None],
    )
    rates, first = np.array([0.6, 0.5]) / SECONDS, np.array([0.5, 1.0]) * SECONDS
    runs = simulate(
        tables,
        ONE_SEAT,
        rates.sum(),
        exponential,
        requests,
        seed=9,
        service=lambda model, prompt, tokens: tokens * STEP_S * first[model] / SECONDS,
        mean_service_s=(rates * first).sum() / rates.sum(),
        second_model=rates[1] / rates.sum(),
        choose=serve_and_switch,
    )
    wait = runs.sojourn - runs.service
    each = [runs.mean(wait * (runs.model == m)) / runs.mean(runs.model == m) for m in (0, 1)]
    print(f"share of time with an empty system: {runs.occupancy()[:, 0].mean():.2g}")
    assert runs.occupancy()[:, 0].mean() < 1e-4
    expected = cyclic_polling(rates, first, 2 * first**2, 1 + 2 + 3 + 4 + 2 * 1)
    runs.agree("polling, sum of load x wait", (rates * first) @ np.array(each), expected)


@pytest.mark.parametrize("name", ["deterministic", "exponential"])
def test_exhaustive_service_by_a_patient_server(name: str, requests: int) -> None:
    """Two equal queues and a server that stays where it is while the system is empty."""
    load = 0.6
    tables = switching_tables(unload_s=0.2, init_s=0.3)
    runs = simulate(
        tables, ONE_SEAT, load / SECONDS, LENGTHS[name], requests, 10, second_model=0.5, choose=serve_and_switch
    )
    lst = {"deterministic": lambda s: math.exp(-s), "exponential": lambda s: 1 / (1 + s)}[name]
    expected = patient_polling(load / SECONDS, SECONDS, SECOND_MOMENTS[name] * STEP_S**2, lst, 0.2 + 0.3 + 1.0)
    runs.agree(f"polling, patient server, {name} mean wait", runs.mean(runs.sojourn - runs.service), expected)
