"""The single environment: a batch of one over the kernel."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from . import metrics, observation
from .config import EnvConfig, env_config
from .core import Simulation, Snapshot
from .errors import ConfigError, MmschedError
from .rendering import MODES
from .reward import TERMS
from .workload.splits import is_training_seed
from .workload.trace import RequestTrace

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EnvState:
    """What `ServingEnv.get_state` returns."""

    simulation: Snapshot
    generator: Mapping[str, Any]


class ServingEnv(gym.Env[Observation, np.int64]):
    """
    ## Description
    Several large language models share a few unequal GPUs and do not all fit. Which request runs where, with how many
    of its model's layers on the GPU, what is unloaded to make room, and when? Requests arrive over continuous
    simulated time; loading, prefill, decoding, KV transfers and unloading take the seconds that calibrated profiles of
    real hardware give them. An episode is one request trace.

    ## Action Space
    `Discrete(1 + Q G K + 2 G S + G S K)` (405 by default), with an exact mask in the observation. Q queue slots,
    G GPUs, S instance slots per GPU, K offload levels; an instance is one model loaded on one GPU.

    | Index | Action | Effect |
    |---|---|---|
    | 0 | WAIT | run on to the next decision point |
    | 1 + (q G + g) K + k | DISPATCH request q to GPU g at level k | join its model's instance there, or load it at level k |
    | then 2 i | PREEMPT instance i = g S + s | save its requests' KV cache and unload it; idle: unload |
    | then 2 i + 1 | PREEMPT the longest request of instance i | save its KV cache, it queues again |
    | then i K + k | OFFLOAD instance i to level k | change how many of its layers are on the GPU |

    `mmsched_env.action.ActionLayout` does the arithmetic. Changes of a busy instance take effect at the end of its
    running iteration.

    ## Observation Space
    `Dict` of float32 blocks in plain units (seconds, tokens, GB): `queue` (Q, F), `instances` (G S, F), `gpus` (G, F),
    `models` (M, F), `pairs` (Q, G, F), `globals` (1, F), and `action_mask` (A,) int8 with 1 for legal. The fields are
    in `mmsched_env.observation.TABLE`; `docs/observation.md` lists them. True output lengths and future arrivals are
    not observed.

    ## Rewards
    Minus the integral of the weighted number of requests in the system since the last decision, so the undiscounted
    return is minus the weighted flow time. `RewardConfig` can add terms; `info["reward_terms"]` has each.

    ## Starting State
    Empty GPUs and host RAM, at the first arrival of the trace.

    ## Episode End
    Termination: every request of the trace is finished or dropped. Truncation: `sim.max_time_s` or `sim.max_steps` is reached.

    ## Arguments
    `gymnasium.make("mmsched/Serving-v0", config=..., render_mode=...)`

    * `config`: an `mmsched_env.config.EnvConfig`, or nested plain values of one (`{"cluster": {"gpus": [...]}}`).
    * `render_mode`: `None`, `"ansi"` (text view of GPUs, queue and clock) or `"rgb_array"` (Gantt chart so far).

    `reset(seed=..., options={"trace": trace})` replays a given `RequestTrace`; without it the workload draws one.
    `action_masks()` serves `sb3_contrib.MaskablePPO`. An illegal action counts as WAIT and sets
    `info["illegal_action"]`; with `sim.strict_actions` it raises.

    ## Version History
    * v0: first version.
    """

    metadata = {"render_modes": list(MODES), "render_fps": 4}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, config: EnvConfig | Mapping[str, Any] | None = None, render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in MODES:
            raise ConfigError(f"render_mode is {render_mode!r}; accepted: None, {', '.join(MODES)}")
        self.config = env_config(config)
        self.render_mode = render_mode
        self.simulation = Simulation(self.config, 1, logging=True)
        self.layout = self.simulation.layout
        self.observation_space = cast("gym.spaces.Space[Observation]", observation.space(self.simulation.dims))
        self.action_space = gym.spaces.Discrete(self.layout.size)
        self._actions = np.zeros(1, np.int64)
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, on ``options["trace"]`` if given (a `RequestTrace` of the configured models).

        Raises
        ------
        TraceError
            A request of the trace fits on no GPU.
        ConfigError
            The trace is of other models, or an unknown option.
        """
        super().reset(seed=seed)
        self.simulation.reset(0, *draw_episode(self.config, self.np_random, options))
        self._started = True
        return self._observation(), self._info(illegal=False)

    def step(self, action: SupportsIndex) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one action and run to the next decision point with a choice.

        Raises
        ------
        ConfigError
            The action is no whole number.
        ValueError
            With `sim.strict_actions`, an illegal action.
        """
        if not self._started:
            raise gym.error.ResetNeeded("call reset() before step()")
        size = self.simulation.layout.size
        try:
            index = operator.index(action)
        except TypeError:
            raise ConfigError(f"action is {action!r}; accepted: a whole number in [0, {size})") from None
        if self.config.sim.strict_actions:
            require_legal(self.simulation, 0, index)
        self._actions[0] = max(-1, min(index, size))  # beyond: as illegal as these
        outcome = self.simulation.step(self._actions)[0]
        info = self._info(illegal=bool(outcome.illegal))
        if outcome.terminated or outcome.truncated:
            info["metrics"] = metrics.summary(self.simulation.episode_requests(0), self.simulation.state[0])
        return self._observation(), float(outcome.reward), bool(outcome.terminated), bool(outcome.truncated), info

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions, bool (A,): the form `sb3_contrib` asks for."""
        return np.asarray(self.simulation.current.mask[0], np.bool_)

    def get_state(self) -> EnvState:
        """Everything the rest of the episode depends on: the simulation and the random generator. For `set_state`."""
        return EnvState(self.simulation.snapshot(0), copy.deepcopy(self.np_random.bit_generator.state))

    def set_state(self, state: EnvState) -> Observation:
        """Go back (or over) to a state of an environment of the same configuration; returns its observation."""
        self.simulation.restore(state.simulation)
        self.np_random.bit_generator.state = copy.deepcopy(state.generator)
        self._started = True
        return self._observation()

    def clone(self) -> ServingEnv:
        """A second environment in the same state, going on independently and, with the same actions, identically."""
        twin = type(self)(self.config, self.render_mode)
        twin.set_state(self.get_state())
        return twin

    def render(self) -> Any:
        """Text (`ansi`) or an image (`rgb_array`, uint8 (height, width, 3)) of the episode so far."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='ansi' or 'rgb_array', given to gymnasium.make")
            return None
        from . import rendering

        return rendering.render(self.simulation, 0, self.render_mode)

    def _observation(self) -> Observation:
        return {key: values[0].copy() for key, values in self.simulation.current.observation().items()}

    def _info(self, illegal: bool) -> dict[str, Any]:
        state = self.simulation.state[0]
        return {
            "time_s": float(state["now"]),
            "illegal_action": illegal,
            "reward_terms": dict(zip(TERMS, state["terms"].tolist(), strict=True)),
        }


def draw_episode(
    config: EnvConfig, rng: np.random.Generator, options: Mapping[str, Any] | None = None
) -> tuple[RequestTrace, int]:
    """The next episode: the trace given in the options, or one the workload draws; and the episode's seed, from `rng`."""
    options = options or {}
    unknown = sorted(set(options) - {"trace"})
    if unknown:
        raise ConfigError(f"unknown reset option '{unknown[0]}'; accepted: trace")
    seed = int(rng.integers(2**63))
    while not is_training_seed(seed):  # once in 10^13 draws; the other seeds are for validation and test
        seed = int(rng.integers(2**63))
    trace = options.get("trace")
    if trace is None:
        trace = config.workload.sample(seed, config.models.names)
    if not isinstance(trace, RequestTrace):
        raise ConfigError(
            f"options['trace'] is a {type(trace).__name__}; accepted: a mmsched_env.workload.RequestTrace"
        )
    return trace, seed


def require_legal(simulation: Simulation, env: int, index: int) -> None:
    """Raise if the action is illegal now."""
    mask = simulation.current.mask[env]
    if not 0 <= index < len(mask) or not mask[index]:
        what = str(simulation.layout.decode(index)) if 0 <= index < len(mask) else f"outside 0..{len(mask) - 1}"
        raise MmschedError(
            f"action {index} of environment {env} is illegal now ({what}); accepted: where action_mask is 1"
        )
