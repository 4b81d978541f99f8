"""Golden episodes: files that fix what the environment did when they were made, and how to run one.

A file holds everything but the cost tables, which all share: plain numbers in tables.json, so that a new calibration
changes nothing here. `make.py` writes both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from mmsched_env.config import EnvConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.sim.events import NAMES
from mmsched_env.workload import RequestTrace

HERE = Path(__file__).parent
ENV_ID = "mmsched/Serving-v0"
FILES = sorted(HERE.glob("serving-v0-*.json"))
RECORDS = (
    "phase",
    "dispatch_s",
    "first_token_s",
    "finish_s",
    "charged_until_s",
    "load_s",
    "unloaded_s",
    "slo_e2e_s",
    "instance",
    "level",
    "generated",
    "num_preemptions",
)

Episode = dict[str, Any]


def load(path: Path) -> Episode:
    episode: Episode = json.loads(path.read_text())
    return episode


def tables_of(episode: Episode) -> CostTables:
    """The shared numbers with the episode's changes (`null` in the file is infinity)."""
    values = json.loads((HERE / "tables.json").read_text()) | episode["tables"]
    arrays = {name: np.array(value) for name, value in values.items()}
    knots = np.array(values["depth_knot"], object)
    arrays["depth_knot"] = np.where(knots == None, np.inf, knots).astype(np.float64)  # noqa: E711
    fields = {field.name: str(field.type) for field in dataclasses.fields(CostTables)}
    kinds = {"IntArray": np.int64, "FloatArray": np.float64}
    return CostTables(**{name: arrays[name].astype(kinds[kind]) for name, kind in fields.items()})


def simulation_of(episode: Episode) -> Simulation:
    """One environment at the episode's first decision point."""
    assert episode["env_id"] == ENV_ID
    config: EnvConfig = env_config(episode["config"])
    with mock.patch("mmsched_env.core.build_tables", lambda *args: tables_of(episode)):
        simulation = Simulation(config, 1, logging=True)
    simulation.reset(0, RequestTrace.from_columns(config.models.names, **episode["trace"]), episode["seed"])
    return simulation


def run(episode: Episode, choose: Callable[[Simulation], int | None], after: Any = None) -> Episode:
    """Play until the end of the episode or of the actions (`choose` gives None); returns what happened.

    `after` is called with the simulation before the first step, and with the action and the end around every step.
    """
    simulation = simulation_of(episode)
    watch = after(simulation) if after else None
    actions: list[int] = []
    total, ended = 0.0, False
    while not ended and (action := choose(simulation)) is not None:
        if watch:
            watch.before(action)
        outcome = simulation.step(np.array([action]))[0]
        ended = bool(outcome.terminated or outcome.truncated)
        total += float(outcome.reward)
        actions.append(action)
        if watch:
            watch.after(mask=not ended)
    return {
        "actions": actions,
        "events": [
            [NAMES[e["kind"]], *(int(e[name]) for name in ("request", "instance", "model", "level")), *times(e)]
            for e in simulation.event_log(0)
        ],
        "requests": [dict(zip(RECORDS, values, strict=True)) for values in rows(simulation)],
        "ended": ended,
        "reward": total,
    }


def times(event: Any) -> tuple[float, float]:
    return float(event["time_s"]), float(event["value"])


def rows(simulation: Simulation) -> list[list[Any]]:
    records = simulation.episode_requests(0)
    return [[records[name][j].item() for name in RECORDS] for j in range(len(records))]
