"""Training frames per second: our settings, SB3's defaults, and where the time goes.

`sb3 default` is `MaskablePPO` with sb3-contrib's own values (batch 64, 10 epochs, its flat MLP) over our environments.
`sb3 tuned` is the fastest setting found without code of ours in the learner: large batches, few epochs, one thread; `sb3 narrow` has
one layer as wide as our scorer instead of SB3's own network. `attention` is the usual network (attention.py) at our
batch size and epochs. `ours` is `mmsched train`'s default policy and settings. All on the same number of environments
and rollout size.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from sb3_contrib import MaskablePPO

from mmsched_env.agents.config import AgentConfig, TrainConfig
from mmsched_env.agents.sb3_vec_env import ServingSB3VecEnv
from mmsched_env.agents.train import make_model, make_venv
from mmsched_env.config import EnvConfig
from mmsched_env.sim.state import Dims

from .attention import AttentionExtractor

NUM_ENVS = TrainConfig().num_envs
ROLLOUT = NUM_ENVS * AgentConfig().n_steps
"""frames of an update"""


class Shares:
    """Seconds spent in calls of methods, by name: wrapped on the instance, so the classes stay as they are."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, owner: Any, method: str) -> None:
        """Add up the seconds of ``owner.method`` under `name`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

        setattr(owner, method, timed)


def default_sb3(config: EnvConfig, **settings: Any) -> tuple[MaskablePPO, ServingSB3VecEnv]:
    """sb3-contrib's policy and settings over our environments."""
    serving = ServingSB3VecEnv(NUM_ENVS, config)
    return MaskablePPO(
        "MultiInputPolicy", serving, n_steps=ROLLOUT // NUM_ENVS, seed=0, device="cpu", **settings
    ), serving


def attention(config: EnvConfig) -> tuple[MaskablePPO, ServingSB3VecEnv]:
    """Attention over rows and a flat head, at our settings."""
    agent = AgentConfig()
    extractor = {
        "features_extractor_class": AttentionExtractor,
        "features_extractor_kwargs": {"dims": Dims.of(config.limits)},
    }
    return default_sb3(config, batch_size=agent.batch_size, n_epochs=agent.n_epochs, policy_kwargs=extractor)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything an update takes."""

    num_envs: int = NUM_ENVS
    rollout: int = ROLLOUT
    """frames"""
    batch: int = AgentConfig().batch_size


def settings(config: EnvConfig, size: Size | None = None, device: str = "cpu") -> TrainConfig:
    """`mmsched train`'s, at this size."""
    size = size or Size()
    agent = dataclasses.replace(AgentConfig(), n_steps=size.rollout // size.num_envs, batch_size=size.batch)
    return TrainConfig(envs=(config,), agent=agent, num_envs=size.num_envs, device=device)


def ours(config: EnvConfig, size: Size | None = None, device: str = "cpu") -> tuple[MaskablePPO, ServingSB3VecEnv]:
    """`mmsched train`'s policy and settings."""
    train = settings(config, size, device)
    venv, (serving,) = make_venv(train)
    return make_model(train, venv, [serving]), serving


def timed(model: MaskablePPO, serving: ServingSB3VecEnv, updates: int) -> dict[str, float]:
    """Frames per second of `updates` updates after one for warming up, and shares of their time."""
    rollout = model.n_steps * model.n_envs
    model.learn(rollout)
    shares = Shares()
    shares.watch("environment", serving, "step_wait")
    shares.watch("masks", serving, "env_method")
    shares.watch("policy", model.policy, "forward")
    shares.watch("buffer", model.rollout_buffer, "add")
    shares.watch("update", model, "train")
    begun, used = time.perf_counter(), time.process_time()
    model.learn(updates * rollout, reset_num_timesteps=False)
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    return {
        "frames/s": updates * rollout / wall,
        "frames/s of processor time": updates * rollout / cpu,
        **{f"{part}, share of time": seconds / wall for part, seconds in shares.seconds.items()},
    }


def measure(config: EnvConfig, updates: int = 2) -> dict[str, float]:
    """What `timed` says of each maker's training, and ratios."""
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], tuple[MaskablePPO, ServingSB3VecEnv]]] = {
        "ours": lambda: ours(config),
        "sb3 tuned": lambda: default_sb3(config, batch_size=2048, n_epochs=3),
        "sb3 narrow": lambda: default_sb3(
            config, batch_size=2048, n_epochs=3, policy_kwargs={"net_arch": list(AgentConfig().net_arch)}
        ),
        "sb3 default": lambda: default_sb3(config),
        "attention": lambda: attention(config),
    }
    out = {f"{name}: {key}": value for name, make in makers.items() for key, value in timed(*make(), updates).items()}
    for other in ("sb3 tuned", "sb3 narrow", "sb3 default", "attention"):
        ratio = out["ours: frames/s of processor time"] / out[f"{other}: frames/s of processor time"]
        out[f"ours over {other}"] = ratio
    return out


def measure_devices(config: EnvConfig, updates: int = 1) -> dict[str, float]:
    """Ours on the CPU, with one thread and eight, and on a GPU, at the size of `mmsched train` and a wide one."""
    sizes = {"as in conf": Size(), "wide": Size(num_envs=1024, rollout=65536, batch=16384)}
    out = {}
    for name, size in sizes.items():
        for device, threads in (("cpu", 1), ("cpu", 8), ("cuda", 1)):
            torch.set_num_threads(threads)
            for key, value in timed(*ours(config, size, device), updates).items():
                out[f"{name}, {device}, {threads} threads: {key}"] = value
    return out
