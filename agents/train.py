"""Train a policy: `train(TrainConfig)`. The command line builds the configuration with Hydra; this file knows none."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError
from mmsched_env.observation import layout_signature

from .buffer import TimedRolloutBuffer
from .callbacks import Checkpoints, Progress, SchedulerMetrics
from .checkpoint import Checkpoint, read_checkpoint, require_layout
from .config import AgentConfig, TrainConfig
from .policies import policy_arguments
from .sb3_vec_env import ServingSB3VecEnv

LATEST = "latest.zip"
SCALE_GAMMA = 0.995


@dataclass(frozen=True)
class TrainResult:
    """What came of a training run. Figures are means over its last 100 training episodes, NaN if none ended."""

    checkpoint: Path
    num_steps: int
    stopped: bool
    """ended by a signal before `total_steps`"""
    mean_return: float
    slo_attainment: float


def train(config: TrainConfig) -> TrainResult:
    """Train to `config.total_steps` and leave ``<run_dir>/latest.zip``.

    With one PyTorch thread the same configuration gives the same weights. A resumed run continues weights, optimiser,
    step count, learning-rate schedule and return statistics; it does not restore random generators and the episodes
    under way, so it starts new ones.

    Raises
    ------
    ConfigError
        The checkpoint to resume from is of another observation layout or network, or is no checkpoint.
    """
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    run_dir = Path(config.run_dir)
    venv, serving = make_venv(config)
    model = make_model(config, venv, serving)
    latest = run_dir / LATEST
    if config.resume and latest.exists():
        restore(model, venv, serving, config, latest)
    model.set_logger(configure(str(run_dir / "tensorboard"), ["tensorboard"]))

    metrics = SchedulerMetrics()
    checkpoints = Checkpoints(lambda: save(model, venv, serving, config), config.checkpoint_every)
    progress = Progress(metrics, config.total_steps)
    with checkpoints.watching_signals():
        steps = config.total_steps - model.num_timesteps
        if steps > 0:
            model.learn(steps, callback=[metrics, progress, checkpoints], reset_num_timesteps=model.num_timesteps == 0)
        path = save(model, venv, serving, config)
    venv.close()
    stopped = checkpoints.stop_signal is not None
    if checkpoints.stop_signal is not None:
        name = signal.Signals(checkpoints.stop_signal).name
        text = f"{name}: stopped after {model.num_timesteps:,} steps, saved {path}; resume=true goes on"
        print(text, file=sys.stderr)
    returns = [info["episode"]["r"] for info in metrics.episodes]
    return TrainResult(
        checkpoint=path,
        num_steps=model.num_timesteps,
        stopped=stopped,
        mean_return=float(np.mean(returns)) if returns else float("nan"),
        slo_attainment=metrics.mean("slo_attainment"),
    )


def make_venv(config: TrainConfig) -> tuple[VecEnv, ServingSB3VecEnv]:
    """The environments as the algorithm sees them (rewards normalised if wanted), and as they are."""
    sim = config.env.sim
    limited = dataclasses.replace(sim, max_steps=min(sim.max_steps, config.agent.episode_steps))
    serving = ServingSB3VecEnv(config.num_envs, dataclasses.replace(config.env, sim=limited), config.agent.change_cost)
    if not config.agent.normalise_returns:
        return serving, serving
    # its discount only sets the scale of the rewards; that of the returns is in TimedRolloutBuffer
    return VecNormalize(serving, norm_obs=False, norm_reward=True, gamma=SCALE_GAMMA), serving


def make_model(config: TrainConfig, venv: VecEnv, serving: ServingSB3VecEnv) -> MaskablePPO:
    """A fresh algorithm with its networks."""
    agent = config.agent
    policy, arguments = policy_arguments(agent.policy, agent.net_arch, serving.serving.simulation.dims)
    return MaskablePPO(
        policy,
        venv,
        policy_kwargs=arguments,
        learning_rate=lambda left: agent.learning_rate * (0.1 + 0.9 * left),
        n_steps=agent.n_steps,
        batch_size=agent.batch_size,
        n_epochs=agent.n_epochs,
        rollout_buffer_class=TimedRolloutBuffer,
        rollout_buffer_kwargs={
            "elapsed_s": lambda: serving.elapsed_s,
            "horizon_s": agent.horizon_s,
            "trace_s": agent.trace_s,
        },
        gamma=agent.gamma,
        gae_lambda=agent.gae_lambda,
        ent_coef=agent.ent_coef,
        vf_coef=agent.vf_coef,
        clip_range=agent.clip_range,
        max_grad_norm=agent.max_grad_norm,
        target_kl=agent.target_kl,
        seed=config.seed,
        device=config.device,
    )


def save(model: MaskablePPO, venv: VecEnv, serving: ServingSB3VecEnv, config: TrainConfig) -> Path:
    """Write ``checkpoints/<steps>.zip``, and the same as ``latest.zip``; returns the latter's path."""
    returns = None
    if isinstance(venv, VecNormalize):
        returns = {name: float(getattr(venv.ret_rms, name)) for name in ("mean", "var", "count")}
    checkpoint = Checkpoint(
        layout=layout_signature(serving.serving.simulation.dims),
        env=_values(config.env),
        agent=dataclasses.asdict(config.agent),
        seed=config.seed,
        num_steps=model.num_timesteps,
        num_updates=model._n_updates,
        returns=returns,
        versions=_versions(),
        parameters=dict(model.get_parameters()),
    )
    run_dir = Path(config.run_dir)
    checkpoint.save(run_dir / "checkpoints" / f"{model.num_timesteps:09d}.zip")
    checkpoint.save(run_dir / LATEST)
    return run_dir / LATEST


def restore(model: MaskablePPO, venv: VecEnv, serving: ServingSB3VecEnv, config: TrainConfig, path: Path) -> None:
    """Continue from a checkpoint: weights, optimiser, counts and return statistics."""
    checkpoint = read_checkpoint(path)
    require_layout(path, checkpoint.layout, layout_signature(serving.serving.simulation.dims))
    require_network(path, checkpoint, config.agent)
    model.set_parameters(checkpoint.parameters, device=config.device)
    model.num_timesteps = checkpoint.num_steps
    model._n_updates = checkpoint.num_updates
    model.set_random_seed(config.seed + checkpoint.num_steps)  # not the episodes of the run's beginning again
    if isinstance(venv, VecNormalize) and checkpoint.returns is not None:
        for name, value in checkpoint.returns.items():
            setattr(venv.ret_rms, name, np.float64(value))


def require_network(path: Path, checkpoint: Checkpoint, agent: AgentConfig) -> None:
    """Raise unless the checkpoint holds the network that is configured."""
    for key in ("algorithm", "policy", "net_arch"):
        saved, wanted = checkpoint.agent.get(key), getattr(agent, key)
        wanted = list(wanted) if isinstance(wanted, tuple) else wanted
        if saved != wanted:
            raise ConfigError(f"checkpoint {path} has agent.{key}={saved!r}, not {wanted!r}; accepted: {saved!r}")


def _values(config: EnvConfig) -> dict[str, Any]:
    """The configuration's values; the workload's with its type, as it may be any trace source."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    workload = values.pop("workload")
    plain = {name: dataclasses.asdict(part) for name, part in values.items()}
    if dataclasses.is_dataclass(workload) and not isinstance(workload, type):
        plain["workload"] = dataclasses.asdict(workload)
    return plain | {"workload_type": type(workload).__name__}


def _versions() -> dict[str, str]:
    packages = ("mmsched-env", "stable-baselines3", "sb3-contrib", "torch", "numpy", "numba")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
