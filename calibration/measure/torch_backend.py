"""torch: a random-weight model from the catalogue's shapes, on CUDA where there is a GPU, else on the CPU.

Weights wait in host memory, page-locked or not; a load copies the layers of a residency to the device, the other layers
stay and are computed by the CPU. On a machine without a GPU the device is the CPU and a load is a copy of memory.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.profile import ModelProfile, load_model
from mmsched_env.errors import ConfigError, MmschedError

from .. import schema
from . import beside, pagelock
from .backend import Figure
from .decoder import Decoder, Weights, random_weights
from .points import ALL, BESIDE_LOAD, SERVING, Point, Preset

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PINNED, PAGEABLE = "pinned", "pageable"
WARM_UP = 3
"""steps before the timed ones"""


class Torch:
    """torch on one device.

    Parameters
    ----------
    cores
        Of the CPU side: threads, and where they run.
    dtype
        float16 or bfloat16.
    context, ubatch
        Longest cache, and prompt tokens computed at once.
    memory_gb
        Of the device that may be used; 0: all of it.

    Raises
    ------
    ConfigError
        Another dtype.
    """

    def __init__(self, cores: Sequence[int], dtype: str, context: int, ubatch: int, memory_gb: float = 0.0) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype}; accepted: {', '.join(DTYPES)}")
        self._before = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, set(cores))
        torch.set_num_threads(len(cores))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype, self.context, self.ubatch = DTYPES[dtype], context, ubatch
        self._memory_bytes = int(memory_gb * 1e9)
        self._hosts: dict[str, Weights] = {}
        self._locked: set[str] = set()
        """models whose weights are page-locked now"""
        self.operations = SERVING | ({BESIDE_LOAD[0]} if self.on_gpu else frozenset())

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def engine(self) -> str:
        return f"torch {'CUDA' if self.on_gpu else 'CPU'}"

    @property
    def version(self) -> str:
        return str(torch.__version__)

    @property
    def gpu(self) -> str:
        if not self.on_gpu:
            return schema.CPU_ONLY
        return torch.cuda.get_device_name(self.device).removeprefix("NVIDIA ").removeprefix("AMD ")

    @property
    def gpu_mem_bytes(self) -> int | None:
        if self._memory_bytes:
            return self._memory_bytes
        return int(torch.cuda.get_device_properties(self.device).total_memory) if self.on_gpu else None

    @property
    def pids(self) -> Sequence[int]:
        return ()

    def prepare(self, model: str) -> int:
        profile = load_model(model)
        if profile.quant != "f16":
            raise ConfigError(f"model {model}: backend=torch computes in 16 bits; accepted: ...-f16")
        if profile.vision:
            raise ConfigError(f"model {model} sees images; accepted: a text model")
        return profile.file_bytes

    def loads(self, model: str, preset: Preset) -> Iterable[Point]:
        units = roofline.units(load_model(model))
        shares = preset.shares if self.on_gpu else (1.0,)
        for share in shares:
            layers = ALL if share == 1 else round(share * units)
            for mode in self._modes(whole=share == 1):
                yield Point(model, "load", tier="ram", mode=mode, n_gpu_layers=layers)

    def in_host_memory(self, model: str) -> Weights:
        """Of a model that was loaded."""
        return self._hosts[model]

    def _modes(self, whole: bool) -> Sequence[str]:
        """A part of the layers comes from page-locked memory alone: the whole model shows what that is worth."""
        if not self.on_gpu:
            return (PAGEABLE,)
        return (PAGEABLE, PINNED) if whole else (PINNED,)

    def load(self, point: Point) -> tuple[Figure, TorchInstance]:
        profile = load_model(point.model)
        host = self._weights(profile, point.mode)
        on_gpu = len(host.layers) + 1 if point.n_gpu_layers == ALL else point.n_gpu_layers
        with _one_line_out_of_memory(point):
            self._sync()
            before = torch.cuda.memory_allocated() if self.on_gpu else 0
            begun = time.perf_counter()
            stay = len(host.layers) - min(on_gpu, len(host.layers))
            layers = [*host.layers[:stay], *(layer.copy(self.device) for layer in host.layers[stay:])]
            head = host.head.to(self.device, non_blocking=True, copy=True) if on_gpu > len(host.layers) else host.head
            self._sync()
            seconds = time.perf_counter() - begun
        moved = sum(layer.num_bytes for layer in layers[stay:]) + (head.nbytes if on_gpu > len(host.layers) else 0)
        decoder = Decoder(profile.architecture, layers, head, host.embedding, stay if self.on_gpu else 0)
        return Figure(seconds, max(1, moved)), TorchInstance(self, decoder, moved, before)

    def copies(self, preset: Preset) -> Iterable[Point]:
        for size in preset.sizes if self.on_gpu else ():
            for operation in ("copy_h2d", "copy_d2h"):
                for mode in (PINNED, PAGEABLE):
                    yield Point("", operation, tokens=size, mode=mode)

    def copy(self, point: Point) -> Figure:
        there = torch.empty(point.tokens, dtype=torch.uint8, device=self.device)
        here = torch.empty(point.tokens, dtype=torch.uint8, pin_memory=point.mode == PINNED)
        here.fill_(1)
        target, source = (there, here) if point.operation == "copy_h2d" else (here, there)
        return Figure(self.timed(lambda: target.copy_(source, non_blocking=True), 3), point.tokens)

    def close(self) -> None:
        for model in list(self._hosts):
            self._forget(model)
        cores, threads = self._before
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)

    def timed(self, action: Callable[[], object], count: int = 1) -> float:
        """Seconds of one of `count` repeats, after one that does not count."""
        action()
        self._sync()
        begun = time.perf_counter()
        for _ in range(count):
            action()
        self._sync()
        return (time.perf_counter() - begun) / count

    def _sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _weights(self, profile: ModelProfile, mode: str) -> Weights:
        """The model in host memory, made once while it and the others have room there."""
        name = profile.name
        if name not in self._hosts:
            if 2 * profile.file_bytes > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
                for other in list(self._hosts):
                    self._forget(other)
            self._hosts[name] = random_weights(profile.architecture, self.dtype)
        if mode == PINNED and name not in self._locked:
            pagelock.lock(_tensors(self._hosts[name]))
            self._locked.add(name)
        elif mode == PAGEABLE:
            self._unlock(name)
        return self._hosts[name]

    def _unlock(self, name: str) -> None:
        if name in self._locked:
            self._locked.remove(name)
            pagelock.unlock(_tensors(self._hosts[name]))

    def _forget(self, name: str) -> None:
        self._unlock(name)
        del self._hosts[name]
        gc.collect()


class TorchInstance:
    """A model in place."""

    def __init__(self, backend: Torch, decoder: Decoder, moved_bytes: int, before_bytes: int) -> None:
        self._backend, self._decoder, self._bytes = backend, decoder, moved_bytes
        self._before_bytes = before_bytes

    def measure(self, point: Point) -> Figure:
        with _one_line_out_of_memory(point):
            return getattr(self, f"_{point.operation}")(point)  # type: ignore[no-any-return]

    def unload(self) -> Figure:
        begun = time.perf_counter()
        del self._decoder
        if self._backend.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        return Figure(time.perf_counter() - begun)

    def _prefill(self, point: Point) -> Figure:
        self._decoder.allocate(1, point.tokens)
        chunks = list(_chunks(point.tokens, self._backend.ubatch))
        prompt = torch.zeros(1, point.tokens, dtype=torch.long)

        def run() -> None:
            for depth, count in chunks:
                self._decoder.run(prompt[:, depth : depth + count], depth)

        return Figure(self._backend.timed(run))

    def _decode(self, point: Point, meanwhile: AbstractContextManager[None] | None = None) -> Figure:
        """Every step at the same depth: what is measured is a step there, not the way on."""
        self._decoder.allocate(point.batch, point.depth + 1)
        tokens = torch.zeros(point.batch, 1, dtype=torch.long)
        on_device = self._graph(point) if self._backend.on_gpu and self._bytes else None

        def step() -> None:
            self._decoder.run(tokens, point.depth, on_device)

        for _ in range(WARM_UP if on_device else 1):
            step()
        with meanwhile or nullcontext():
            return Figure(self._backend.timed(step, point.tokens))

    def _graph(self, point: Point) -> Callable[[Tensor, int], Tensor]:
        """The device's part of a step, recorded: engines launch it as one, so that the launches of its kernels do not count."""
        decoder = self._decoder
        like = decoder.layers[-1].qkv
        hidden = torch.zeros(point.batch, 1, decoder.arch.hidden, dtype=like.dtype, device=like.device)
        with torch.inference_mode():
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    decoder.on_device(hidden, point.depth)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = decoder.on_device(hidden, point.depth)

        def replay(given: Tensor, depth: int) -> Tensor:
            hidden.copy_(given, non_blocking=True)
            graph.replay()
            return result

        return replay

    def _decode_beside_load(self, point: Point) -> Figure:
        """Weights are copied to the device all the while, by a stream of their own."""
        layer = self._backend.in_host_memory(point.model).layers[0].gate_up
        there = torch.empty_like(layer, device=self._backend.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

        begun = threading.Event()

        def load(stop: threading.Event) -> None:
            while not stop.is_set():
                begun.set()
                with torch.cuda.stream(stream):
                    there.copy_(layer, non_blocking=True)
                stream.synchronize()

        return self._decode(point, beside.going_on(load, begun))

    def _save(self, point: Point) -> Figure:
        device, host = self._caches(point.tokens)
        return Figure(self._backend.timed(lambda: _copy_all(host, device)), sum(part.nbytes for part in device))

    def _restore(self, point: Point) -> Figure:
        device, host = self._caches(point.tokens)
        return Figure(self._backend.timed(lambda: _copy_all(device, host)), sum(part.nbytes for part in device))

    def _footprint(self, point: Point) -> Figure:
        """Weights and the engine's own buffers: no cache, and nothing that was there before the load."""
        if not self._backend.on_gpu:
            return Figure(0.0, max(1, self._bytes))
        self._decoder.caches = []
        gc.collect()
        return Figure(0.0, max(1, torch.cuda.memory_allocated() - self._before_bytes))

    def _caches(self, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """Caches of one sequence where they are and, page-locked if that helps, in host memory: those on the device."""
        self._decoder.allocate(1, tokens)
        every = [part for pair in self._decoder.caches for part in pair]
        device = [part for part in every if part.device.type == self._backend.device.type]
        host = [torch.empty_like(part, device="cpu", pin_memory=self._backend.on_gpu) for part in device or every]
        return device or every, host


def _tensors(weights: Weights) -> list[Tensor]:
    return [tensor for layer in weights.layers for tensor in vars(layer).values()] + [weights.head]


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source, non_blocking=True)


def _chunks(tokens: int, size: int) -> Iterator[tuple[int, int]]:
    for depth in range(0, tokens, size):
        yield depth, min(size, tokens - depth)


@contextmanager
def _one_line_out_of_memory(point: Point) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
        raise MmschedError(
            f"the GPU has no memory for '{point}'; accepted: a smaller model, or another preset"
        ) from None
