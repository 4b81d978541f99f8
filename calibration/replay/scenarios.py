"""What is replayed: small models of the catalogue, memory for fewer of them, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmsched_env.config import EnvConfig, env_config
from mmsched_env.errors import unknown_name

SHORT = {"prompt": {"median": 60, "sigma": 0.6, "max": 160}, "output": {"median": 16, "sigma": 0.5, "max": 40}}

PLACEHOLDER = {"gpus": ["rtx-5060-ti-16gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": []}
"""any profiles: every time and every capacity of theirs is replaced by what was measured (timings.py)"""


@dataclass(frozen=True)
class Scenario:
    """One replay on one device."""

    name: str
    models: tuple[str, ...]
    memory_gb: float
    """what the device may hold of weights, buffers and caches"""
    policy: str
    workload: Mapping[str, Any]
    """settings of the generator"""
    seats: int = 2
    """requests an instance serves at once, and slots of its server"""
    ubatch: int = 128
    requests: int = 100
    levels: tuple[float, ...] = field(default=(1.0,))

    @property
    def context(self) -> int:
        """Tokens of a slot."""
        return int(self.workload["prompt"]["max"] + self.workload["output"]["max"] + 8)

    def config(self, requests: int = 0) -> EnvConfig:
        """The environment whose cost tables are yet to be replaced; `requests` in place of the scenario's."""
        return env_config(
            {
                "cluster": PLACEHOLDER,
                "models": {"names": list(self.models)},
                "limits": {
                    "gpus": 1,
                    "hosts": 1,
                    "models": len(self.models),
                    "slots": 2,
                    "levels": list(self.levels),
                    "batch": self.seats,
                },
                "sim": {"ubatch_tokens": self.ubatch, "allow_offload": False},
                "workload": {
                    "kind": "generator",
                    "num_requests": requests or self.requests,
                    "multimodal": [],
                    **self.workload,
                },
            }
        )


SMALL, MIDDLE, LARGE = "smollm2-135m-q8_0", "smollm2-360m-q8_0", "qwen2.5-0.5b-q8_0"

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", (SMALL, LARGE), 1.5, "mect", {"rate_per_s": 0.9, **SHORT}),
        Scenario("swap-thrash", (SMALL, MIDDLE, LARGE), 0.95, "mect", {"rate_per_s": 0.6, **SHORT}),
        Scenario(
            "preemption-heavy",
            (SMALL, LARGE),
            0.95,
            "preemptive",
            {
                "rate_per_s": 0.45,
                "prompt": SHORT["prompt"],
                "output": {"median": 32, "sigma": 0.8, "max": 128},
                "classes": {"interactive_share": 0.5, "batch_weight": 0.05},
            },
        ),
    )
}


def scenario_of(name: str) -> Scenario:
    """Raises ConfigError for an unknown name."""
    if name not in SCENARIOS:
        raise unknown_name("scenario", name, SCENARIOS)
    return SCENARIOS[name]
