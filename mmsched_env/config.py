"""What an environment is made of: frozen dataclasses with units and validation. No Hydra in here.

`conf/` holds the same values as YAML; a test keeps the two equal.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import ConfigError, unknown_name

T = TypeVar("T")

PREFILL_MODES = ("mixed", "prefill_first")
PREEMPT_MODES = ("swap", "recompute", "cheaper")
RESIZE_MODES = ("reload", "move")
UNCERTAINTIES = ("none", "sample")


@dataclass(frozen=True)
class ClusterConfig:
    """GPUs and hosts by profile name; ``gpu_hosts[i]`` is the host (index) GPU i sits in, empty: all in the first."""

    gpus: tuple[str, ...] = ("rtx-a6000-48gb", "rtx-5000-ada-32gb", "rtx-4090-24gb", "rtx-5060-ti-16gb")
    hosts: tuple[str, ...] = ("threadripper-pro-5995wx", "desktop-ddr5")
    gpu_hosts: tuple[int, ...] = (0, 0, 1, 1)
    kv_swap_fraction: float = 0.25
    """share of each host's RAM set aside for the saved KV cache of preempted requests"""
    uncertainty: str = "none"
    """sample: each episode's rates and times are drawn from what the profiles state they may be off by"""

    def __post_init__(self) -> None:
        _require(self.uncertainty in UNCERTAINTIES, "cluster.uncertainty", self.uncertainty, " or ".join(UNCERTAINTIES))
        _require(len(self.gpus) >= 1, "cluster.gpus", self.gpus, "at least one GPU profile name")
        _require(len(self.hosts) >= 1, "cluster.hosts", self.hosts, "at least one host profile name")
        if not self.gpu_hosts:
            object.__setattr__(self, "gpu_hosts", (0,) * len(self.gpus))
        _require(
            len(self.gpu_hosts) == len(self.gpus) and all(0 <= h < len(self.hosts) for h in self.gpu_hosts),
            "cluster.gpu_hosts",
            self.gpu_hosts,
            f"one host index (0..{len(self.hosts) - 1}) per GPU, {len(self.gpus)} in all; or none: all in the first host",
        )
        _require(
            0 <= self.kv_swap_fraction < 1, "cluster.kv_swap_fraction", self.kv_swap_fraction, "a number in [0, 1)"
        )


@dataclass(frozen=True)
class ModelsConfig:
    """The models served, by profile name; a request's model is an index into ``names``."""

    names: tuple[str, ...] = (
        "llama-3.2-1b-f16",
        "qwen2.5-3b-f16",
        "llama-3-8b-q4_k_m",
        "qwen2.5-vl-7b-q4_k_m",
        "qwen2.5-14b-q4_k_m",
        "qwen3-32b-q4_k_m",
        "llama-2-70b-q4_k_m",
    )

    def __post_init__(self) -> None:
        _require(len(self.names) >= 1, "models.names", self.names, "at least one model profile name")
        _require(len(set(self.names)) == len(self.names), "models.names", self.names, "no name twice")


MOST = 4096
"""of what there is a row for in every observation"""
MOST_STEPS = 2**62
MOST_HOSTS = 127
"""a request's record has a byte for the number of one"""


@dataclass(frozen=True)
class LimitsConfig:
    """Padded sizes of observation and action: one policy serves every cluster that fits in them."""

    queue: int = 16
    """queue slots Q the policy sees: the oldest requests"""
    gpus: int = 4
    hosts: int = 2
    models: int = 8
    slots: int = 3
    """instance slots S per GPU"""
    levels: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """offload levels K: share of a model's layers + 1 units kept on the GPU"""
    batch: int = 16
    """seats per instance: requests batched at once"""

    def __post_init__(self) -> None:
        for name in ("queue", "gpus", "hosts", "models", "slots", "batch"):
            ok = 1 <= getattr(self, name) <= MOST
            _require(ok, f"limits.{name}", getattr(self, name), f"a whole number in [1, {MOST}]")
        _require(self.hosts <= MOST_HOSTS, "limits.hosts", self.hosts, f"at most {MOST_HOSTS}")
        ok = all(0 <= x <= 1 for x in self.levels) and list(self.levels) == sorted(set(self.levels))
        _require(ok and len(self.levels) >= 1, "limits.levels", self.levels, "rising shares in [0, 1]")


@dataclass(frozen=True)
class SimConfig:
    """Which engine behaviour the simulator follows."""

    prefill_mode: str = "mixed"
    """mixed (llama.cpp, vLLM V1) or prefill_first (vLLM V0)"""
    ubatch_tokens: int = 512
    """prompt tokens of one prefill chunk"""
    preempt_mode: str = "swap"
    """swap (save KV to host RAM), recompute (drop it) or cheaper"""
    resize_mode: str = "reload"
    """reload (what engines do) or move (only the moved layers cross the link)"""
    allow_preempt: bool = True
    """false: PREEMPT only unloads idle instances (for ablations)"""
    allow_offload: bool = True
    """false: no OFFLOAD; the level of an instance is fixed when it is loaded"""
    strict_actions: bool = False
    """true: an illegal action raises; false: it counts as WAIT and is reported in info"""
    memory_noise: float = 0.0
    """log-normal spread of what a model really takes on a GPU, over its estimate; known after its first load there,
    which fails where it does not fit; 0: the estimates are exact"""
    drop_after: float = float("inf")
    """a request still waiting after this many times its E2E target is dropped; inf: never"""
    drop_penalty: float = 2.0
    """a dropped request is charged flow time until this many times its E2E target, or until it is dropped if later"""
    debug_checks: bool = False
    """true: the simulator checks its invariants after every step and raises where one is broken (slower)"""
    max_time_s: float = float("inf")
    """truncate an episode at this simulated time"""
    max_steps: int = 1_000_000
    """truncate an episode after this many steps"""

    def __post_init__(self) -> None:
        for key, accepted in (
            ("prefill_mode", PREFILL_MODES),
            ("preempt_mode", PREEMPT_MODES),
            ("resize_mode", RESIZE_MODES),
        ):
            _require(getattr(self, key) in accepted, f"sim.{key}", getattr(self, key), " or ".join(accepted))
        ok = 1 <= self.ubatch_tokens < 2**31
        _require(ok, "sim.ubatch_tokens", self.ubatch_tokens, "a whole number in [1, 2**31)")
        _require(self.drop_after > 0, "sim.drop_after", self.drop_after, "a number > 0, inf for never")
        finite = 0 <= self.drop_penalty < float("inf")
        _require(finite, "sim.drop_penalty", self.drop_penalty, "a number >= 0")
        noise = 0 <= self.memory_noise <= 1
        _require(noise, "sim.memory_noise", self.memory_noise, "a number from 0 to 1")
        _require(self.max_time_s > 0, "sim.max_time_s", self.max_time_s, "seconds > 0")
        ok = 1 <= self.max_steps <= MOST_STEPS
        _require(ok, "sim.max_steps", self.max_steps, "a whole number in [1, 2**62]")


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward terms (see reward.py for the terms)."""

    flow_time: float = 1.0
    """weighted requests in the system, integrated over time"""
    slo_miss: float = 0.0
    """per finished request that missed a target, times its class weight"""
    slowdown: float = 0.0
    """per finished request, its E2E over its unloaded E2E"""

    def __post_init__(self) -> None:
        for name in ("flow_time", "slo_miss", "slowdown"):
            _require(0 <= getattr(self, name) < float("inf"), f"reward.{name}", getattr(self, name), "a number >= 0")


def default_workload() -> Any:
    """The embedded generator (imported late: the generator knows nothing of this file)."""
    from .workload.generator import GeneratorConfig

    return GeneratorConfig()


@dataclass(frozen=True)
class EnvConfig:
    """One environment. ``workload`` is any `mmsched_env.workload.TraceSource`; its ``rho``, if it has one, sets its rate."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    sim: SimConfig = field(default_factory=SimConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    workload: Any = field(default_factory=default_workload)

    def __post_init__(self) -> None:
        for key, count, room in (
            ("cluster.gpus", len(self.cluster.gpus), self.limits.gpus),
            ("cluster.hosts", len(self.cluster.hosts), self.limits.hosts),
            ("models.names", len(self.models.names), self.limits.models),
        ):
            limit = "limits." + key.split(".")[-1].replace("names", "models")
            _require(count <= room, key, f"{count} entries", f"at most {limit}={room}; raise it to serve more")
        if getattr(self.workload, "rho", None) is not None:
            from .workload.load import at_load

            object.__setattr__(self, "workload", at_load(self.workload, self))


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Make dataclass `cls` from plain values (as YAML gives them), checking names and types.

    Raises
    ------
    ConfigError
        An unknown key or a value of the wrong type, with the full key and what is accepted.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise unknown_name("configuration key", path, [f"{where}.{f}" if where else f for f in fields])
        kwargs[key] = _convert(hints[key], value, path)
    return cls(**kwargs)


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
        return _convert(kind, value, path)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "a mapping of keys to values")
        return build(kind, value, path)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise _wrong(path, value, f"a list of {item.__name__}")
        return tuple(_convert(item, entry, f"{path}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "a mapping of keys to values")
        item = typing.get_args(kind)[1]
        return {str(k): _convert(item, v, f"{path}.{k}") for k, v in value.items()}
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool) or value != value:
        words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}[kind]
        raise _wrong(path, value, words)
    return kind(value)


def _require(ok: bool, key: str, value: object, accepted: str) -> None:
    if not ok:
        raise _wrong(key, value, accepted)


def _wrong(key: str, value: object, accepted: str) -> ConfigError:
    return ConfigError(f"{key} is {value!r}; accepted: {accepted}")


def env_config(values: Mapping[str, Any] | EnvConfig | None = None) -> EnvConfig:
    """An `EnvConfig` from plain nested values, such as a resolved Hydra configuration.

    Raises
    ------
    ConfigError
        An unknown key, a wrong type or a value out of range, with the full key and what is accepted.
    """
    if isinstance(values, EnvConfig):
        return values
    from .workload import TraceSource, source_from

    if values is not None and not isinstance(values, Mapping):
        raise _wrong("configuration", values, "an EnvConfig or a mapping of keys to values")
    plain = dict(values or {})
    workload = plain.pop("workload", None)
    config = build(EnvConfig, plain)
    if workload is None:
        return config
    source = source_from(workload) if isinstance(workload, Mapping) else workload
    if not isinstance(source, TraceSource):
        raise _wrong("workload", workload, "a mapping with kind, or an object with sample(seed, model_names)")
    return dataclasses.replace(config, workload=source)
