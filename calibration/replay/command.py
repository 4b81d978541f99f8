"""`mmsched calibrate replay key=value ...`"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsched_env.config import build
from mmsched_env.costmodel.tables import build_tables
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.workload.trace import RequestTrace

from ..atomic import write_atomic
from ..measure import machine, results
from ..measure.command import ended_by_signal, settings
from ..measure.launchers import READ
from ..measure.llama_cpp import LlamaCpp
from ..measure.points import Preset
from ..measure.results import Results, locked
from ..measure.rows import figures
from ..measure.runner import AFTER_RUNS, Rules, Run, drift
from . import kept
from .mirror import simulation_with
from .real import RealSystem
from .report import Replay, report
from .scenarios import scenario_of
from .timings import measured_tables

PAUSE_S = 3.0
"""before a load of the calibration, about as long as memory is free in a run before the next load: a virtual machine gives it back
meanwhile, and takes it again more slowly than memory freed just now"""

SEED = 2**62
"""traces of a replay are of no training seed"""


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of a replay."""

    scenario: str = "steady"
    """steady, swap-thrash or preemption-heavy"""
    policies: tuple[str, ...] = ()
    """rules; the first one is compared in full, all are ranked; empty: the scenario's"""
    requests: int = 0
    """0: the scenario's"""
    repeats: int = 5
    """real runs of the first policy"""
    others: int = 1
    """real runs of each other policy; the policies take turns"""
    seed: int = 0
    out: str = "runs/replay"
    """folder of the samples, the runs and the report; what is there already is not run again, only compared again"""
    cache: str = "~/.cache/mmsched/models"
    """folder of the model files"""
    cores: tuple[int, ...] = ()
    """processor cores of the device; empty: the last one"""
    server: str = ""
    """path of a llama-server; empty: xllamacpp"""
    rounds: int = 5
    """calibration right before: samples of every figure; all count, for what disturbs them disturbs the runs too"""
    nice: int = 0
    """priority of the servers; below 0 needs root"""

    def __post_init__(self) -> None:
        scenario_of(self.scenario)
        for policy in self.policies:
            make_policy(policy)
        for key, low in {"requests": 0, "repeats": 1, "others": 1, "rounds": 1, "seed": 0}.items():
            if getattr(self, key) < low:
                raise ConfigError(f"{key} is {getattr(self, key)}; accepted: a whole number >= {low}")
        have = os.sched_getaffinity(0)
        if not set(self.cores) <= have:
            raise ConfigError(f"cores is {list(self.cores)}; accepted: of {sorted(have)}")
        if self.nice < 0 and os.geteuid() != 0:
            raise ConfigError(f"nice is {self.nice}; accepted: 0 or more without root")

    @property
    def ranked(self) -> tuple[str, ...]:
        return self.policies or (scenario_of(self.scenario).policy,)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(policy, number) of every real run: the policies take turns, so that a change of the machine meets them all."""
        first = self.ranked[0]
        return [
            (policy, number)
            for number in range(max(self.repeats, self.others))
            for policy in self.ranked
            if number < (self.repeats if policy == first else self.others)
        ]

    def file_of(self, policy: str, number: int) -> Path:
        """Where a real run is kept."""
        return Path(self.out) / f"real-{policy}-{number}.npz"


def main(arguments: Sequence[str]) -> int:
    """Calibrate, replay, simulate, compare; print and write the report. Returns the exit status.

    Raises
    ------
    ConfigError
        A setting that cannot be used, a folder in use or of another replay, no room on the disk.
    MmschedError
        A server that died; runs that had ended are kept.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: mmsched calibrate replay key=value ...\n")
        print("\n".join(f"  {field.name}={field.default}" for field in dataclasses.fields(ReplayConfig)))
        return 0
    config = build(ReplayConfig, settings(arguments))
    config = dataclasses.replace(config, cores=config.cores or (max(os.sched_getaffinity(0)),))
    out = Path(config.out)
    with locked(out), ended_by_signal():
        if any(not config.file_of(*one).exists() for one in config.runs):
            with driver_off(config.cores):
                run(config, out)
        text = compared(config, out)
    write_atomic(out / "report.md", text)
    print(text)
    return 0


@contextmanager
def driver_off(cores: Sequence[int]) -> Iterator[None]:
    """This process, which asks the policy and reads the streams, leaves the device's cores alone if it can."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - set(cores) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(config: ReplayConfig, out: Path) -> None:
    """Calibrate, and carry out the real runs that are missing."""
    scenario = scenario_of(config.scenario)
    backend = LlamaCpp(
        Path(config.cache).expanduser(),
        config.cores,
        out / "server.log",
        config.server,
        seats=scenario.seats,
        context=scenario.context,
        ubatch=scenario.ubatch,
        nice=config.nice,
        modes=(READ,),
    )
    try:
        for model in scenario.models:
            backend.prepare(model)
        samples = Results(out, header_of(config) | engine_of(config, backend))
        preset = preset_for(trace_of(config), scenario.seats, config.rounds)
        rules = Rules(tries=1, max_foreign=math.inf, seed=config.seed, pause_s=PAUSE_S)
        calibration = Run(backend, scenario.models, preset, rules, samples)
        calibration.go()
        replay = replay_of(config, out)
        system = RealSystem(
            simulation_with(replay.config, replay.tables),
            [backend.launcher],
            [backend.path_of(model) for model in scenario.models],
            backend.settings,
        )
        try:
            replay_all(config, replay, system)
            calibration.probe(AFTER_RUNS)
        finally:
            system.close()
    finally:
        backend.close()


def replay_all(config: ReplayConfig, replay: Replay, system: RealSystem) -> None:
    """The real runs that are missing, each written as it ends."""
    missing = [one for one in config.runs if not config.file_of(*one).exists()]
    for done, (policy, number) in enumerate(missing, start=1):
        outcome = system.run(make_policy(policy)[1], replay.trace, replay.seed)
        kept.write(config.file_of(policy, number), outcome)
        left = (len(missing) - done) * outcome.summary["duration_s"] / 60
        mean = outcome.summary["mean_e2e_ms"]
        print(f"{policy}, real run {number}: mean E2E {mean:.0f} ms; about {left:.0f} min left", flush=True)


def compared(config: ReplayConfig, out: Path) -> str:
    """The report of what the folder holds."""
    real = {p: [kept.read(config.file_of(q, n)) for q, n in config.runs if q == p] for p in config.ranked}
    found, samples, _ = results.read(out / results.NAME)
    results.require_same(out, found, header_of(config))
    where = f"{found['machine']['host']}; cores {found['device']['cores']}, priority {found['device']['nice']}"
    changed = {"the calibration": drift(samples), "the runs": drift(samples, AFTER_RUNS)}
    probes = [f"{change:+.1%} after {what}" for what, change in changed.items() if change is not None]
    return report(replay_of(config, out), real, f"{where}; probes, against before: {', '.join(probes) or 'none'}", out)


def header_of(config: ReplayConfig) -> dict[str, Any]:
    """What the runs of a folder have in common."""
    return {"scenario": config.scenario, "seed": config.seed, "requests": config.requests}


def engine_of(config: ReplayConfig, backend: LlamaCpp) -> dict[str, Any]:
    """And what they ran on."""
    return {
        "machine": machine.description(),
        "engine": backend.engine,
        "engine_version": backend.version,
        "device": {"cores": list(config.cores), "nice": config.nice},
    }


def trace_of(config: ReplayConfig) -> RequestTrace:
    """What is asked."""
    env = scenario_of(config.scenario).config(config.requests)
    trace: RequestTrace = env.workload.sample(SEED + config.seed, env.models.names)
    return trace


def replay_of(config: ReplayConfig, out: Path) -> Replay:
    """The scenario with the costs that its folder's samples give."""
    scenario = scenario_of(config.scenario)
    env = scenario.config(config.requests)
    base = build_tables(env.cluster, env.models, env.limits.levels, env.limits.batch)
    found = figures(results.read(out / results.NAME)[1], for_sums=True)
    tables = measured_tables(base, scenario.models, found, int(scenario.memory_gb * 1e9))
    return Replay(scenario, env, tables, trace_of(config), config.seed)


def preset_for(trace: RequestTrace, seats: int, rounds: int) -> Preset:
    """Prompts, depths and batches of a trace."""
    prompt = np.asarray(trace.prompt_tokens)
    context = prompt + np.asarray(trace.output_tokens)
    quantiles = [int(q) for q in np.quantile(prompt, [0.1, 0.5, 1.0])]
    depths = [0, int(np.median(context)), int(context.max())]
    steps = int(np.clip(np.median(trace.output_tokens), 4, 32))
    batches = tuple(range(1, seats + 1))
    caches = (int(np.median(context)), int(context.max()))
    return Preset(tuple(sorted(set(quantiles))), tuple(depths), batches, tuple(depths[:2]), caches, steps, rounds)
