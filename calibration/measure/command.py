"""`mmsched calibrate measure key=value ...`"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mmsched_env.config import build
from mmsched_env.errors import ConfigError, MmschedError, unknown_name

from .. import schema
from ..atomic import write_atomic
from ..schema import Measurement
from . import again, machine, profiles
from .backend import Backend
from .points import PRESETS, preset_of
from .results import Results, Sample, locked
from .rows import Figures, figures, rows
from .runner import Rules, Run, drift

SAVED = "measurements.csv"

LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of a measurement."""

    backend: str = "llama_cpp"
    """llama_cpp, torch or http"""
    preset: str = "quick"
    """tiny, quick, full, offload or gpu"""
    models: tuple[str, ...] = ("smollm2-135m-q8_0", "qwen2.5-0.5b-q8_0")
    """of the catalogue (mmsched catalogue), or GGUF files; http: as the server names them"""
    out: str = "runs/measure"
    """folder of the samples, the rows and the profiles; a run that was stopped goes on in it"""
    against: str = ""
    """folder of an earlier measurement of this box: do the two agree?"""
    name: str = ""
    """of the profiles; empty: from the machine"""
    cache: str = "~/.cache/mmsched/models"
    """folder of the model files"""
    cores: tuple[int, ...] = ()
    """processor cores of the device, one thread each; empty: the last one, or all but one where there is a GPU"""
    second: tuple[int, ...] | None = None
    """llama_cpp: cores of another device, to measure how two slow each other; null: one that is left, []: none"""
    rpc: tuple[int, ...] = ()
    """llama_cpp: cores of a device that takes layers as a GPU would (RPC); without server=, llama.cpp is built, once"""
    server: str = ""
    """llama_cpp: path of a llama-server; empty: xllamacpp"""
    url: str = ""
    """http: of a server that is running: http://127.0.0.1:11434"""
    timeout_s: float = 300.0
    """http: longest silence of the server"""
    gpu: str = ""
    """llama_cpp, http: the GPU that layers are put on, as its vendor calls it"""
    gpu_memory_gb: float = 0.0
    """memory of the device; 0: all there is"""
    seats: int = 4
    """requests at once"""
    context: int = 2048
    """tokens of each"""
    ubatch: int = 512
    """prompt tokens computed at once"""
    cold: bool = True
    """measure loads from disk, not from the page cache alone"""
    dtype: str = "float16"
    """torch: type of the weights"""
    tries: int = 3
    """samples taken at most where the machine is disturbed; the last stands, and is marked"""
    max_foreign: float = 0.1
    """cores that other processes may use beside a sample; not http: what the server uses is not known"""
    nice: int = 0
    """priority of the measured process; below 0 needs root"""
    minutes: float = 0.0
    """no model is loaded after this long, and what there is makes the rows and the profiles; 0: all is measured"""
    seed: int = 0
    """order of the samples"""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        for key, low in {
            "seats": 1,
            "context": 1,
            "ubatch": 1,
            "tries": 1,
            "max_foreign": 0,
            "gpu_memory_gb": 0,
            "minutes": 0,
            "timeout_s": 0.001,
        }.items():
            if not getattr(self, key) >= low:
                raise ConfigError(f"{key} is {getattr(self, key)}; accepted: a number >= {low}")
        have = os.sched_getaffinity(0)
        for key, cores in (("cores", self.cores), ("second", self.second or ()), ("rpc", self.rpc)):
            if not set(cores) <= have:
                raise ConfigError(f"{key} is {list(cores)}; accepted: of {sorted(have)}")
        if not self.models:
            raise ConfigError("models is []; accepted: at least one")
        if self.nice < 0 and os.geteuid() != 0:
            raise ConfigError(f"nice is {self.nice}; accepted: 0 or more without root")

    @cached_property
    def device_cores(self) -> tuple[int, ...]:
        """One core for a CPU device: a thread for each core of the machine is disturbed by anything. Settled once: a backend may
        pin this process to them.
        """
        have = sorted(os.sched_getaffinity(0))
        return self.cores or ((tuple(have[1:]) or tuple(have)) if self.has_gpu else (have[-1],))

    @property
    def has_gpu(self) -> bool:
        """torch sees it by itself."""
        if self.backend != "torch":
            return bool(self.gpu)
        import torch

        return torch.cuda.is_available()

    @property
    def second_cores(self) -> tuple[int, ...]:
        """A GPU has no other like it: two CPU devices are two cores."""
        left = sorted(os.sched_getaffinity(0) - set(self.device_cores))
        return tuple(left[-1:]) if self.second is None and not (self.has_gpu or self.rpc) else self.second or ()


def _llama_cpp(config: MeasureConfig, out: Path) -> Backend:
    from .build import built
    from .launchers import MMAP, READ
    from .llama_cpp import LlamaCpp

    models = Path(config.cache).expanduser()
    server = config.server or (str(built(models.parent)) if config.rpc else "")
    by_rpc = f"RPC device, {len(config.rpc)} thread{'s' if len(config.rpc) > 1 else ''}"
    return LlamaCpp(
        models,
        config.device_cores,
        out / "server.log",
        server,
        config.seats,
        config.context,
        config.ubatch,
        config.cold,
        config.gpu or (by_rpc if config.rpc else schema.CPU_ONLY),
        int(config.gpu_memory_gb * 1e9) or None,
        config.nice,
        modes=(READ,) if config.rpc else (MMAP, READ),  # what a device holds is no page of the file
        second=config.second_cores,
        rpc=config.rpc,
    )


def _torch(config: MeasureConfig, out: Path) -> Backend:
    from .torch_backend import Torch

    return Torch(config.device_cores, config.dtype, config.context, config.ubatch, config.gpu_memory_gb)


def _http(config: MeasureConfig, out: Path) -> Backend:
    from .http_backend import Http

    return Http(config.url, config.gpu or schema.CPU_ONLY, int(config.gpu_memory_gb * 1e9) or None, config.timeout_s)


BACKENDS: dict[str, Callable[[MeasureConfig, Path], Backend]] = {
    "llama_cpp": _llama_cpp,
    "torch": _torch,
    "http": _http,
}


def main(arguments: Sequence[str]) -> int:
    """Measure, write the rows and the profiles, print what came of it. Returns the exit status.

    Raises
    ------
    ConfigError
        A setting that cannot be used, a folder in use, no room on the disk.
    MmschedError
        A server that died; samples that had ended are kept.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage())
        return 0
    config = build(MeasureConfig, settings(arguments))
    out = Path(config.out)
    if config.against:
        again.require(Path(config.against))
    with locked(out), ended_by_signal():
        run(config, out)
    if config.against:
        print(again.compared(out, Path(config.against)))
    return 0


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: servers ended, temporary files removed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever runs this has signals of its own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(config: MeasureConfig, out: Path) -> None:
    """The command in a folder that is locked."""
    begun = time.monotonic()
    backend = BACKENDS[config.backend](config, out)
    try:
        weights = {model: backend.prepare(model) for model in config.models}
        header = header_of(config, backend)
        results = Results(out, header)
        preset = preset_of(config.preset, config.seats, config.context)
        measurement = Run(backend, config.models, preset, rules_of(config), results, minutes=config.minutes or math.inf)
        _measure(measurement, out)
        common = columns_of(config, backend)
        device = profiles.Device(
            config.name or _default_name(backend, config),
            backend.gpu_mem_bytes,
            config.backend == "llama_cpp" and bool(config.gpu),
        )
    finally:
        backend.close()
    found = figures(results.samples)
    measured = rows(found, common, weights, layers_known=config.backend != "http")
    print(table(found))
    print(summary(results.samples, time.monotonic() - begun))
    left = len(set(measurement.wanted()) - results.done())
    if left:
        print(f"{left} samples are missing after {config.minutes:g} minutes; the same command goes on")
    write(out, found, measured, device, header["machine"])


def write(
    out: Path,
    found: Sequence[Figures],
    measured: Sequence[Measurement],
    device: profiles.Device,
    described: Mapping[str, Any],
) -> None:
    """The rows, the machine's description and the profiles."""
    if not measured:
        raise MmschedError("nothing was measured in this time; accepted: more minutes=, the same command goes on")
    schema.write(out / SAVED, measured)
    write_atomic(out / "machine.yaml", yaml.safe_dump(dict(described), sort_keys=False))
    print(f"{len(measured)} rows written to {out / SAVED}")
    for path in profiles.write(out, device, measured, found, measured[0].source):
        print(f"profile written to {path}")


def _measure(measurement: Run, out: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    wanted = len(measurement.wanted())
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console
    )
    with bar if console.is_terminal else nullcontext():
        shown = bar.add_task("", total=wanted, completed=len(measurement.results.samples))
        measurement._progress = lambda point: bar.update(shown, advance=1, description=str(point))
        try:
            measurement.go()
        except MmschedError as error:
            kept = len(measurement.results.samples)
            raise type(error)(
                f"{error}; {kept} of {wanted} samples are kept in {out}, the same command goes on"
            ) from None


def rules_of(config: MeasureConfig) -> Rules:
    """When samples are redone."""
    return Rules(config.tries, math.inf if config.backend == "http" else config.max_foreign, config.seed)


def settings(arguments: Sequence[str]) -> dict[str, Any]:
    """``key=value`` arguments as values; lists as ``[a,b]``.

    Raises
    ------
    ConfigError
        An argument of another form.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"argument '{argument}' is no setting; accepted: key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{key} is {text!r}; accepted: a number, a text or a list like [a,b]") from None
        values[key] = "" if value is None else value
    return values


def usage() -> str:
    """Every setting with its default, a line each."""
    import inspect

    source = inspect.getsource(MeasureConfig).splitlines()
    lines = ["usage: mmsched calibrate measure key=value ...", ""]
    for field in fields(MeasureConfig):
        at = next(i for i, line in enumerate(source) if line.strip().startswith(f"{field.name}:"))
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        lines.append(f"  {field.name}={default}".ljust(52) + source[at + 1].strip().strip('"'))
    return "\n".join(lines)


def header_of(config: MeasureConfig, backend: Backend) -> dict[str, Any]:
    """What a run that goes on must agree with; it may add models."""
    same = ("backend", "preset", "seats", "context", "ubatch", "cold", "dtype", "seed", "url")
    return {
        "settings": {key: getattr(config, key) for key in same} | {"cores": config.device_cores},
        "machine": machine.description()
        | {"gpu": backend.gpu, "engine": backend.engine, "engine_version": backend.version},
    }


def columns_of(config: MeasureConfig, backend: Backend) -> dict[str, Any]:
    """Columns that all rows of this run share."""
    on_gpu = backend.gpu != schema.CPU_ONLY
    return {
        "gpu": backend.gpu,
        "gpu_mem_gb": backend.gpu_mem_bytes / 1e9 if on_gpu and backend.gpu_mem_bytes else None,
        "num_gpus": 1 if on_gpu else 0,
        "host": host_of(config),
        "engine": backend.engine,
        "engine_version": backend.version,
        "ubatch": config.ubatch,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "source": "own measurement (mmsched calibrate measure)",
    }


def host_of(config: MeasureConfig) -> str:
    """The machine that computes, and on how much of it, as far as known."""
    if config.backend == "http":
        name = urlsplit(config.url).hostname or ""
        return machine.host() if name in LOCAL else name
    threads = len(config.device_cores)
    return f"{machine.host()}, {threads} thread{'s' if threads > 1 else ''}"


def _default_name(backend: Backend, config: MeasureConfig) -> str:
    words = machine.cpu_name() if backend.gpu == schema.CPU_ONLY else backend.gpu
    letters = "".join(c if c.isalnum() else "-" for c in words.lower())
    return "-".join(part for part in letters.split("-") if part) + f"-{len(config.device_cores)}t"


def table(found: Sequence[Figures]) -> str:
    """A line a point: median, relative spread, samples, and whether they were disturbed."""
    lines = [f"{'point':<58} {'median':>12} {'spread':>8} {'samples':>8}"]
    for one in found:
        size = one.point.operation == "footprint"
        value = f"{one.size_bytes / 1e6:.1f} MB" if size else f"{one.seconds * 1e3:.3f} ms"
        spread = f"{one.spread:.1%}" if one.spread is not None and not size else ""
        mark = " disturbed" if one.disturbed else ""
        lines.append(f"{one.point!s:<58} {value:>12} {spread:>8} {one.repeats:>8}{mark}")
    return "\n".join(lines)


def summary(samples: Sequence[Sample], seconds: float) -> str:
    """How good the samples are, one line."""
    kept = [sample for sample in samples if sample.round >= 1]
    bad = sum(sample.disturbed for sample in kept)
    change = drift(samples)
    probe = "" if change is None else f"; probes after the run {change:+.1%} against before"
    redone = sum(sample.tries > 1 for sample in kept)
    return f"{len(kept)} samples in {seconds:.0f} s, {redone} taken again, {bad} disturbed to the last{probe}"
