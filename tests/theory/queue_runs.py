"""One GPU as a queue: cost tables with chosen step times, vectorised runs, intervals over independent replications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import t as student

import mmsched_env.core
from mmsched_env.config import ClusterConfig, EnvConfig, LimitsConfig, ModelsConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.sim.state import Dims
from mmsched_env.workload import RequestTrace

NAMES = ("first", "second")
ONE_SEAT = LimitsConfig(queue=256, gpus=1, hosts=1, models=2, slots=2, levels=(1.0,), batch=1)
MANY_SEATS = LimitsConfig(queue=1, gpus=1, hosts=1, models=2, slots=2, levels=(1.0,), batch=64)
STEP_S = 1e-5
"""one token of one request alone"""
MEAN_TOKENS = 100_000
"""mean output: a mean service of 1 s in steps of 1e-5 s"""
RESERVED = 10**8 - 1
"""`max_tokens` of every request; with a prompt of one token all reserve the KV of 10^8 tokens"""
START_S = 100.0
"""arrivals begin; before, one request of one token per model has loaded the models"""
REPLICATIONS = 25
"""independent runs side by side"""
LENGTH = 6000
"""requests of a run"""
WARM, COOL = 1000, 500
"""of them not measured, at the start (the run begins empty) and at the end (no more arrivals)"""
MEASURED = REPLICATIONS * (LENGTH - WARM - COOL)
CONFIDENCE = 0.999
STATES = 300
"""more requests than are ever in the system at once"""

Tokens = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def flat_tables(limits: LimitsConfig, **changes: Any) -> CostTables:
    """Two models, one GPU: every iteration takes STEP_S, a load 2 ms, memory is free; `changes` are broadcast."""
    M, G, K, B = 2, 1, 1, limits.batch
    per_level = {name: np.zeros((M, G, K)) for name in _PER_LEVEL} | {"gpu_base": np.full((M, G, K), STEP_S)}
    knots = np.full((M, G, 4), np.inf)
    knots[..., 0] = 0.0
    arrays: dict[str, Any] = dict(
        num_units=np.ones(M, np.int64),
        units_on_gpu=np.ones((M, K), np.int64),
        **{name: np.zeros((M, K), np.int64) for name in ("gpu_weight_bytes", "cpu_weight_bytes")},
        **{name: np.zeros((M, K), np.int64) for name in ("kv_gpu_bytes", "kv_cpu_bytes")},
        file_bytes=np.zeros(M, np.int64),
        buffer_bytes=np.zeros(M, np.int64),
        **per_level,
        **{name: np.ones((M, G, B)) for name in ("batch_gpu", "batch_cpu")},
        depth_knot=knots,
        **{name: np.ones((M, G, 4)) for name in ("depth_gpu", "depth_cpu")},
        encode_s=np.zeros((M, G)),
        init_s=np.full((M, G), 1e-3),
        unload_s=np.full((M, G, K), 1e-3),
        save_s=np.full(G, 1e-3),
        **{name: np.full((M, G), 1e9) for name in ("disk_cap", "link_in_cap")},
        **{name: np.full(G, 1e9) for name in ("kv_in_cap", "kv_out_cap", "link_in_rate", "link_out_rate")},
        disk_rate=np.full(1, 1e9),
        operation_share=np.zeros(G),
        interference=np.zeros(1),
        gpu_bytes=np.full(G, 10**12),
        host_bytes=np.full(1, 10**12),
        gpu_host=np.zeros(G, np.int64),
        stream_min_tokens=np.full(G, 2**31),
    )
    for name, value in changes.items():
        like = arrays[name]
        arrays[name] = np.broadcast_to(np.asarray(value, like.dtype), like.shape).copy()
    return CostTables(**arrays)


_PER_LEVEL = (
    *("iter_const", "gpu_base", "gpu_head", "gpu_kv", "cpu_base", "cpu_head", "cpu_kv"),
    *("prefill_gpu", "prefill_gpu_stream", "prefill_cpu", "stream_s", "gpu_attn", "cpu_attn"),
)


@dataclass
class Runs:
    """Arrays [replications, requests], the requests that load the models left out; seconds."""

    model: np.ndarray
    prompt: np.ndarray
    tokens: np.ndarray
    arrival: np.ndarray
    dispatch: np.ndarray
    finish: np.ndarray
    gpu_busy_s: np.ndarray  # [replications] with these requests
    service: np.ndarray  # of each request alone
    rate: float
    mean_service_s: float  # as the lengths were drawn

    @property
    def sojourn(self) -> np.ndarray:
        return self.finish - self.arrival

    @property
    def wait(self) -> np.ndarray:
        return self.dispatch - self.arrival

    @property
    def window(self) -> tuple[float, float]:
        """Fixed times between which states are averaged."""
        return START_S + WARM / self.rate, START_S + (LENGTH - COOL) / self.rate

    def mean(self, values: np.ndarray) -> np.ndarray:
        """[replications] averages over the measured requests."""
        return values[:, WARM:-COOL].mean(axis=1)

    def occupancy(self) -> np.ndarray:
        """[replications, STATES] share of the window with 0, 1, ... requests in the system."""
        return np.array([shares(a, f, *self.window) for a, f in zip(self.arrival, self.finish, strict=True)])

    def estimate(self, samples: np.ndarray) -> tuple[float, float]:
        """Mean and half width of the CONFIDENCE interval from one sample per replication.

        Control variates: the replication's mean time between arrivals and mean service, whose expectations are known.
        """
        gaps = np.diff(self.arrival, axis=1, prepend=START_S)
        known = [self.mean(gaps) - 1 / self.rate, self.mean(self.service) - self.mean_service_s]
        columns = np.column_stack([np.ones(len(samples)), *known])
        fit, _, rank, _ = np.linalg.lstsq(columns, samples)
        free = len(samples) - rank
        variance = ((samples - columns @ fit) ** 2).sum() / free * np.linalg.pinv(columns.T @ columns)[0, 0]
        return fit[0], student.ppf((1 + CONFIDENCE) / 2, free) * np.sqrt(variance)

    def agree(self, statement: str, samples: np.ndarray, expected: float) -> None:
        """`expected` lies in the interval of `estimate`; prints the numbers."""
        middle, half = self.estimate(samples)
        requests = len(samples) * (LENGTH - WARM - COOL)
        line = f"{statement} | {expected:.5g} | {middle:.5g} +- {half:.2g} | {requests}"
        print(line)
        assert abs(middle - expected) <= half, line


def shares(arrival: np.ndarray, finish: np.ndarray, begin: float, end: float) -> np.ndarray:
    """[STATES] share of the time from `begin` to `end` with 0, 1, ... requests between arrival and finish."""
    assert arrival[-1] > end
    times = np.concatenate([arrival, finish])
    order = np.argsort(times, kind="stable")
    number = np.concatenate([[0], np.cumsum(np.repeat([1, -1], len(arrival))[order])])
    edges = np.clip(np.concatenate([[-np.inf], times[order], [np.inf]]), begin, end)
    return np.bincount(number, np.diff(edges), minlength=STATES) / (end - begin)


def serve_first(sim: Simulation) -> np.ndarray:
    """Dispatch the oldest request that can be, else wait: [replications] actions."""
    can = sim.current.mask[:, 1 : sim.layout.preempt_at]
    return np.where(can.any(axis=1), 1 + can.argmax(axis=1), 0)


def serve_and_switch(sim: Simulation) -> np.ndarray:
    """Exhaustive service: the loaded model while it has requests, then unload if the other one has some."""
    assert sim.state["queue_length"].max() <= sim.dims.Q, "a request of the loaded model may be out of sight"
    unload = sim.current.mask[:, sim.layout.preempt_at : sim.layout.offload_at]
    wanted = unload.any(axis=1) & (sim.state["queue_length"] > 0)
    serve = serve_first(sim)
    return np.where((serve == 0) & wanted, sim.layout.preempt_at + unload.argmax(axis=1), serve)


def poisson_arrivals(rng: np.random.Generator, rate: float) -> np.ndarray:
    return START_S + np.cumsum(rng.exponential(1 / rate, (REPLICATIONS, LENGTH)), axis=1)


def simulate(
    tables: CostTables,
    limits: LimitsConfig,
    rate: float,
    tokens: Tokens,
    requests: int,
    seed: int,
    *,
    prompt: Tokens | None = None,
    service: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = lambda model, prompt, tokens: tokens * STEP_S,
    mean_service_s: float = MEAN_TOKENS * STEP_S,
    second_model: float = 0.0,
    choose: Callable[[Simulation], np.ndarray] = serve_first,
    prefill_mode: str = "mixed",
) -> Runs:
    """As many rounds of REPLICATIONS runs as make `requests` measured requests.

    `service` gives the seconds of requests alone from their models, prompts and tokens, `second_model` is the share of
    requests of model 1. A run's reward must be minus the sum of sojourn times.
    """
    rng = np.random.default_rng(seed)
    sim_config = SimConfig(prefill_mode=prefill_mode, allow_preempt=False, allow_offload=False, max_steps=10**9)
    config = EnvConfig(ClusterConfig(("gpu",), ("host",), (0,)), ModelsConfig(NAMES), limits, sim_config)
    with mock.patch.object(mmsched_env.core, "build_tables", lambda *args: tables):
        sim = Simulation(config, REPLICATIONS)
    assert sim.dims == Dims.of(limits)
    shape = (REPLICATIONS, LENGTH)
    rounds = []
    for _ in range(-(-requests // MEASURED)):
        columns = {
            "arrival_s": poisson_arrivals(rng, rate),
            "model": (rng.random(shape) < second_model).astype(np.int64),
            "output_tokens": tokens(rng, shape),
            "prompt_tokens": np.ones(shape, np.int64) if prompt is None else prompt(rng, shape),
        }
        rounds.append(_one_round(sim, columns, 2 if second_model else 1, choose))
    joined = [np.concatenate(parts) for parts in zip(*rounds, strict=True)]
    return Runs(*joined, service(*joined[:3]), rate, mean_service_s)


def _one_round(sim: Simulation, columns: dict[str, np.ndarray], models: int, choose: Any) -> tuple[np.ndarray, ...]:
    first = {"arrival_s": 0.0, "model": np.arange(models), "output_tokens": 1, "prompt_tokens": 1}
    for e in range(REPLICATIONS):
        own = {name: np.append(np.broadcast_to(first[name], models), rows[e]) for name, rows in columns.items()}
        trace = RequestTrace.from_columns(NAMES, **own, max_tokens=RESERVED, predicted_tokens=MEAN_TOKENS)
        sim.reset(e, trace)
    integral = np.zeros(REPLICATIONS)
    done = False
    while not done:
        outcomes = sim.step(choose(sim))
        integral -= outcomes.reward
        assert not outcomes.illegal.any() and not outcomes.truncated.any()
        done = outcomes.terminated.all()
    names = ("model", "prompt_tokens", "output_tokens", "arrival_s", "dispatch_s", "finish_s")
    records = sim.requests.view(np.ndarray)
    sojourns = (records["finish_s"] - records["arrival_s"]).sum(axis=1)
    np.testing.assert_allclose(integral, sojourns, rtol=1e-9)  # Little's law, exactly
    assert records["finish_s"][:, :models].max() < START_S
    busy = sim.state["gpu_busy_s"][:, 0] - records["unloaded_s"][:, :models].sum(axis=1)
    return (*(records[name][:, models:].copy() for name in names), busy)
