"""A process that loads and unloads models in a llama-server of its own (`xllamacpp`), told to by lines of JSON.

It is pinned to its cores before the library starts, and dies with the process that started it, whichever way that ends and
whatever the library is doing then: a process beside it waits for the end of either.
Run as ``python worker.py CORES NICE FOLDER``; imports nothing of this package, so that it starts fast.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve commands from standard input until it is closed."""
    cores, nice, folder = sys.argv[1:]
    _watched(os.getppid(), folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that drives this one
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.nice(int(nice))
    with suppress(OSError):  # sessions share cores first, then processes
        Path("/proc/self/autogroup").write_text(nice)
    import xllamacpp

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not mix with the answers
    servers: dict[str, Any] = {}
    print(json.dumps({"version": f"xllamacpp {version('xllamacpp')}"}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = _load(xllamacpp, servers, command) if command["do"] == "load" else _unload(servers, command)
        except Exception as error:  # whatever the library raises goes to the driver as text
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # at once: without the servers' own clearing up, which waits for their connections


def _watched(driver: int, folder: str) -> None:
    """A process that ends this one with the driver, even one that hangs in the library, and removes `folder`."""
    ends = [os.pidfd_open(os.getpid()), os.pidfd_open(driver)]
    if os.fork():
        return
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (0, 1):  # the driver waits for the end of the worker's
        os.close(descriptor)
    select.select(ends, [], [])
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(ends[0], signal.SIGKILL)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _load(xllamacpp: Any, servers: dict[str, Any], command: dict[str, Any]) -> dict[str, Any]:
    params = xllamacpp.CommonParams()
    params.model.path = command["path"]
    params.n_parallel = command["seats"]
    params.n_ctx = command["seats"] * command["context"]
    params.n_batch = params.n_ubatch = command["ubatch"]
    params.n_gpu_layers = command["n_gpu_layers"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = command["threads"]
    params.slot_save_path = command["slots"]
    modes = xllamacpp.llama_load_mode
    reads = command["mode"] == "read"
    params.load_mode = modes.LLAMA_LOAD_MODE_NONE if reads else modes.LLAMA_LOAD_MODE_MMAP
    # Every context has its own cache, nothing is kept of past requests, nothing is tried out before the first one.
    params.kv_unified = params.warmup = params.fit_params = params.ui = False
    params.cache_ram_mib = params.n_ctx_checkpoints = params.port = 0
    params.slot_prompt_similarity = 0.0
    params.endpoint_slots = True
    params.n_threads_http = command["seats"] + 2
    params.verbosity = -1
    begun = time.perf_counter()
    server = xllamacpp.Server(params)
    seconds = time.perf_counter() - begun
    servers[command["name"]] = server
    return {"seconds": seconds, "url": server.listening_address}


def _unload(servers: dict[str, Any], command: dict[str, Any]) -> dict[str, Any]:
    begun = time.perf_counter()
    server = servers.pop(command["name"])
    del server
    gc.collect(0)
    return {"seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    main()
