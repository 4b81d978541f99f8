"""How far are policies from the best there is? Tiny episodes (6 requests, 2 GPUs, 3 models) whose optimum can be found.

    python examples/distance_to_optimum.py --episodes 200

Every episode's costs go to a file at once, so that a run that was stopped goes on. Some ten minutes for 200 of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.progress import track

from mmsched_env import metrics
from mmsched_env.bounds.exact import exact_optimum
from mmsched_env.bounds.tiny import tiny_config, tiny_trace
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode

POLICIES = ("fcfs", "least_loaded", "mect", "preemptive", "composite", "planner", "clairvoyant")


def costs(seed: int, max_nodes: int) -> dict[str, float]:
    """Weighted flow time in seconds of each policy, and of the optimum (NaN: not proven)."""
    config = tiny_config(all_actions=False)
    simulation, trace = Simulation(config, 1), tiny_trace(config, seed)
    found = {}
    for name in POLICIES:
        run_episode(simulation, make_policy(name)[1], trace, seed)
        found[name] = metrics.weighted_flow_time(simulation.episode_requests(0), float(simulation.state["now"][0]))
    simulation.reset(0, trace)
    best = exact_optimum(simulation, min(found.values()) + 1e-6, max_nodes)
    return found | {"optimum": best.flow_time if best.complete else float("nan"), "nodes": best.num_nodes}


def table(rows: list[dict[str, float]]) -> str:
    """Gaps to the optimum where it is proven."""
    proven = [row for row in rows if np.isfinite(row["optimum"])]
    best = np.array([row["optimum"] for row in proven])
    nodes = np.array([row["nodes"] for row in proven])
    lines = [
        f"{len(proven)} of {len(rows)} optima proven; nodes: median {np.median(nodes):,.0f}, most {nodes.max():,.0f}",
        "",
        "| policy | mean gap % | median % | largest % | optimal in | below the optimum in |",
        "|---|---|---|---|---|---|",
    ]
    for name in POLICIES:
        gap = 100 * (np.array([row[name] for row in proven]) / best - 1)
        same, below = int((np.abs(gap) < 1e-6).sum()), int((gap <= -1e-6).sum())
        lines.append(f"| {name} | {gap.mean():.1f} | {np.median(gap):.1f} | {gap.max():.0f} | {same} | {below} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--episodes", type=int, default=200)
    arguments.add_argument("--max-nodes", type=int, default=20_000_000)
    arguments.add_argument("--out", type=Path, default=Path("runs/optimum.jsonl"))
    given = arguments.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    with given.out.open("a") as file:
        for seed in track(range(len(done), given.episodes), "episodes"):
            done.append(costs(seed, given.max_nodes))
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
    print(table(done[: given.episodes]))


if __name__ == "__main__":
    main()
