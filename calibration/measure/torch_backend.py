"""torch: a random-weight model from the catalogue's shapes, on CUDA where there is a GPU, else on the CPU.

Weights wait in host memory, page-locked or not; a load copies the layers of a residency to the device, the other layers
stay and are computed by the CPU. On a machine without a GPU the device is the CPU and a load is a copy of memory.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.profile import ModelProfile, load_model
from mmsched_env.errors import ConfigError, MmschedError

from .. import schema
from .backend import Figure
from .decoder import Decoder, Weights, random_weights
from .points import ALL, SERVING, Point, Preset

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
        self._host: tuple[str, str, Weights] | None = None

    operations = SERVING

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
            for mode in (PAGEABLE, PINNED) if self.on_gpu else (PAGEABLE,):
                yield Point(model, "load", tier="ram", mode=mode, n_gpu_layers=layers)

    def load(self, point: Point) -> tuple[Figure, TorchInstance]:
        profile = load_model(point.model)
        host = self._weights(profile, point.mode)
        on_gpu = len(host.layers) + 1 if point.n_gpu_layers == ALL else point.n_gpu_layers
        with _one_line_out_of_memory(point):
            self._sync()
            begun = time.perf_counter()
            stay = len(host.layers) - min(on_gpu, len(host.layers))
            layers = [*host.layers[:stay], *(layer.copy(self.device) for layer in host.layers[stay:])]
            head = host.head.to(self.device, non_blocking=True, copy=True) if on_gpu > len(host.layers) else host.head
            self._sync()
            seconds = time.perf_counter() - begun
        moved = sum(layer.num_bytes for layer in layers[stay:]) + (head.nbytes if on_gpu > len(host.layers) else 0)
        decoder = Decoder(profile.architecture, layers, head, host.embedding)
        return Figure(seconds, max(1, moved)), TorchInstance(self, decoder, moved, whole=on_gpu > len(host.layers))

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
        self._host = None
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
        """The model in host memory; one model at a time, made once for each kind of memory."""
        if self._host is None or self._host[:2] != (profile.name, mode):
            self._host = None
            gc.collect()
            made = random_weights(profile.architecture, self.dtype)
            if mode == PINNED:
                made = Weights([layer.pinned() for layer in made.layers], made.embedding, made.head.pin_memory())
            self._host = profile.name, mode, made
        return self._host[2]


class TorchInstance:
    """A model in place."""

    def __init__(self, backend: Torch, decoder: Decoder, moved_bytes: int, whole: bool) -> None:
        self._backend, self._decoder, self._bytes = backend, decoder, moved_bytes
        self._whole = whole
        """every layer is on the device: a step can be recorded as a CUDA graph"""

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

    def _decode(self, point: Point) -> Figure:
        """Every step at the same depth: what is measured is a step there, not the way on."""
        self._decoder.allocate(point.batch, point.depth + 1)
        tokens = torch.zeros(point.batch, 1, dtype=torch.long)
        step = (
            self._graph(point)
            if self._backend.on_gpu and self._whole
            else lambda: self._decoder.run(tokens, point.depth)
        )
        for _ in range(WARM_UP):
            step()
        return Figure(self._backend.timed(step, point.tokens))

    def _graph(self, point: Point) -> Callable[[], object]:
        """A recorded step: engines launch it as one, so that the launches of its kernels do not count."""
        like = self._decoder.layers[-1].qkv
        hidden = torch.zeros(point.batch, 1, self._decoder.arch.hidden, dtype=like.dtype, device=like.device)
        with torch.inference_mode():
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._decoder.on_device(hidden, point.depth)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._decoder.on_device(hidden, point.depth)
        return graph.replay

    def _save(self, point: Point) -> Figure:
        device, host = self._caches(point.tokens)
        return Figure(self._backend.timed(lambda: _copy_all(host, device)), sum(part.nbytes for part in device))

    def _restore(self, point: Point) -> Figure:
        device, host = self._caches(point.tokens)
        return Figure(self._backend.timed(lambda: _copy_all(device, host)), sum(part.nbytes for part in device))

    def _footprint(self, point: Point) -> Figure:
        held = torch.cuda.memory_allocated() if self._backend.on_gpu else self._bytes
        return Figure(0.0, max(1, held))

    def _caches(self, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """Caches of one sequence where they are and, page-locked if that helps, in host memory: those on the device."""
        self._decoder.allocate(1, tokens)
        every = [part for pair in self._decoder.caches for part in pair]
        device = [part for part in every if part.device.type == self._backend.device.type]
        host = [torch.empty_like(part, device="cpu", pin_memory=self._backend.on_gpu) for part in device or every]
        return device or every, host


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
