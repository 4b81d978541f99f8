"""Capacity: right where it can be computed by hand, never exceeded, and independent of what a policy does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsched_env.config import ClusterConfig, EnvConfig, LimitsConfig, ModelsConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel.capacity import Engine, capacity
from mmsched_env.costmodel.latency import unloaded_latency
from mmsched_env.costmodel.tables import build_tables
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.workload import CsvFileConfig, GeneratorConfig
from mmsched_env.workload.lengths import OutputConfig, PromptConfig
from mmsched_env.workload.load import capacity_for, capacity_of

ONE = ClusterConfig(("rtx-4090-24gb",), ("desktop-ddr5",), (0,))
SMALL = ModelsConfig(("llama-3-8b-q4_k_m",))
PAIR = ModelsConfig(("llama-3-8b-q4_k_m", "qwen2.5-14b-q4_k_m"))


def mix(size: int = 8, prompt: int = 300, output: int = 100, **columns: Any) -> dict[str, Any]:
    base = {"model": 0, "prompt_tokens": prompt, "image_tokens": 0, "max_tokens": output, "output_tokens": output}
    return {name: np.broadcast_to(value, size).copy() for name, value in (base | columns).items()}


def tables_of(cluster: ClusterConfig = ONE, models: ModelsConfig = SMALL, batch: int = 16) -> Any:
    return build_tables(cluster, models, (0.0, 0.25, 0.5, 0.75, 1.0), batch)


def test_one_seat_serves_one_request_after_the_other() -> None:
    """One seat in one slot: the rate is one over the latency alone (at the best level)."""
    tables = tables_of(batch=1)
    columns = (np.array([0]), np.array([300]), np.array([0]), np.array([100]))
    alone = unloaded_latency(tables, *columns, 512)[1][0]
    assert capacity(tables, mix(), Engine(batch=1, slots=1)) == pytest.approx(1 / alone, rel=2e-3)


def test_two_gpus_serve_twice_as_much_and_slots_hide_constants() -> None:
    one = capacity(tables_of(), mix(), Engine())
    two = ClusterConfig(("rtx-4090-24gb",) * 2, ("desktop-ddr5",) * 2, (0, 1))
    assert capacity(tables_of(two), mix(), Engine()) == pytest.approx(2 * one)
    assert capacity(tables_of(), mix(), Engine(slots=1)) < one
    assert capacity(tables_of(batch=1), mix(), Engine(batch=1)) < one


def test_two_models_share_the_time() -> None:
    """The time of a mix is the mean of its models' times: no switching. (One slot: no constants hidden.)"""
    tables, engine = tables_of(models=PAIR), Engine(slots=1)
    alone = [capacity(tables, mix(model=m), engine) for m in (0, 1)]
    both = capacity(tables, mix(8, model=np.array([0, 0, 0, 1] * 2)), engine)
    assert 1 / both == pytest.approx(0.75 / alone[0] + 0.25 / alone[1], rel=1e-6)


def test_it_falls_with_longer_requests_and_prefill_first() -> None:
    tables = tables_of()
    base = capacity(tables, mix(), Engine())
    assert capacity(tables, mix(output=200), Engine()) < base
    assert capacity(tables, mix(prompt=600), Engine()) < base
    assert capacity(tables, mix(max_tokens=60_000), Engine()) < base  # fewer fit at once
    assert capacity(tables, mix(), Engine(mixed=False)) < base


def test_requests_that_fit_nowhere() -> None:
    with pytest.raises(ConfigError, match="fit on no GPU at any level"):
        capacity(tables_of(), mix(max_tokens=90_000_000), Engine())


@pytest.mark.parametrize(
    ("gpu", "models"),
    [
        ("rtx-4090-24gb", ("qwen2.5-14b-q4_k_m",)),
        ("rtx-5060-ti-16gb", ("qwen3-32b-q4_k_m",)),
        ("rtx-4090-24gb", ("llama-3.2-1b-f16", "llama-3-8b-q4_k_m")),
    ],
)
@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
def test_no_policy_serves_more(gpu: str, models: tuple[str, ...], mode: str) -> None:
    """A queue that never runs dry: what is served stays below the capacity, and where one model is served near it."""
    lengths = {"prompt": PromptConfig(256.0, 0.5, 2048), "output": OutputConfig(100.0, 0.5, 512)}
    source = GeneratorConfig(num_requests=300, rate_per_s=1e3, popularity_order="listed", **lengths)
    config = EnvConfig(
        cluster=ClusterConfig((gpu,), ("desktop-ddr5",), (0,)),
        models=ModelsConfig(models),
        sim=SimConfig(prefill_mode=mode),
        workload=source,
    )
    trace = source.sample(0, models)
    most = capacity_for([trace], config)
    served = {}
    for policy in ("fcfs", "mect"):
        summary = run_episode(Simulation(config, 1), make_policy(policy)[1], trace, 0).summary
        served[policy] = summary["request_throughput"] / most
    assert max(served.values()) < 1
    assert max(served.values()) > (0.75 if len(models) == 1 else 0.5), served


def test_rho_sets_the_rate_and_follows_the_cluster() -> None:
    config = EnvConfig(cluster=ONE, models=PAIR, workload=GeneratorConfig(rho=0.5, popularity_order="listed"))
    assert config.workload.rate_per_s == pytest.approx(0.5 * capacity_of(config.workload, config))
    two = ClusterConfig(("rtx-4090-24gb",) * 2, ("desktop-ddr5",) * 2, (0, 1))
    more = dataclasses.replace(config, cluster=two, limits=LimitsConfig())
    assert more.workload.rate_per_s == pytest.approx(2 * config.workload.rate_per_s, rel=1e-6)
    again = dataclasses.replace(config, workload=dataclasses.replace(config.workload, rate_per_s=99.0))
    assert again.workload.rate_per_s == config.workload.rate_per_s  # not of the rate before


def test_rho_scales_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows = "".join(f"{i / 7},{SMALL.names[0]},300,100\n" for i in range(71))
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n" + rows)
    source = CsvFileConfig(path=str(path), rho=0.8)
    config = EnvConfig(cluster=ONE, models=SMALL, workload=source)
    trace = config.workload.sample(0, SMALL.names)
    most = capacity_for([trace], config)
    assert 71 / trace.arrival_s[-1] == pytest.approx(0.8 * most, rel=1e-6)
