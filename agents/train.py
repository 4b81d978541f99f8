"""Train a policy: `train(TrainConfig)`. The command line builds the configuration with Hydra; this file knows none."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError
from mmsched_env.observation import layout_signature

from .buffer import TimedRolloutBuffer
from .callbacks import Checkpoints, Progress, SchedulerMetrics, Validations
from .checkpoint import Checkpoint, as_json, read_checkpoint, require_layout
from .config import AgentConfig, ImitationConfig, TrainConfig
from .curriculum import Curriculum
from .dqn import MaskedDQN, QPolicy
from .imitation import Teachers, imitate
from .improvement import fit
from .mixed_vec_env import MixedVecEnv
from .policies import cautious, policy_arguments
from .ppo import AnchoredPPO
from .resume import apply, capture
from .rollouts import Explorer, Samples, joined
from .sb3_vec_env import ServingSB3VecEnv
from .validation import Validator

LATEST = "latest.zip"
BEST = "best.zip"
CLONE = "clone.zip"
CHUNK = 256
"""states looked into between two looks for a signal"""
SCALE_GAMMA = 0.995
Model = AnchoredPPO | MaskedDQN


@dataclass(frozen=True)
class TrainResult:
    """What came of a training run."""

    checkpoint: Path
    num_steps: int
    stopped: bool
    """ended by a signal before `total_steps`"""
    best_score: float
    """least mean E2E over the validation rule's, geometric mean over scenarios, NaN without validations"""


def train(config: TrainConfig) -> TrainResult:
    """Train to `config.total_steps` and leave ``<run_dir>/latest.zip`` and, if there were validations, ``best.zip``.

    With one PyTorch thread the same configuration gives the same weights.

    Raises
    ------
    ConfigError
        The checkpoint to resume from is of another observation layout, network or configuration, or is no checkpoint.
    """
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    run_dir = Path(config.run_dir)
    venv, serving = make_venv(config)
    model = make_model(config, venv, serving)
    model.set_logger(configure(str(run_dir / "tensorboard"), ["tensorboard"]))
    validations = _validations(config, model, serving)
    latest = run_dir / LATEST
    if config.resume and latest.exists() and isinstance(model, AnchoredPPO):
        restore(model, serving, config, latest, validations)

    metrics = SchedulerMetrics()
    checkpoints = Checkpoints(lambda: save(model, serving, config, validations), config.checkpoint_every)
    callbacks: list[BaseCallback] = [metrics, Progress(metrics, config.total_steps), checkpoints]
    if config.agent.curriculum.until > 0:
        callbacks.append(Curriculum(serving, config.agent.curriculum, config.total_steps))
    if validations is not None:
        callbacks.append(validations)
    with checkpoints.watching_signals():
        if model.num_timesteps == 0 and isinstance(model, AnchoredPPO):
            warm_start(model, serving, config, checkpoints, validations)
            if config.agent.common_traces > 1:  # the imitation leaves those of a group at different traces
                venv.seed(config.seed + config.num_envs)
        steps = config.total_steps - model.num_timesteps
        if steps > 0 and checkpoints.stop_signal is None:
            model.learn(steps, callback=callbacks, reset_num_timesteps=model.num_timesteps == 0)
        path = save(model, serving, config, validations)
    venv.close()
    if checkpoints.stop_signal is not None:
        _say_stopped(model, checkpoints.stop_signal, path)
    best = float("inf") if validations is None else validations.best
    return TrainResult(
        checkpoint=path,
        num_steps=model.num_timesteps,
        stopped=checkpoints.stop_signal is not None,
        best_score=best if np.isfinite(best) else float("nan"),
    )


def _validations(config: TrainConfig, model: Model, serving: Sequence[ServingSB3VecEnv]) -> Validations | None:
    """Those of the run, if it has any."""
    if not config.validate_every:
        return None
    validator = Validator(config.envs, config.validation_episodes, config.validation_line, config.agent.advisers)
    validator.line()  # a rule that cannot be used is said before the work
    return Validations(validator, config.validate_every, partial(keep_best, model, serving, config), network_of)


def _say_stopped(model: Model, number: int, path: Path) -> None:
    """What ended the run, and how it goes on."""
    text = f"{signal.Signals(number).name}: stopped after {model.num_timesteps:,} steps, saved {path}"
    if isinstance(model, AnchoredPPO):
        text += "; resume=true goes on" if model.num_timesteps else "; resume=true begins the warm start anew"
    print(text, file=sys.stderr)


def warm_start(
    model: AnchoredPPO,
    serving: Sequence[ServingSB3VecEnv],
    config: TrainConfig,
    stop: Checkpoints,
    validations: Validations | None,
) -> None:
    """Imitate the teacher, improve on it by rollouts, and hold on to what came of it in PPO."""
    if config.start is not None:
        start = read_checkpoint(config.start)
        require_network(Path(config.start), start, config.agent)
        model.policy.load_state_dict(start.policy)
    elif config.agent.imitation.teacher is not None:
        clone(model, serving, config.agent.imitation, stop)
        checkpoint_of(model, serving, config).save(Path(config.run_dir) / CLONE)
    elif not config.agent.advisers:
        return
    model.anchor()
    if config.agent.improvement.rounds and stop.stop_signal is None:
        if validations is not None:
            validations.validate(model, "before the improvement")
        improve(model, config, stop, validations)
        model.anchor()


def clone(
    model: AnchoredPPO, serving: Sequence[ServingSB3VecEnv], settings: ImitationConfig, stop: Checkpoints
) -> None:
    """Imitate the teacher."""
    assert settings.teacher is not None
    teachers = Teachers(settings.teacher, [part.serving.simulation for part in serving])

    def report(count: int, figures: dict[str, float]) -> bool:
        _record(model, "imitation", count, figures)
        text = f"imitation of {settings.teacher}: {count:,} of {settings.steps:,} decisions, "
        _line(text + f"{figures['accuracy']:.1%} alike, value explains {figures['value_explained']:.0%}")
        return stop.stop_signal is None

    imitate(model, teachers, settings, report)


def improve(model: AnchoredPPO, config: TrainConfig, stop: Checkpoints, validations: Validations | None) -> None:
    """Rounds of rollouts from the policy's own states and of learning from all of them."""
    settings = config.agent.improvement
    explorers = [
        Explorer(_cut(env, config.agent), config.agent.advisers, settings, 1000 * config.seed + at)
        for at, env in enumerate(config.envs)
    ]
    found: list[list[Samples]] = [[] for _ in explorers]
    for number in range(1, settings.rounds + 1):
        for at, explorer in enumerate(explorers):
            for _ in range(-(-settings.states // CHUNK)):
                found[at].append(explorer.gather(model.policy, min(CHUNK, settings.states)))
                count = sum(len(part.candidates) for part in found[at])
                _line(f"rollouts, round {number} of {settings.rounds}: scenario {at}, {count:,} states")
                if stop.stop_signal is not None:
                    return
        assert model.reference is not None
        figures = fit(model.policy, model.reference, [joined(parts) for parts in found], settings)
        _record(model, "improvement", number, figures)
        _line(f"round {number}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        if validations is not None:
            for caution in settings.cautions:
                with cautious(model.policy, caution):
                    validations.validate(model, f"round {number} of improvement, caution {caution:g}")


def keep_best(model: Model, serving: Sequence[ServingSB3VecEnv], config: TrainConfig) -> None:
    checkpoint_of(model, serving, config).save(Path(config.run_dir) / BEST)


def _record(model: AnchoredPPO, group: str, step: int, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        model.logger.record(f"{group}/{name}", value)
    model.logger.dump(step)


def _line(text: str) -> None:
    print(f"{text:<100}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def make_venv(config: TrainConfig) -> tuple[VecEnv, list[ServingSB3VecEnv]]:
    """The environments as the algorithm sees them (rewards normalised if wanted), and each scenario's as they are."""
    count = config.num_envs // len(config.envs)
    serving, seen = [], []
    for env in config.envs:
        agent = config.agent
        part = ServingSB3VecEnv(count, _cut(env, agent), agent.change_cost, agent.advisers, agent.common_traces)
        serving.append(part)
        # its discount only sets the scale of the rewards; that of the returns is in TimedRolloutBuffer
        normalised = VecNormalize(part, norm_obs=False, norm_reward=True, gamma=SCALE_GAMMA)
        seen.append(normalised if agent.normalise_returns else part)
    return MixedVecEnv(seen), serving


def _cut(env: EnvConfig, agent: AgentConfig) -> EnvConfig:
    """The scenario with episodes of `episode_steps` decisions at most."""
    sim = dataclasses.replace(env.sim, max_steps=min(env.sim.max_steps, agent.episode_steps))
    return dataclasses.replace(env, sim=sim)


def make_model(config: TrainConfig, venv: VecEnv, serving: Sequence[ServingSB3VecEnv]) -> Model:
    """A fresh algorithm with its networks."""
    return (make_dqn if config.agent.algorithm == "dqn" else make_ppo)(config, venv, serving)


def make_dqn(config: TrainConfig, venv: VecEnv, serving: Sequence[ServingSB3VecEnv]) -> MaskedDQN:
    """SB3's DQN with our networks."""
    agent, dqn = config.agent, config.agent.dqn
    actor, arguments = policy_arguments(agent.policy, agent.net_arch, serving[0].serving.simulation.dims, 0)
    return MaskedDQN(
        QPolicy,  # type: ignore[arg-type]  # it is typed for its own policies
        venv,
        policy_kwargs={"actor": actor, "arguments": arguments},
        learning_rate=agent.learning_rate,
        buffer_size=dqn.buffer_size,
        learning_starts=dqn.learning_starts,
        batch_size=agent.batch_size,
        gamma=agent.gamma,
        train_freq=1,
        gradient_steps=dqn.updates,
        target_update_interval=dqn.target_every,
        exploration_fraction=dqn.exploration_share,
        exploration_final_eps=dqn.exploration_end,
        max_grad_norm=agent.max_grad_norm,
        seed=config.seed,
        device=config.device,
    )


def network_of(model: BaseAlgorithm) -> MaskableActorCriticPolicy:
    """What decides, and what a checkpoint keeps."""
    return model.deciding if isinstance(model, MaskedDQN) else model.policy  # type: ignore[return-value]


def make_ppo(config: TrainConfig, venv: VecEnv, serving: Sequence[ServingSB3VecEnv]) -> AnchoredPPO:
    """PPO with its buffer and anchor."""
    agent = config.agent
    simulation = serving[0].serving.simulation
    policy, arguments = policy_arguments(agent.policy, agent.net_arch, simulation.dims, len(agent.advisers))
    return AnchoredPPO(
        policy,
        venv,
        layout=simulation.layout,
        kl_coef=lambda left: agent.kl_coef * max(0.0, 1 - (1 - left) / agent.kl_share),
        policy_kwargs=arguments,
        learning_rate=lambda left: agent.learning_rate * (0.1 + 0.9 * left),
        n_steps=agent.n_steps,
        batch_size=agent.batch_size,
        n_epochs=agent.n_epochs,
        rollout_buffer_class=TimedRolloutBuffer,
        rollout_buffer_kwargs={
            "elapsed_s": lambda: _of_all(serving, "elapsed_s"),
            "moment": lambda: (_of_all(serving, "finished"), _of_all(serving, "decided_s")),
            "common_traces": agent.common_traces,
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


def _of_all(serving: Sequence[ServingSB3VecEnv], name: str) -> NDArray[Any]:
    """An array (N,) of every scenario's, one after the other."""
    return np.concatenate([getattr(part, name) for part in serving])


def save(
    model: Model, serving: Sequence[ServingSB3VecEnv], config: TrainConfig, validations: Validations | None
) -> Path:
    """Write ``checkpoints/<steps>.zip``, and ``latest.zip`` with what it takes to go on; returns the latter's path."""
    now = checkpoint_of(model, serving, config)
    now.save(Path(config.run_dir) / "checkpoints" / f"{model.num_timesteps:09d}.zip")
    if model._last_obs is not None and isinstance(model, AnchoredPPO):
        arrays, values = capture(model, serving)
        best = float("inf") if validations is None else validations.best
        now = dataclasses.replace(now, resume=(arrays, values | {"best_score": best if np.isfinite(best) else None}))
    path = Path(config.run_dir) / LATEST
    now.save(path)
    return path


def checkpoint_of(model: Model, serving: Sequence[ServingSB3VecEnv], config: TrainConfig) -> Checkpoint:
    """The policy as it is."""
    return Checkpoint(
        layout=layout_signature(serving[0].serving.simulation.dims),
        envs=[_values(env) for env in config.envs],
        agent=dataclasses.asdict(config.agent),
        seed=config.seed,
        num_steps=model.num_timesteps,
        num_updates=model._n_updates,
        versions=_versions(),
        policy={name: x.detach().clone().contiguous() for name, x in network_of(model).state_dict().items()},
    )


def restore(
    model: AnchoredPPO,
    serving: Sequence[ServingSB3VecEnv],
    config: TrainConfig,
    path: Path,
    validations: Validations | None,
) -> None:
    """Go on from a checkpoint as if the run had never been stopped; one of before PPO's first step has nothing to go on from."""
    checkpoint = read_checkpoint(path)
    if checkpoint.resume is None and checkpoint.num_steps == 0:
        return
    require_run(path, checkpoint, serving, config)
    assert checkpoint.resume is not None
    model.policy.load_state_dict(checkpoint.policy)
    model.num_timesteps = checkpoint.num_steps
    model._n_updates = checkpoint.num_updates
    apply(model, serving, *checkpoint.resume)
    best = checkpoint.resume[1].get("best_score")  # none: no validation yet, or a file of before it was kept
    if validations is not None and best is not None:
        validations.best = best


def require_run(path: Path, checkpoint: Checkpoint, serving: Sequence[ServingSB3VecEnv], config: TrainConfig) -> None:
    """Raise unless the checkpoint is one to go on from with this configuration."""
    require_layout(path, checkpoint.layout, layout_signature(serving[0].serving.simulation.dims))
    require_network(path, checkpoint, config.agent)
    grouped = checkpoint.agent.get("common_traces", 1)  # files of before it was a setting have none
    if grouped != config.agent.common_traces:
        wanted = config.agent.common_traces
        raise ConfigError(f"checkpoint {path} has agent.common_traces={grouped}, not {wanted}; accepted: {grouped}")
    if checkpoint.resume is None or len(checkpoint.resume[1]["parts"]) != len(serving):
        raise ConfigError(f"checkpoint {path} is of no run with these scenarios; accepted: the latest.zip of one")
    for at, (saved, env) in enumerate(zip(checkpoint.envs, config.envs, strict=True)):
        if key := _first_difference(saved, as_json(_values(env))):
            raise ConfigError(f"checkpoint {path} is of a run with another {key} in scenario {at}; accepted: the same")
    if key := _first_difference(checkpoint.agent, as_json(dataclasses.asdict(config.agent)), "agent"):
        print(f"resume: {key} is another than the run began with", file=sys.stderr)
    counts = [len(part["generators"]) for part in checkpoint.resume[1]["parts"]]
    if counts != [part.num_envs for part in serving]:
        raise ConfigError(
            f"checkpoint {path} has num_envs={sum(counts)}, not {config.num_envs}; accepted: {sum(counts)}"
        )


def _first_difference(saved: Any, now: Any, key: str = "") -> str:
    """The first key of `saved` (a.b.c) whose value is another in `now`; empty: none. Keys that came later do not count."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        found = (
            _first_difference(value, now.get(name), f"{key}.{name}" if key else name) for name, value in saved.items()
        )
        return next((one for one in found if one), "")
    return "" if saved == now else key


def require_network(path: Path, checkpoint: Checkpoint, agent: AgentConfig) -> None:
    """Raise unless the checkpoint holds the network that is configured."""
    for key in ("algorithm", "policy", "advisers", "net_arch"):
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
