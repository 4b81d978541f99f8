"""The kernel's own source compiled for a GPU: how fast it is there, and how near its results are to the CPU's.

Needs an NVIDIA GPU and the package `numba-cuda`; what came out is in docs/gpu_path.md. Every thread takes one environment
through its decisions, random legal ones. Episodes that end begin again on the device, from records of their beginning.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError
from mmsched_env.sim import jit

from .environment import RandomActions, draw_action

BATCHES = (256, 4096, 16384, 32768, 65536)
ROUNDS = 100
"""decisions of every environment between two looks at the clock"""
WARM_UP = 300
"""decisions before the first look: episodes get into their middle"""
STARTS = 64
"""episodes whose beginnings are on the device"""
THREADS = (32, 64, 128)
"""of a block; the first is taken for all batches, the others for one"""
KERNEL = "mmsched_env.sim.kernel"


def device_kernel() -> ModuleType:
    """`sim.kernel.step` loaded once more: its functions compiled for the device, its entry points not at all."""
    host = {name: module for name, module in sys.modules.items() if name.startswith(KERNEL)}
    before = jit.compiled, jit.kernel_entry_point
    for name in host:
        del sys.modules[name]
    jit.compiled = lambda function, **_: cuda.jit(device=True)(function)
    jit.kernel_entry_point = lambda function: function
    try:
        return importlib.import_module(f"{KERNEL}.step")
    finally:
        jit.compiled, jit.kernel_entry_point = before
        sys.modules.update(host)


def make_play() -> Any:
    """The CUDA kernel: `rounds` decisions of every environment, each drawn, taken and observed."""
    step = device_kernel()
    decide, encode, copy = step.decide, step.encode, step.copy
    draw = cuda.jit(device=True)(draw_action.py_func)

    @cuda.jit
    def play(rounds, generators, starts, records, observed):  # type: ignore[no-untyped-def]
        words, state, params, requests, logs, outcomes = records
        flat, rows, mask = observed
        e = cuda.grid(1)
        if e >= state.shape[0]:
            return
        for _ in range(rounds):
            decide(state[e], params[0], requests[e], logs[0], draw(mask, generators, e), outcomes[e])
            if outcomes[e].terminated == 1 or outcomes[e].truncated == 1:
                copy(words[0][e], starts[0][e % STARTS])
                copy(words[1][e], starts[1][e % STARTS])
            encode(state[e], params[0], requests[e], flat[e], rows[e])
            copy(mask[e], state[e].mask)

    return play


@dataclass
class DeviceBatch:
    """N environments in the memory of the device, each at the beginning of one of a simulation's episodes."""

    simulation: Simulation
    num_envs: int

    def __post_init__(self) -> None:
        envs, source = np.arange(self.num_envs) % STARTS, self.simulation
        source.state["encoded"] = 0
        buffer = source.current
        self.generators = cuda.to_device(RandomActions(self.num_envs).generators)
        self.starts = tuple(cuda.to_device(_words(array)) for array in (source.state, source.requests))
        self.words = tuple(cuda.to_device(_words(array)[envs]) for array in (source.state, source.requests))
        self.state, self.requests = (
            _viewed(words, array.dtype, (self.num_envs, *array.shape[1:]))
            for words, array in zip(self.words, (source.state, source.requests), strict=True)
        )
        self.params = cuda.to_device(jit.records(source.params))
        self.logs = cuda.to_device(jit.records(source.logs[:1]))
        self.outcomes = cuda.to_device(np.zeros(self.num_envs, source.outcomes.dtype))
        self.flat = cuda.to_device(buffer.flat[envs])
        self.mask = cuda.to_device(buffer.mask[envs])
        self.rows = _viewed(self.flat, buffer.records.dtype, (self.num_envs,))

    def play(self, kernel: Any, rounds: int, threads: int = THREADS[0]) -> None:
        """`rounds` random decisions of every environment, `threads` to a block; returns when they are taken."""
        kernel[-(-self.num_envs // threads), threads](
            rounds,
            self.generators,
            self.starts,
            (self.words, self.state, self.params, self.requests, self.logs, self.outcomes),
            (self.flat, self.rows, self.mask),
        )
        cuda.synchronize()


def _words(array: Any) -> NDArray[np.int64]:
    """Records as rows of eight-byte words (N, W)."""
    return np.ascontiguousarray(array).view(np.ndarray).view(np.int64).reshape(len(array), -1)


def _viewed(memory: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Rows of `memory` (N, W) as device records (N, ...)."""
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    inner = [dtype.itemsize * int(np.prod(shape[axis + 1 :])) for axis in range(1, len(shape))]
    strides = (memory.strides[0], *inner)
    return DeviceNDArray(shape, strides, dtype, gpu_data=memory.gpu_data)


def beginnings(config: EnvConfig) -> Simulation:
    """`STARTS` episodes at their first decisions."""
    simulation = Simulation(config, STARTS)
    for env in range(STARTS):
        simulation.reset(env, config.workload.sample(env, config.models.names))
    return simulation


def on_host(config: EnvConfig, rounds: int) -> Simulation:
    """The same decisions on the CPU."""
    simulation, random = beginnings(config), RandomActions(STARTS)
    traces = [config.workload.sample(env, config.models.names) for env in range(STARTS)]
    for _ in range(rounds):
        outcomes = simulation.step(random.draw(simulation.current.mask))
        for env in np.flatnonzero(outcomes["terminated"] | outcomes["truncated"]):
            simulation.reset(int(env), traces[env])
    return simulation


def agreement(config: EnvConfig, kernel: Any, rounds: int) -> dict[str, float]:
    """Device against host after `rounds` decisions of `STARTS` environments."""
    host = on_host(config, rounds)
    device = DeviceBatch(beginnings(config), STARTS)
    device.play(kernel, rounds)
    state = device.words[0].copy_to_host().view(host.state.dtype).reshape(-1)
    observed, expected = device.flat.copy_to_host(), host.current.flat
    near = np.isclose(observed, expected, rtol=1e-5, atol=1e-6)
    return {
        "environments with the same clock, to the last bit": float(np.mean(state["now"] == host.state["now"])),
        "environments with the same clock within 1e-9": float(
            np.mean(np.abs(state["now"] - host.state["now"]) <= 1e-9 * host.state["now"])
        ),
        "environments with the same mask": float(np.mean(np.all(device.mask.copy_to_host() == host.current.mask, 1))),
        "values of the observations within 1e-5": float(np.mean(near)),
        "values of the observations the same to the last bit": float(np.mean(observed == expected)),
    }


def measure(config: EnvConfig, rounds: int) -> dict[str, float]:
    """Steps per second by batch, seconds of compiling, agreement with the CPU.

    Raises
    ------
    ConfigError
        There is no GPU that Numba can use.
    """
    if not cuda.is_available():
        raise ConfigError(
            "part 'gpu': Numba finds no NVIDIA GPU here; accepted: a machine with one, its driver, and `pip install numba-cuda[cu13]`"
        )
    kernel, source = make_play(), beginnings(config)
    begun = time.perf_counter()
    DeviceBatch(source, STARTS).play(kernel, 1)
    out = {"compiling and first call, s": time.perf_counter() - begun}
    for after in (1, 100, 1000, 5000):
        out |= {f"after {after} decisions: {k}": v for k, v in agreement(config, kernel, after).items()}
    runs = [*((batch, THREADS[0]) for batch in BATCHES), *((16384, threads) for threads in THREADS[1:])]
    for batch, threads in runs:
        out[f"batch {batch}, blocks of {threads}: steps/s"] = steps_per_s(
            kernel, DeviceBatch(source, batch), threads, rounds
        )
    return out


def steps_per_s(kernel: Any, device: DeviceBatch, threads: int, rounds: int) -> float:
    """Median over rounds."""
    device.play(kernel, WARM_UP, threads)
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        device.play(kernel, ROUNDS, threads)
        taken.append(time.perf_counter() - begun)
    return device.num_envs * ROUNDS / statistics.median(taken)
