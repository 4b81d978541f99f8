"""Write the golden episodes anew: `python tests/golden/make.py --accept`, then read the diff before you commit it.

Without --accept it only says what would change. A change of the files is a change of the dynamics: it needs a reason
in the changelog, and a new version of the environment's id if agents or results would notice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from episodes import ENV_ID, HERE, Episode, run

from mmsched_env.action import Kind
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation

CLUSTER = {"gpus": ["rtx-3060-12gb", "rtx-5060-ti-16gb"], "hosts": ["desktop-ddr4"], "gpu_hosts": [0, 0]}
NAMES = ["llama-3.2-1b-f16", "qwen2.5-vl-7b-q4_k_m", "qwen2.5-14b-q4_k_m"]  # only the names: see tables.json
GB = 10**9

TOPICS: dict[str, dict[str, Any]] = {
    "swap-reload": {
        "sim": {"prefill_mode": "mixed", "preempt_mode": "swap", "resize_mode": "reload"},
        "must": {"save_end", "restore_end", "resize_end", "unload_end"},
    },
    "recompute-move": {
        "sim": {"prefill_mode": "prefill_first", "preempt_mode": "recompute", "resize_mode": "move"},
        "must": {"preempt", "resize_end", "unload_end"},
        "reward": {"flow_time": 1.0, "slo_miss": 0.5, "slowdown": 0.1},
        "images": True,
        "encoded_again": True,
    },
    "images": {
        "sim": {"prefill_mode": "mixed", "preempt_mode": "cheaper", "resize_mode": "move"},
        "must": {"preempt", "save_end", "restore_end", "resize_end"},
        "images": True,
    },
    "dropping": {
        "sim": {"prefill_mode": "prefill_first", "preempt_mode": "swap", "drop_after": 0.4, "drop_penalty": 2.0},
        "must": {"drop", "finish", "save_end", "resize_end"},
        "reward": {"flow_time": 1.0, "slo_miss": 1.0, "slowdown": 0.0},
    },
    "scarce-memory": {
        "sim": {"prefill_mode": "prefill_first", "preempt_mode": "swap", "resize_mode": "reload", "memory_noise": 0.2},
        "must": {"save_end", "restore_end", "resize_end", "unload_end", "load_failed"},
        "tables": {"host_bytes": [5 * GB], "gpu_bytes": [4 * GB, 3_300_000_000]},
        "images": True,
    },
}


def random_trace(rng: np.random.Generator, images: bool) -> dict[str, list[Any]]:
    size = int(rng.integers(8, 15))
    model = rng.integers(3, size=size)
    output = rng.integers(1, 90, size)
    image = np.where((model == 1) & (rng.random(size) < 0.7), rng.integers(40, 160, size), 0) * images
    columns = {
        "arrival_s": np.sort(np.round(rng.uniform(0, 15, size), 3)),
        "model": model,
        "prompt_tokens": rng.integers(5, 400, size),
        "image_tokens": image,
        "output_tokens": output,
        "max_tokens": np.full(size, 120),
        "predicted_tokens": np.clip(np.round(output * rng.uniform(0.5, 2, size)), 1, None),
        "weight": rng.choice([0.25, 1.0], size),
    }
    return {name: values.tolist() for name, values in columns.items()}


def random_action(rng: np.random.Generator, simulation: Simulation) -> int:
    """Legal; a kind first, so that rare kinds are not drowned."""
    layout, legal = simulation.layout, np.flatnonzero(simulation.current.mask[0])
    if legal[0] == 0 and (len(legal) == 1 or rng.random() < 0.5):
        return 0
    edges = (1, layout.preempt_at, layout.offload_at, layout.size)
    kinds = [legal[(legal >= a) & (legal < b)] for a, b in itertools.pairwise(edges)]
    return int(rng.choice([kind for kind in kinds if len(kind)][int(rng.integers(sum(map(bool, map(len, kinds)))))]))


def attempt(name: str, seed: int) -> Episode:
    topic = TOPICS[name]
    rng = np.random.default_rng(seed)
    episode: Episode = {
        "env_id": ENV_ID,
        "seed": seed,
        "config": {
            "cluster": CLUSTER | {"kv_swap_fraction": 0.25},
            "models": {"names": NAMES},
            "sim": {"ubatch_tokens": 100, "max_steps": 150} | topic["sim"],
            "reward": topic.get("reward", {}),
        },
        "tables": topic.get("tables", {}),
        "trace": random_trace(rng, topic.get("images", False)),
    }
    return episode | run(episode, lambda simulation: random_action(rng, simulation))


def worth_keeping(name: str, episode: Episode) -> bool:
    """Does the episode end by itself and show what its topic is about?"""
    seen = {event[0] for event in episode["events"]}
    images = episode["trace"]["image_tokens"]
    again = any(image and row["num_preemptions"] for image, row in zip(images, episode["requests"], strict=True))
    if TOPICS[name].get("encoded_again", False) and not again:
        return False
    drained = all(row["phase"] in (7, 8) for row in episode["requests"])
    return drained and TOPICS[name]["must"] <= seen and Kind.WAIT in episode["actions"]


def make(name: str) -> str:
    return text_of(next(e for e in (attempt(name, seed) for seed in itertools.count()) if worth_keeping(name, e)))


def text_of(episode: Episode) -> str:
    """JSON with one event and one request a line; floats in their shortest exact form."""
    lines = []
    for key, value in episode.items():
        if key in ("events", "requests"):
            body = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f" {json.dumps(key)}: [\n  {body}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(path: Path, text: str, accept: bool) -> bool:
    """Write the file if it is new or the change is accepted. Returns whether it differs from what was there."""
    old = path.read_text() if path.exists() else None
    if old == text:
        return False
    if old is None or accept:
        path.write_text(text)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="overwrite files that would change")
    accept = parser.parse_args().accept
    assert EnvConfig().limits.levels == (0.0, 0.25, 0.5, 0.75, 1.0)
    refused = []
    for name in TOPICS:
        path = HERE / f"serving-v0-{name}.json"
        existed = path.exists()
        changed = write(path, make(name), accept)
        print(f"{path.name}: {'changed' if changed else 'as before'}")
        refused += [path.name] if changed and existed and not accept else []
    if refused:
        print(f"not overwritten: {', '.join(refused)}; --accept does it", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
