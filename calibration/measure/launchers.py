"""Starting and ending llama-servers on one device: by `xllamacpp` in a pinned process, or a binary of the user's."""

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
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mmsched_env.errors import ConfigError

from . import llama_http
from .backend import ServerDied
from .points import ALL

ALL_LAYERS = 999
RPC_SERVER = "ggml-rpc-server"

PLAIN = {"--cache-ram": "0", "--ctx-checkpoints": "0", "--slot-prompt-similarity": "0", "--fit": "off"}
"""options that keep a server from remembering past prompts and from choosing for itself, where it knows them"""
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
        self._urls: dict[str, str] = {}
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
        self._urls[name] = str(answer["url"])
        return float(answer["seconds"]), self._urls[name], name

    def unload(self, name: str) -> float:
        if name in self._urls:  # a server that has not begun its loop could never be ended: let it answer first
            with suppress(ServerDied):
                llama_http.slots(self._urls.pop(name))
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

    Parameters
    ----------
    rpc
        Cores of a device of its own that layers are put on: llama.cpp's RPC server, which serves one model at a time.

    Raises
    ------
    ConfigError
        There is no such program, or no RPC server beside it.
    """

    def __init__(self, program: str, cores: Sequence[int], log: Path, nice: int = 0, rpc: Sequence[int] = ()) -> None:
        found = shutil.which(program)
        if found is None:
            raise ConfigError(f"server={program} is no program; accepted: the path of a llama-server")
        self._program, self._log = found, log.open("ab")
        self._child = partial(_become_device, set(cores), nice)
        self._device = self._start_device(rpc, nice) if rpc else None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.version = (_said(found, "--version").splitlines() or ["unknown"])[0]
        self._options = _said(found, "--help")

    @property
    def pids(self) -> tuple[int, ...]:
        device = (self._device[0].pid,) if self._device else ()
        return (*device, *(process.pid for process in self._running.values()))

    def load(self, path: Path, mode: str, n_gpu_layers: int, settings: Settings) -> tuple[float, str, str]:
        port = _free_port()
        command = [self._program, "-m", str(path), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-np", str(settings.seats), "-c", str(settings.seats * settings.context)]
        command += ["-b", str(settings.ubatch), "-ub", str(settings.ubatch), "-t", str(settings.threads)]
        command += ["-ngl", str(ALL_LAYERS if n_gpu_layers == ALL else n_gpu_layers), "--slots", "--no-warmup"]
        command += ["--slot-save-path", settings.slots, *self._load_mode(mode)]
        command += [word for name, value in PLAIN.items() if name in self._options for word in (name, value)]
        command += ["--rpc", self._device[1]] if self._device else []
        begun = time.perf_counter()
        process = self._start(command, self._child)
        self._running[str(port)] = process
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            if process.poll() is not None:
                raise ServerDied(f"llama-server ended with status {process.returncode}; see {self._log.name}")
            time.sleep(0.002)
        return time.perf_counter() - begun, url, str(port)

    def _load_mode(self, mode: str) -> list[str]:
        if "--load-mode" in self._options:  # since 2026
            return ["--load-mode", "none" if mode == READ else "mmap"]
        return ["--no-mmap"] if mode == READ else []

    def unload(self, name: str) -> float:
        process = self._running.pop(name)
        begun = time.perf_counter()
        process.terminate()
        process.wait()
        return time.perf_counter() - begun

    def close(self) -> None:
        for process in (*self._running.values(), *([self._device[0]] if self._device else [])):
            process.kill()
            process.wait()
        self._running.clear()
        self._log.close()

    def _start(self, command: Sequence[str], child: Callable[[], None]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=child,
            start_new_session=True,
        )

    def _start_device(self, cores: Sequence[int], nice: int) -> tuple[subprocess.Popen[bytes], str]:
        """The RPC server and its address."""
        program = Path(self._program).with_name(RPC_SERVER)
        if not program.is_file():
            raise ConfigError(f"rpc= needs {program}; accepted: a server= that was built with GGML_RPC, or none")
        port = _free_port()
        command = [str(program), "-H", "127.0.0.1", "-p", str(port), "-t", str(len(cores))]
        process = self._start(command, partial(_become_device, set(cores), nice))
        while not _listening(port):
            if process.poll() is not None:
                raise ServerDied(f"{RPC_SERVER} ended with status {process.returncode}; see {self._log.name}")
            time.sleep(0.01)
        return process, f"127.0.0.1:{port}"


def _said(program: str, question: str) -> str:
    said = subprocess.run([program, question], capture_output=True, text=True, check=False)
    return (said.stderr + said.stdout).strip()


def _become_device(cores: set[int], nice: int) -> None:
    """In a new process: pinned, of its own priority, and dead when the one that started it is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.sched_setaffinity(0, cores)
    os.nice(nice)
    with suppress(OSError):  # sessions share cores first, then processes
        Path("/proc/self/autogroup").write_text(str(nice))


def _listening(port: int) -> bool:
    """By the kernel's table: a connection would be taken for a client."""
    wanted = f":{port:04X} 00000000:0000 0A"
    return any(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


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
