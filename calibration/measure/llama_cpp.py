"""llama.cpp: the real llama-server, in a pinned process by `xllamacpp` or as a binary of the user's."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmsched_env.costmodel.profile import load_model
from mmsched_env.errors import ConfigError

from .. import gguf, schema
from . import llama_http, pagecache
from .backend import Figure, ServerDied
from .points import ALL, SERVING, Point, Preset

FIRST_TOKEN = 256
"""prompts are made of the stub vocabulary's fillers"""

ALL_LAYERS = 999
READ, MMAP = "read", "mmap"


@dataclass(frozen=True)
class Settings:
    """How a model is served."""

    seats: int
    """slots of the server: requests at once"""
    context: int
    """tokens of each"""
    ubatch: int
    threads: int
    slots: str
    """folder for saved caches, in memory; ends with a slash: llama-server puts names right behind it"""


class Launcher(Protocol):
    """Something that starts and ends llama-servers on one device."""

    version: str

    @property
    def pids(self) -> Sequence[int]: ...

    def load(self, path: Path, mode: str, n_gpu_layers: int, settings: Settings) -> tuple[float, str, str]:
        """(seconds until it serves, URL, name for `unload`). Raises ServerDied."""
        ...

    def unload(self, name: str) -> float:
        """Seconds. Raises ServerDied."""
        ...

    def close(self) -> None: ...


class Worker:
    """A process pinned to `cores` that serves models through `xllamacpp`; it removes `folder` when it ends.

    Raises
    ------
    ConfigError
        `xllamacpp` is not installed.
    """

    def __init__(self, cores: Sequence[int], log: Path, nice: int = 0, folder: str = "") -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError(
                "backend=llama_cpp needs xllamacpp; accepted: pip install 'mmsched-env[measure]', or server="
            )
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), ",".join(map(str, cores)), str(nice), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(len(cores))},
        )
        self._count = 0
        self.version = str(self._answer()["version"])

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._process.pid,)

    def load(self, path: Path, mode: str, n_gpu_layers: int, settings: Settings) -> tuple[float, str, str]:
        self._count += 1
        name = str(self._count)
        answer = self._ask(
            do="load",
            name=name,
            path=str(path),
            mode=mode,
            n_gpu_layers=ALL_LAYERS if n_gpu_layers == ALL else n_gpu_layers,
            **vars(settings),
        )
        return float(answer["seconds"]), str(answer["url"]), name

    def unload(self, name: str) -> float:
        return float(self._ask(do="unload", name=name)["seconds"])

    def close(self) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ServerDied(self._obituary()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ServerDied(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServerDied(f"llama.cpp: {answer['error']}; see {self._log.name}")
        return answer

    def _obituary(self) -> str:
        code = self._process.wait()
        return f"the server process ended with status {code} while it was measured; see {self._log.name}"


class Binary:
    """`llama-server` as the user built it: a process for every load, which therefore counts the engine's start.

    Raises
    ------
    ConfigError
        There is no such program.
    """

    def __init__(self, program: str, cores: Sequence[int], log: Path, nice: int = 0) -> None:
        found = shutil.which(program)
        if found is None:
            raise ConfigError(f"server={program} is no program; accepted: the path of a llama-server")
        self._program, self._cores, self._nice, self._log = found, set(cores), nice, log.open("ab")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        self.version = (said.stderr + said.stdout).strip().splitlines()[0] if said.stderr or said.stdout else "unknown"

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._running.values())

    def load(self, path: Path, mode: str, n_gpu_layers: int, settings: Settings) -> tuple[float, str, str]:
        port = _free_port()
        command = [self._program, "-m", str(path), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-np", str(settings.seats), "-c", str(settings.seats * settings.context)]
        command += ["-b", str(settings.ubatch), "-ub", str(settings.ubatch), "-t", str(settings.threads)]
        command += ["-ngl", str(ALL_LAYERS if n_gpu_layers == ALL else n_gpu_layers), "--slots", "--no-warmup"]
        command += ["--slot-save-path", settings.slots] + (["--no-mmap"] if mode == READ else [])
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=self._child,
            start_new_session=True,
        )
        self._running[str(port)] = process
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            if process.poll() is not None:
                raise ServerDied(f"llama-server ended with status {process.returncode}; see {self._log.name}")
            time.sleep(0.002)
        return time.perf_counter() - begun, url, str(port)

    def unload(self, name: str) -> float:
        process = self._running.pop(name)
        begun = time.perf_counter()
        process.terminate()
        process.wait()
        return time.perf_counter() - begun

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()
        self._log.close()

    def _child(self) -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with this process
        os.sched_setaffinity(0, self._cores)
        os.nice(self._nice)
        with suppress(OSError):  # sessions share cores first, then processes
            Path("/proc/self/autogroup").write_text(str(self._nice))


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
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mmsched-", dir=_memory_folder())
        self._models = models
        self.settings = Settings(seats, context, ubatch, len(cores), f"{self._folder.name}/")
        self._cold, self._modes = cold, modes
        self.gpu, self.gpu_mem_bytes = gpu, gpu_mem_bytes
        self.launcher: Launcher = (
            Binary(server, cores, log, nice) if server else Worker(cores, log, nice, self._folder.name)
        )
        self._rng = np.random.default_rng(0)
        self.text = self.prompt(context)

    operations = SERVING

    @property
    def engine(self) -> str:
        return "llama.cpp CPU" if self.gpu == schema.CPU_ONLY else "llama.cpp"

    @property
    def version(self) -> str:
        return self.launcher.version

    @property
    def pids(self) -> Sequence[int]:
        return self.launcher.pids

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
        instance = LlamaInstance(self, url, name, before)
        if point.mode == MMAP:  # pages are read when the first token needs them: that is part of the load
            seconds += instance.measure(Point(point.model, "prefill", tokens=1)).seconds
        return Figure(seconds, path.stat().st_size), instance

    def copies(self, preset: Preset) -> Iterable[Point]:
        return ()

    def copy(self, point: Point) -> Figure:
        raise NotImplementedError  # no copies are offered

    def close(self) -> None:
        self.launcher.close()
        self._folder.cleanup()

    def prompt(self, tokens: int) -> list[int]:
        """Random token ids: a prompt that no cache knows."""
        return [int(x) for x in self._rng.integers(FIRST_TOKEN, FIRST_TOKEN + 1000, max(1, tokens))]


class LlamaInstance:
    """A model in a llama-server."""

    def __init__(self, backend: LlamaCpp, url: str, name: str, before_bytes: int) -> None:
        self.backend, self.url, self.name = backend, url, name
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


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _healthy(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
