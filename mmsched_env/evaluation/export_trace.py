"""`mmsched export-trace`: one episode of one policy as a Chrome trace."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from .. import hydra_app
from ..core import Simulation
from ..files import writable
from ..rendering.chrome_trace import chrome_trace
from ..workload.splits import seed_of
from .policies import chosen_entry, make_policy
from .report import write_text
from .rollout import run_episode

COMMAND = "export-trace"


def export_trace(config: DictConfig) -> None:
    """Run the episode that the composed configuration asks for and write its file."""
    path = writable(config.file)
    _, policy = make_policy(chosen_entry(config.policy))
    env = hydra_app.env_config_of(config)
    seed = seed_of(config.split, config.seed)
    simulation = Simulation(env, 1, logging=True)
    run_episode(simulation, policy, env.workload.sample(seed, env.models.names), seed)
    trace = chrome_trace(simulation, 0)
    write_text(path, json.dumps(trace, separators=(",", ":")) + "\n")
    print(f"{len(trace['traceEvents'])} events, wrote {path}: open it in ui.perfetto.dev")


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, export_trace, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
