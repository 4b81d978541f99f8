"""`mmsched bench`: measure speed and write the figures with the machine they are of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from mmsched_env import hydra_app
from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError, unknown_name

from .machine import machine

COMMAND = "bench"
PARTS = ("environment", "requests", "memory", "start", "training", "growth", "peers", "export", "ratios", "gpu")


def measure(part: str, env: EnvConfig, rounds: int) -> dict[str, float]:
    """Figures of one part by name. Parts are imported when they run: not all need torch.

    Raises
    ------
    ConfigError
        No such part.
    """
    from . import environment, growth, memory, ratios, requests, start

    def training() -> dict[str, float]:
        from . import training

        return training.measure(env)

    def peers() -> dict[str, float]:
        from . import peers

        return peers.measure(env, rounds)

    def export() -> dict[str, float]:
        from . import export

        return export.measure(env, rounds)

    def gpu() -> dict[str, float]:
        from . import cuda_kernel, training

        return {**cuda_kernel.measure(env, rounds), **training.measure_devices(env)}

    run: dict[str, Callable[[], dict[str, float]]] = {
        "environment": lambda: environment.measure(env, rounds),
        "requests": lambda: requests.measure(env, rounds),
        "memory": lambda: memory.measure(env),
        "start": start.measure,
        "training": training,
        "growth": lambda: growth.measure(env, rounds),
        "peers": peers,
        "export": export,
        "ratios": lambda: ratios.measure(env),
        "gpu": gpu,
    }
    if part not in run:
        raise unknown_name("part of the benchmark", part, list(run))
    return run[part]()


def bench(config: DictConfig) -> None:
    """Run the parts asked for, one after the other; the file is written anew after each."""
    if not isinstance(config.rounds, int) or config.rounds < 1:
        raise ConfigError(f"rounds is {config.rounds!r}; accepted: a whole number >= 1")
    if not isinstance(config.parts, ListConfig) or not config.parts:
        raise ConfigError(f"parts is {config.parts!r}; accepted: a list of {', '.join(PARTS)}")
    env = hydra_app.env_config_of(config)
    path = Path(hydra_app.output_folder()) / "bench.json"
    result: dict[str, Any] = {"machine": machine(), "scenario": str(config.scenario.name), "rounds": config.rounds}
    for part in config.parts:
        figures = measure(str(part), env, config.rounds)
        result[str(part)] = figures
        print(f"{part}\n" + "\n".join(f"  {name:<75} {value:>16,.2f}" for name, value in figures.items()), flush=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(path)
    print(f"wrote {path}")
    if result.get("ratios", {}).get("holds") == 0.0:
        raise SystemExit(1)


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, bench, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
