"""Shared fixtures: a cluster of two small GPUs on which three models do not all fit, and short traces.

Tests use the default limits or, where sizes matter, as few others as they can: each compiles the kernel anew (half a minute).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmsched_env.core
from mmsched_env.config import ClusterConfig, EnvConfig, LimitsConfig, ModelsConfig, SimConfig
from mmsched_env.costmodel.tables import CostTables, build_tables
from mmsched_env.workload import GeneratorConfig, RequestTrace
from mmsched_env.workload.lengths import OutputConfig, PromptConfig

MODELS = ("llama-3.2-1b-f16", "qwen2.5-vl-7b-q4_k_m", "qwen2.5-14b-q4_k_m")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., EnvConfig]:
    """tiny(num_requests=10, kv_swap_fraction=0.25, **sim): the configuration most tests run."""

    def make(num_requests: int = 10, kv_swap_fraction: float = 0.25, **sim: Any) -> EnvConfig:
        return EnvConfig(
            cluster=ClusterConfig(("rtx-3060-12gb", "rtx-5060-ti-16gb"), ("desktop-ddr4",), (0, 0), kv_swap_fraction),
            models=ModelsConfig(MODELS),
            sim=SimConfig(**sim),
            workload=GeneratorConfig(
                num_requests=num_requests,
                rate_per_s=2.0,
                prompt=PromptConfig(median=300, sigma=1.0, max=2000),
                output=OutputConfig(median=30, sigma=0.8, max=120),
            ),
        )

    return make


@pytest.fixture(scope="session")
def larger_limits() -> LimitsConfig:
    """More rows than the default limits. No more slots: they are seen, as room on a GPU."""
    return LimitsConfig(queue=20, gpus=16, hosts=3, models=11)


@pytest.fixture(scope="session")
def trace_of() -> Callable[..., RequestTrace]:
    """trace_of(arrival_s=..., output_tokens=..., ...): a trace of the tiny configuration's models."""

    def make(**columns: Any) -> RequestTrace:
        return RequestTrace.from_columns(MODELS, **columns)

    return make


@pytest.fixture
def patch_tables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """patch_tables(host_bytes=..., ...): simulations made from now on have these cost arrays instead of the profiles'."""

    def patch(**changes: Any) -> None:
        def build(*args: Any) -> CostTables:
            tables = build_tables(*args)
            return dataclasses.replace(
                tables,
                **{
                    name: np.broadcast_to(
                        np.asarray(value, getattr(tables, name).dtype), getattr(tables, name).shape
                    ).copy()
                    for name, value in changes.items()
                },
            )

        monkeypatch.setattr(mmsched_env.core, "build_tables", build)

    return patch


@pytest.fixture(scope="session")
def random_action() -> Callable[[np.random.Generator, Any, np.ndarray], int]:
    """A random legal action: WAIT half of the time, else a kind of action first, so that rare kinds are not drowned."""

    def choose(rng: np.random.Generator, layout: Any, mask: np.ndarray) -> int:
        legal = np.flatnonzero(mask)
        if mask[0] and (len(legal) == 1 or rng.random() < 0.5):
            return 0
        edges = (1, layout.preempt_at, layout.offload_at, layout.size)
        kinds = [legal[(legal >= a) & (legal < b)] for a, b in itertools.pairwise(edges)]
        kinds = [kind for kind in kinds if len(kind)]
        weights = np.array([4.0 if kind[0] < layout.preempt_at else 1.0 for kind in kinds])
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        return int(rng.choice(kind))

    return choose
