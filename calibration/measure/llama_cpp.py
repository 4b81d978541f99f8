"""llama.cpp: the real llama-server, measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmsched_env.costmodel.profile import load_model
from mmsched_env.errors import ConfigError

from .. import gguf, schema
from . import beside, llama_http, pagecache
from .backend import Figure
from .launchers import MMAP, READ, Binary, Launcher, Settings, Worker
from .points import ALL, BESIDE_DEVICE, SERVING, SHARED, Point, Preset


class LlamaCpp:
    """llama.cpp on one device.

    Parameters
    ----------
    models
        Folder of the model files; those of the catalogue that are missing are written there with random weights. A
        model may also be the path of a GGUF file.
    cores
        The processor cores it is pinned to; one thread each.
    log
        File for what the server prints.
    server
        Path of a llama-server; empty: `xllamacpp`.
    seats, context, ubatch
        Requests at once, tokens of each, and prompt tokens computed at once.
    cold
        Measure loads from disk too.
    gpu, gpu_mem_bytes
        Device the layers go to, with a build that has one.
    nice
        Priority of the server's process (below 0 needs root): on a shared machine the measured core is then its own.
    modes
        Of loading: read and mmap; what is measured loaded was loaded in the last one.
    second
        Cores of another device, to measure how the two slow each other; none: not measured.
    rpc
        Cores of a device that takes layers as a GPU would, by llama.cpp's RPC; `server` must be built with it.
    """

    def __init__(
        self,
        models: Path,
        cores: Sequence[int],
        log: Path,
        server: str = "",
        seats: int = 4,
        context: int = 2048,
        ubatch: int = 512,
        cold: bool = True,
        gpu: str = schema.CPU_ONLY,
        gpu_mem_bytes: int | None = None,
        nice: int = 0,
        modes: Sequence[str] = (MMAP, READ),
        second: Sequence[int] = (),
        rpc: Sequence[int] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mmsched-", dir=_memory_folder())
        self._models = models
        self.settings = Settings(seats, context, ubatch, len(cores), f"{self._folder.name}/")
        self._cold, self._modes = cold, modes
        self.gpu, self.gpu_mem_bytes = gpu, gpu_mem_bytes
        self.launcher = self._launcher(server, cores, log, nice, rpc)
        self.second = self._launcher(server, second, log, nice) if second else None
        # an RPC device serves one model at a time: nothing can go on beside it
        self.operations = SERVING | {*(() if rpc else SHARED), *(BESIDE_DEVICE if second else ())}
        self._rng = np.random.default_rng(0)
        self.text = self.prompt(context)

    @property
    def engine(self) -> str:
        return "llama.cpp CPU" if self.gpu == schema.CPU_ONLY else "llama.cpp"

    @property
    def version(self) -> str:
        return self.launcher.version

    @property
    def pids(self) -> Sequence[int]:
        return (*self.launcher.pids, *(self.second.pids if self.second else ()))

    def _launcher(self, server: str, cores: Sequence[int], log: Path, nice: int, rpc: Sequence[int] = ()) -> Launcher:
        if server:
            return Binary(server, cores, log, nice, rpc)
        return Worker(cores, log, nice, self._folder.name)

    def path_of(self, model: str) -> Path:
        """The model's file."""
        return Path(model) if model.endswith(".gguf") else self._models / f"{model}.gguf"

    def prepare(self, model: str) -> int:
        path = self.path_of(model)
        if model.endswith(".gguf"):
            if not path.is_file():
                raise ConfigError(f"model {model} is no file; accepted: a GGUF file or a model of the catalogue")
        else:
            gguf.write_random(path, load_model(model))
        if self._cold:
            pagecache.evict(path)
        return path.stat().st_size

    def loads(self, model: str, preset: Preset) -> Iterable[Point]:
        on_gpu = [ALL] if self.gpu == schema.CPU_ONLY else _layers(model, preset.shares)
        for layers in on_gpu:
            for tier in ("disk", "page_cache") if self._cold else ("page_cache",):
                for mode in self._modes:
                    yield Point(model, "load", tier=tier, mode=mode, n_gpu_layers=layers)

    def load(self, point: Point) -> tuple[Figure, LlamaInstance]:
        path = self.path_of(point.model)
        if point.tier == "disk":
            pagecache.evict(path)
        else:
            pagecache.warm(path)
        before = resident_bytes(self.pids)
        seconds, url, name = self.launcher.load(path, point.mode, point.n_gpu_layers, self.settings)
        instance = LlamaInstance(self, path, url, name, before)
        if point.mode == MMAP:  # pages are read when the first token needs them: that is part of the load
            seconds += instance.measure(Point(point.model, "prefill", tokens=1)).seconds
        return Figure(seconds, path.stat().st_size), instance

    def copies(self, preset: Preset) -> Iterable[Point]:
        return ()

    def copy(self, point: Point) -> Figure:
        raise NotImplementedError  # no copies are offered

    def close(self) -> None:
        self.launcher.close()
        if self.second:
            self.second.close()
        self._folder.cleanup()

    def prompt(self, tokens: int) -> list[int]:
        """Random token ids: a prompt that no cache knows."""
        return [
            int(x) for x in self._rng.integers(llama_http.FIRST_TOKEN, llama_http.FIRST_TOKEN + 1000, max(1, tokens))
        ]


class LlamaInstance:
    """A model in a llama-server."""

    def __init__(self, backend: LlamaCpp, path: Path, url: str, name: str, before_bytes: int) -> None:
        self.backend, self.path, self.url, self.name = backend, path, url, name
        self._before_bytes = before_bytes

    def measure(self, point: Point) -> Figure:
        return getattr(self, f"_{point.operation}")(point)  # type: ignore[no-any-return]

    def unload(self) -> Figure:
        return Figure(self.backend.launcher.unload(self.name))

    def _prefill(self, point: Point) -> Figure:
        last = self.backend.settings.seats - 1  # the others' caches stay as they are
        stream = llama_http.Stream(self.url, self.backend.prompt(point.tokens), 1, last, reuse=False)
        times = [token.at_s for token in stream]
        return Figure(times[0] - stream.sent_s)

    def _decode(self, point: Point) -> Figure:
        """Seconds a step while all sequences decode: from the last one's first token to the first one's last."""
        prompts = [self._cached(slot, point.depth) for slot in range(point.batch)]
        streams = [
            llama_http.Stream(self.url, prompt, point.tokens + 1 + point.batch, slot, reuse=True)
            for slot, prompt in enumerate(prompts)
        ]
        with ThreadPoolExecutor(point.batch) as pool:
            times = list(pool.map(lambda stream: [token.at_s for token in stream], streams))
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        steps = sum(begin < at <= end for at in times[0])
        if steps == 0:  # a model so small that one sequence has ended before another begins
            return Figure(max(t[-1] - t[0] for t in times) / (len(times[0]) - 1))
        return Figure((end - begin) / steps)

    def _cached(self, slot: int, depth: int) -> list[int]:
        """A prompt of `depth` tokens that the slot's cache holds: one text, so that what is there is used again."""
        prompt = self.backend.text[: max(1, depth)]
        for _ in llama_http.Stream(self.url, prompt, 1, slot, reuse=True):
            pass
        return prompt

    def _save(self, point: Point) -> Figure:
        self._cached(0, point.tokens)
        seconds, answer = llama_http.slot_action(self.url, 0, "save", "cache.bin")
        return Figure(seconds, int(answer["n_written"]))

    def _restore(self, point: Point) -> Figure:
        self._cached(0, point.tokens)
        llama_http.slot_action(self.url, 0, "save", "cache.bin")
        llama_http.slot_action(self.url, 0, "erase")
        seconds, answer = llama_http.slot_action(self.url, 0, "restore", "cache.bin")
        return Figure(seconds, int(answer["n_read"]))

    def _decode_beside_load(self, point: Point) -> Figure:
        with beside.loading(self.backend.launcher, self.path, self.backend.settings):
            return self._decode(point)

    def _load_beside_decode(self, point: Point) -> Figure:
        with beside.decoding(self.url, self.backend.settings):
            seconds, _, name = self.backend.launcher.load(self.path, READ, ALL, self.backend.settings)
        self.backend.launcher.unload(name)
        return Figure(seconds, self.path.stat().st_size)

    def _decode_beside_decode(self, point: Point) -> Figure:
        with beside.decoding_on(self.backend.launcher, self.path, self.backend.settings):
            return self._decode(point)

    def _decode_beside_device(self, point: Point) -> Figure:
        assert self.backend.second
        with beside.decoding_on(self.backend.second, self.path, self.backend.settings):
            return self._decode(point)

    def _prefill_beside_device(self, point: Point) -> Figure:
        assert self.backend.second
        with beside.decoding_on(self.backend.second, self.path, self.backend.settings):
            return self._prefill(point)

    def _footprint(self, point: Point) -> Figure:
        return Figure(0.0, max(1, resident_bytes(self.backend.pids) - self._before_bytes))


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory that processes hold of their own or map from files."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            kilobytes = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            total += next(kilobytes, 0) * 1024  # one that has died but not been waited for has none
    return total


def _layers(model: str, shares: Sequence[float]) -> Iterator[int]:
    if model.endswith(".gguf"):
        yield ALL
        return
    units = load_model(model).architecture.layers + 1
    for share in shares:
        yield ALL if share == 1 else round(share * units)


def _memory_folder() -> str | None:
    """Saved caches go to memory where there is a file system in it."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
