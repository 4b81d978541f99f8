"""Offered load: the rate at which a workload fills a cluster to a given part of its capacity."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.costmodel.capacity import Engine, capacity
from mmsched_env.costmodel.latency import unloaded_latency
from mmsched_env.costmodel.tables import build_tables

from .source import TraceSource
from .splits import seed_of
from .trace import RequestTrace

if TYPE_CHECKING:
    from mmsched_env.config import EnvConfig

MIX = ("model", "prompt_tokens", "image_tokens", "max_tokens", "output_tokens")
MIX_EPISODES = 32
MIX_REQUESTS = 128
"""a generator's mix is that of so many training episodes of so many requests; a record's is the whole record"""


def at_load(workload: Any, config: EnvConfig) -> Any:
    """`workload` with ``rate_per_s`` set to ``rho`` times the capacity of `config`'s cluster for requests like its own."""
    return dataclasses.replace(workload, rate_per_s=workload.rho * capacity_of(workload, config))


def capacity_of(workload: Any, config: EnvConfig) -> float:
    """Requests per second that the cluster can serve at most of requests as `workload` makes them (whatever its rate)."""
    plain = dataclasses.replace(workload, rho=None, rate_per_s=1.0 if _generates(workload) else None)
    return _capacity(plain, config.cluster, config.models, config.limits, config.sim)


def capacity_for(traces: list[RequestTrace], config: EnvConfig) -> float:
    """The same for requests like those in `traces`."""
    mix: dict[str, NDArray[Any]] = {name: np.concatenate([getattr(t, name) for t in traces]) for name in MIX}
    limits, sim = config.limits, config.sim
    tables = build_tables(config.cluster, config.models, limits.levels, limits.batch)
    mixed, swap = sim.prefill_mode == "mixed", config.cluster.kv_swap_fraction
    return capacity(tables, mix, Engine(limits.batch, limits.slots, sim.ubatch_tokens, mixed, swap))


def unloaded_s(trace: RequestTrace, config: EnvConfig) -> NDArray[np.float64]:
    """[N] seconds each request takes alone on the best GPU, its model loaded: how the load divides over requests."""
    limits = config.limits
    tables = build_tables(config.cluster, config.models, limits.levels, limits.batch)
    columns = (trace.model, trace.prompt_tokens, trace.image_tokens, trace.output_tokens)
    model, prompt, image, output = (np.asarray(column, np.int64) for column in columns)
    return unloaded_latency(tables, model, prompt, image, output, config.sim.ubatch_tokens)[1]


@lru_cache(maxsize=64)
def _capacity(workload: TraceSource, cluster: Any, models: Any, limits: Any, sim: Any) -> float:
    from mmsched_env.config import EnvConfig

    if _generates(workload):
        few: Any = dataclasses.replace(workload, num_requests=MIX_REQUESTS)  # type: ignore[type-var]
        traces = [few.sample(seed_of("train", i), models.names) for i in range(MIX_EPISODES)]
    else:
        traces = [workload.sample(seed_of("train", 0), models.names)]
    return capacity_for(traces, EnvConfig(cluster=cluster, models=models, limits=limits, sim=sim, workload=workload))


def _generates(workload: Any) -> bool:
    from .generator import GeneratorConfig

    return isinstance(workload, GeneratorConfig)
