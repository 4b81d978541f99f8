"""A batch of simulations over the compiled kernel: what the single and the vector environment share."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .action import ActionLayout
from .config import EnvConfig
from .costmodel.tables import CostTables, build_tables
from .errors import ConfigError
from .observation import ObservationBuffer
from .sim.events import EVENT
from .sim.jit import as_bytes, by_address, copy_records, records
from .sim.kernel.checks import BROKEN, check_batch
from .sim.kernel.step import OUTCOME, present_batch, step_batch
from .sim.memory_noise import footprint_noise
from .sim.params import make_params
from .sim.requests import check_servable, make_requests
from .sim.state import REQUEST, STATE, Dims, zeros
from .workload.trace import RequestTrace


@dataclass(frozen=True)
class Snapshot:
    """One environment at one instant: copies, so that what happens later does not change them."""

    state: NDArray[np.void]  # (1,) STATE
    requests: NDArray[np.void]  # (R,) REQUEST
    log: NDArray[np.void]  # event log so far
    trace: RequestTrace
    params: NDArray[np.void]  # (1,) PARAMS: the episode's costs, which may have been drawn for it


class Simulation:
    """N environments: their records, traces, event logs and observations.

    Parameters
    ----------
    config
        One configuration for all environments.
    num_envs
        N.
    logging
        Keep every environment's event log (needed for rendering and the log-based metrics).
    threads
        Step so many parts of the batch at the same time; results do not depend on it. It pays from about 64 environments
        a thread on, and only where cores are idle.

    Raises
    ------
    ConfigError
        More threads than environments.
    """

    def __init__(self, config: EnvConfig, num_envs: int, logging: bool = False, threads: int = 1) -> None:
        if not 1 <= threads <= num_envs:
            raise ConfigError(f"threads is {threads!r}; accepted: 1 to the number of environments, {num_envs}")
        self.config = config
        self.num_envs = num_envs
        self.logging = logging
        self.threads = threads
        self.dims = Dims.of(config.limits)
        self.layout = ActionLayout(self.dims)
        self.tables = self._tables()
        self.params = make_params(config, self.tables, self.dims)  # (1,), or (num_envs,) where each episode has its own
        if self._draws_costs:
            self.params = np.repeat(self.params, num_envs)
        self.state = zeros(STATE, self.dims, num_envs)
        self.traces: list[RequestTrace | None] = [None] * num_envs
        self.requests: Any = None  # [N, R], R = the longest trace so far
        self.logs = np.zeros((num_envs, 1), EVENT).view(np.recarray)
        self.outcomes = np.zeros(num_envs, OUTCOME).view(np.recarray)
        self.current = ObservationBuffer.allocate(num_envs, self.dims)
        """the observations now: every step brings them up to date in place"""

    @property
    def _draws_costs(self) -> bool:
        return self.config.cluster.uncertainty == "sample"

    def _tables(self, seed: int | None = None) -> CostTables:
        """The profiles' costs, or a draw of what they may be."""
        limits = self.config.limits
        return build_tables(self.config.cluster, self.config.models, limits.levels, limits.batch, seed)

    def reset(self, env: int, trace: RequestTrace, seed: int = 0) -> None:
        """Start a new episode of environment `env` on `trace` and write its first observation.

        `seed` draws what is random beside the trace (`sim.memory_noise`, `cluster.uncertainty`).

        Raises
        ------
        TraceError
            A request that fits on no GPU.
        ConfigError
            A trace of other models than the configuration's.
        """
        if trace.model_names != self.config.models.names:
            raise ConfigError(
                f"the trace is of models {', '.join(trace.model_names)}; accepted: {', '.join(self.config.models.names)}"
            )
        check_servable(trace, self.tables, self.config.cluster.kv_swap_fraction)
        rows = make_requests(trace, self.tables, self.dims, self.config.sim.ubatch_tokens)
        self._make_room(len(trace))
        as_bytes(self.requests)[env, : len(trace)] = as_bytes(rows)
        self.traces[env] = trace
        as_bytes(self.state)[env] = np.void(self.state.itemsize)  # zeros
        self.state["num_requests"][env] = len(trace)
        self.state["logging"][env] = self.logging
        if self.config.sim.memory_noise > 0:
            gpus, models = len(self.config.cluster.gpus), len(self.config.models.names)
            self.state["footprint_hidden"][env, :gpus, :models] = footprint_noise(self.config, self.tables, trace, seed)
        if self._draws_costs:
            self.params[env] = make_params(self.config, self._tables(seed), self.dims)[0]
        one = slice(env, env + 1)
        for flag in ("terminated", "truncated", "stalled"):
            self.outcomes[flag][env] = 0
        state, params, requests, logs, *buffers = self._arguments(one)
        step_batch(state, params, requests, logs, np.zeros(1, np.int64), records(self.outcomes)[one], *buffers)
        self._check_invariants(one)

    def step(self, actions: NDArray[np.int64]) -> Any:
        """One action per environment. Returns the OUTCOME records (N,), overwritten by the next call.

        Raises
        ------
        RuntimeError
            An environment is stalled or breaks an invariant (looked for with `sim.debug_checks`): a fault of the
            simulator, please report it.
        """
        if self.logging:
            self._make_log_room()
        if not self._calls:
            self._calls += [(part, self._arguments(part)) for part in self._parts()]
        calls = [
            (*arrays[:4], actions[part], records(self.outcomes)[part], *arrays[4:]) for part, arrays in self._calls
        ]
        others = [self._pool.submit(step_batch, *call) for call in calls[1:]]
        step_batch(*calls[0])
        for other in others:
            other.result()
        self._check_invariants(slice(None))
        self.check_progress()
        return self.outcomes

    def _parts(self) -> list[slice]:
        """A part of the batch for each thread."""
        bounds = [self.num_envs * thread // self.threads for thread in range(self.threads + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]

    @cached_property
    def _calls(self) -> list[tuple[slice, list[Any]]]:
        """Arguments of a step, once made: making so many views takes longer than a step of one environment."""
        return []

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads - 1)

    def step_arguments(self, actions: NDArray[np.int64]) -> list[Any]:
        """What the kernel's `step_batch` takes: for callers that step in compiled code."""
        state, params, requests, logs, *buffers = self._arguments(slice(None))
        return [state, params, requests, logs, actions, records(self.outcomes), *buffers]

    @cached_property
    def step_address(self) -> Any:
        """The kernel's `step_batch` as an argument of compiled code."""
        return by_address(step_batch, self.step_arguments(np.zeros(self.num_envs, np.int64)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("step_address", "_calls", "_pool")}

    @property
    def needs_python(self) -> bool:
        """Is there something to be done between steps that compiled code does not do?"""
        return self.logging or self.config.sim.debug_checks

    def check_progress(self) -> None:
        """Raise RuntimeError if an environment is stalled."""
        if self.outcomes.stalled.any():
            env = int(np.argmax(self.outcomes.stalled))
            raise RuntimeError(
                f"environment {env} is stalled at {self.state['now'][env]} s: requests wait, nothing is legal"
            )

    def snapshot(self, env: int) -> Snapshot:
        """Environment `env` as it stands: what `restore` takes, here or in another simulation of the configuration.

        It holds the whole episode, true output lengths and future arrivals included.
        """
        trace = self.traces[env]
        if trace is None:
            raise ConfigError("snapshot() before reset(); accepted: an environment with an episode under way")
        one = slice(env, env + 1)
        requests, log = copy_records(self.episode_requests(env)), copy_records(self.event_log(env))
        params = copy_records(self._params(one)) if self._draws_costs else self.params
        return Snapshot(copy_records(self.state[one]), requests, log, trace, params)

    def restore(self, snapshot: Snapshot, envs: slice = slice(None)) -> None:
        """Put a snapshot into some environments (by default all: a batch of branches) and write their observations.

        Each goes on exactly as the original would, to the last bit.
        """
        length = len(snapshot.requests)
        self._make_room(length)
        as_bytes(self.state)[envs] = as_bytes(snapshot.state)
        self.state["logging"][envs] = self.logging
        as_bytes(self.requests)[envs, :length] = as_bytes(snapshot.requests)
        if self._draws_costs:
            as_bytes(self.params)[envs] = as_bytes(snapshot.params)
        for env in range(*envs.indices(self.num_envs)):
            self.traces[env] = snapshot.trace
        if self.logging:
            self._make_log_room()
            as_bytes(self.logs)[envs, : len(snapshot.log)] = as_bytes(snapshot.log)
        state, params, requests, _, *buffers = self._arguments(envs)
        present_batch(state, params, requests, *buffers)

    def _check_invariants(self, part: slice) -> None:
        if not self.config.sim.debug_checks:
            return
        state, params, requests, *_ = self._arguments(part)
        faults = np.zeros(len(state), np.int64)
        check_batch(state, params, requests, faults)
        if faults.any():
            at = int(np.argmax(faults != 0))
            raise RuntimeError(
                f"environment {range(self.num_envs)[part][at]}, step {state['num_steps'][at]}, {state['now'][at]} s: "
                f"broken invariant: {BROKEN[faults[at]]}"
            )

    def event_log(self, env: int) -> NDArray[np.void]:
        """The episode's event log so far, EVENT rows in the order they happened."""
        return np.asarray(self.logs[env, : self.state["log_length"][env]])

    def episode_requests(self, env: int) -> NDArray[np.void]:
        """The episode's REQUEST records (len(trace),)."""
        trace = self.traces[env]
        return np.asarray(self.requests[env, : 0 if trace is None else len(trace)])

    def _arguments(self, part: slice) -> list[Any]:
        """The kernel's arguments for some environments: state, params, requests, logs; observations as float32 values and by
        field; masks."""
        state, requests, logs = (records(array)[part] for array in (self.state, self.requests, self.logs))
        seen = self.current
        return [
            state,
            records(self._params(part)),
            requests,
            logs,
            seen.flat[part],
            seen.records[part],
            seen.mask[part],
        ]

    def _params(self, part: slice) -> Any:
        """PARAMS of some environments: one record for all of them where all cost the same."""
        return self.params[part] if self._draws_costs else self.params

    def _make_room(self, length: int) -> None:
        if self.requests is None or self.requests.shape[1] < length:
            larger = zeros(REQUEST, self.dims, self.num_envs, length)
            if self.requests is not None:
                as_bytes(larger)[:, : self.requests.shape[1]] = as_bytes(self.requests)
            self.requests = larger
            self._calls.clear()
        self._make_log_room()

    def _make_log_room(self) -> None:
        """Room for all that one step can log: each request's own events once, an action on every seat and transfer."""
        if not self.logging:
            return
        d = self.dims
        need = int(self.state["log_length"].max()) + 4 * self.requests.shape[1] + d.I * (2 * d.B + 12)
        if self.logs.shape[1] < need:
            larger = np.zeros((self.num_envs, 2 * need), EVENT).view(np.recarray)
            as_bytes(larger)[:, : self.logs.shape[1]] = as_bytes(self.logs)
            self.logs = larger
            self._calls.clear()
