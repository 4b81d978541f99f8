"""Real llama-servers with tiny random models: measuring, replay with preemption, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

from mmsched_env.action import ActionLayout, Kind
from mmsched_env.calibration import gguf, schema
from mmsched_env.calibration.measure import command, http_backend, llama_http, results
from mmsched_env.calibration.measure.backend import ServerDied
from mmsched_env.calibration.measure.launchers import READ, Worker
from mmsched_env.calibration.measure.llama_cpp import LlamaCpp
from mmsched_env.calibration.measure.points import BESIDE, PRESETS, Point, beside
from mmsched_env.calibration.replay import command as replay
from mmsched_env.calibration.replay import kept
from mmsched_env.calibration.replay.mirror import simulation_with
from mmsched_env.calibration.replay.real import Outcome, RealSystem
from mmsched_env.calibration.replay.scenarios import scenario_of
from mmsched_env.config import EnvConfig, env_config
from mmsched_env.costmodel.profile import ModelProfile, load_model
from mmsched_env.costmodel.shapes import Architecture
from mmsched_env.costmodel.tables import build_tables
from mmsched_env.errors import ConfigError, MmschedError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.workload.trace import RequestTrace

pytestmark = pytest.mark.slow  # real servers on real time: a machine shared with others makes them wait

ARCH = Architecture(2, 256, 4, 2, 64, 512, 1400, tied_embeddings=True)
CORE = min(os.sched_getaffinity(0))
NAMES = ("smollm2-135m-q8_0", "smollm2-360m-q8_0")
"""what the environment believes the tiny files are"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return gguf.write_random(path, ModelProfile("tiny", "q8_0", ARCH, None, ARCH.params, "assumed", "a test"))


@pytest.fixture
def backend(model: Path, tmp_path: Path) -> Iterator[LlamaCpp]:
    one = LlamaCpp(model.parent, [CORE], tmp_path / "log", seats=2, context=256, ubatch=64, cold=False)
    yield one
    one.close()


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    plain = ["preset=tiny", "tries=1", "cold=false", f"cores=[{CORE}]", "context=256"]
    return [f"models=[{model}]", f"out={out}", *plain, *more]


def test_measure_writes_rows_of_every_operation(model: Path, tmp_path: Path) -> None:
    assert command.main(arguments(model, tmp_path / "out")) == 0
    rows = schema.read(tmp_path / "out" / command.SAVED)
    assert {row.operation for row in rows} == {"load", "unload", "prefill", "decode", "save", "restore"}
    assert {row.gpu for row in rows} == {schema.CPU_ONLY}
    speed = {(row.operation, row.batch, row.depth): row.value for row in rows if row.unit == "tokens/s"}
    assert min(speed.values()) > 10  # a model of 1.5 MB: its steps are shorter than their way to the client
    before = (tmp_path / "out" / results.NAME).read_bytes()
    assert command.main(arguments(model, tmp_path / "out")) == 0  # nothing is missing: nothing is measured again
    assert (tmp_path / "out" / results.NAME).read_bytes() == before


def test_sizes_are_those_of_the_model(backend: LlamaCpp, model: Path) -> None:
    figure, instance = backend.load(Point(str(model), "load", tier="page_cache", mode=READ))
    assert figure.size_bytes == model.stat().st_size
    for tokens in (20, 100):
        saved = instance.measure(Point(str(model), "save", tokens=tokens)).size_bytes
        assert saved == pytest.approx(tokens * ARCH.layers * ARCH.kv_layer_bytes, rel=0.15)
    assert instance.measure(Point(str(model), "footprint")).size_bytes > model.stat().st_size / 2
    instance.unload()


def test_a_server_that_dies_is_one_line_and_its_samples_are_kept(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = LlamaCpp.load
    loads = 0

    def load(self: LlamaCpp, point: Point) -> Any:
        nonlocal loads
        loads += 1
        if loads == 4:
            os.kill(self.pids[0], signal.SIGKILL)
        return real(self, point)

    monkeypatch.setattr(LlamaCpp, "load", load)
    with pytest.raises(MmschedError, match=r"server process ended with status -9 .* samples are kept") as caught:
        command.main(arguments(model, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    kept = results.read(tmp_path / "out" / results.NAME)[1]
    assert len(kept) >= 3
    monkeypatch.setattr(LlamaCpp, "load", real)
    assert command.main(arguments(model, tmp_path / "out")) == 0
    assert results.read(tmp_path / "out" / results.NAME)[1][: len(kept)] == kept


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_server_and_no_file_outlives_a_run_that_is_killed(
    how: signal.Signals, hangs: bool, model: Path, tmp_path: Path
) -> None:
    code = "import sys; from mmsched_env.cli import main; main(['calibrate', 'measure', *sys.argv[1:]])"
    before = temporary_files(), workers()
    run = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(model, tmp_path / "out", "second=[]")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    samples = tmp_path / "out" / results.NAME
    wait_for(lambda: samples.exists() and len(samples.read_text().splitlines()) > 3)
    (server,) = children(run.pid)
    assert server in workers()
    if hangs:  # in the library, where no signal handler of Python's runs
        os.kill(server, signal.SIGSTOP)
    run.send_signal(how)
    run.wait(30)
    wait_for(lambda: (temporary_files(), workers()) == before)
    if how != signal.SIGKILL:
        assert run.returncode == 130
    whole = results.read(samples)[1]
    assert len(whole) >= 3


def test_a_worker_ends_with_its_input(model: Path, tmp_path: Path) -> None:
    worker = Worker([CORE], tmp_path / "log")
    worker.close()
    worker.close()
    assert not alive(worker.pids[0])
    with pytest.raises(ServerDied, match="ended with status"):
        worker.unload("1")


# ---------------------------------------------------------------- replay


def small_config() -> EnvConfig:
    return env_config(
        {
            "cluster": {"gpus": ["rtx-5060-ti-16gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": []},
            "models": {"names": list(NAMES)},
            "limits": {"gpus": 1, "hosts": 1, "models": 2, "slots": 1, "levels": [1.0], "batch": 2},
            "sim": {"ubatch_tokens": 64, "allow_offload": False, "debug_checks": True},
        }
    )


def small_trace(count: int) -> RequestTrace:
    n = np.arange(count)
    columns = {
        "arrival_s": 0.05 * n,
        "model": n // 2 % 2,
        "prompt_tokens": 20 + 7 * (n % 5),
        "output_tokens": 5 + n % 9,
    }
    return RequestTrace.from_columns(NAMES, **columns)


class PreemptOften:
    """fcfs, but every third decision puts aside a whole instance that has a request, three times in all."""

    def __init__(self) -> None:
        self.inner = make_policy("fcfs")[1]
        self.calls, self.done = 0, 0

    def reset(self, layout: ActionLayout, seed: int) -> None:
        self.layout = layout
        self.calls = self.done = 0
        self.inner.reset(layout, seed)

    def act(self, observation: Mapping[str, Any], mask: Any) -> int:
        self.calls += 1
        preempt = self.layout.preempt(0)
        if self.calls % 3 == 0 and self.done < 3 and mask[preempt]:
            self.done += 1
            return preempt
        return int(self.inner.act(observation, mask))


@pytest.fixture
def system(backend: LlamaCpp, model: Path) -> Iterator[RealSystem]:
    config = small_config()
    tables = build_tables(config.cluster, config.models, config.limits.levels, config.limits.batch)
    one = RealSystem(simulation_with(config, tables), [backend.launcher], [model, model], backend.settings)
    yield one
    one.close()


def test_a_policy_serves_every_request_on_real_servers(system: RealSystem) -> None:
    trace = small_trace(8)
    outcome = system.run(make_policy("fcfs")[1], trace, seed=0, cold=False)
    rows = outcome.rows
    assert rows["finished"].all()
    np.testing.assert_array_equal(rows["generated_tokens"], trace.output_tokens)
    assert (rows["ttft_s"] > 0).all()
    assert (rows["e2e_s"] >= rows["ttft_s"]).all()
    kinds = [operation.what for operation in outcome.operations]
    assert kinds.count("load") == outcome.summary["loads"] >= 2
    assert (
        outcome.summary["unloads"] - 1 <= kinds.count("unload") <= outcome.summary["unloads"]
    )  # the last may be under way
    assert {d.kind for d in outcome.decisions} <= {Kind.DISPATCH, Kind.PREEMPT}
    assert sum(d.kind == Kind.DISPATCH for d in outcome.decisions) >= 8


def test_preempted_requests_go_on_where_they_were(system: RealSystem) -> None:
    trace = small_trace(10)
    policy = PreemptOften()
    outcome = system.run(policy, trace, seed=0, cold=False)
    assert outcome.rows["finished"].all()
    assert policy.done == 3
    assert {d.kind for d in outcome.decisions} == {Kind.DISPATCH, Kind.PREEMPT}
    saves = [operation.request for operation in outcome.operations if operation.what == "save"]
    restores = [operation.request for operation in outcome.operations if operation.what == "restore"]
    assert sorted(saves) == sorted(restores)
    np.testing.assert_array_equal(outcome.rows["generated_tokens"], trace.output_tokens)
    assert Path(system.settings.slots).is_dir()
    assert list(Path(system.settings.slots).iterdir()) == []  # no cache is left behind


def test_a_preempted_completion_has_the_tokens_of_an_undisturbed_one(system: RealSystem) -> None:
    """Greedy decoding: what was saved and restored is what had been computed."""
    trace = small_trace(10)
    system.run(make_policy("fcfs")[1], trace, seed=0, cold=False)
    undisturbed = system._generated
    system.run(PreemptOften(), trace, seed=0, cold=False)
    same = sum(a == b for a, b in zip(undisturbed, system._generated, strict=True))
    assert same >= 8  # a batch of two rounds otherwise than one alone: a tie of random logits may break another way


def test_a_server_killed_in_a_replay_is_one_line(system: RealSystem, backend: LlamaCpp) -> None:
    class Killer(PreemptOften):
        def act(self, observation: Mapping[str, Any], mask: Any) -> int:
            if observation["globals"][0][0] > 0.1 and alive(backend.pids[0]):
                os.kill(backend.pids[0], signal.SIGKILL)
            return super().act(observation, mask)

    with pytest.raises(MmschedError) as caught:
        system.run(Killer(), small_trace(8), seed=0, cold=False)
    assert "\n" not in str(caught.value)


@pytest.fixture
def disguised(model: Path, tmp_path: Path) -> Path:
    """The tiny model in place of the ones of a scenario: as long as they are, so that they are not written."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in scenario_of("steady").models:
        path = cache / f"{name}.gguf"
        path.write_bytes(model.read_bytes())
        os.truncate(path, load_model(name).file_bytes + 1_000_000)
    return cache


def replay_arguments(cache: Path, out: Path, *more: str) -> list[str]:
    few = ["requests=6", "repeats=2", "others=1", "rounds=1", "policies=[mect,fcfs]"]
    return ["scenario=steady", f"cache={cache}", f"out={out}", *few, *more]


def test_a_replay_is_kept_goes_on_and_is_compared_again(
    disguised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, write = tmp_path / "out", kept.write
    before = temporary_files()

    def stop(path: Path, outcome: Outcome) -> None:
        write(path, outcome)
        raise KeyboardInterrupt

    monkeypatch.setattr(kept, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        replay.main(replay_arguments(disguised, out))
    assert temporary_files() <= before
    assert [path.name for path in out.glob("real-*")] == ["real-mect-0.npz"]
    first = (out / "real-mect-0.npz").read_bytes()
    monkeypatch.setattr(kept, "write", write)
    assert replay.main(replay_arguments(disguised, out)) == 0
    assert sorted(path.name for path in out.glob("real-*")) == ["real-fcfs-0.npz", "real-mect-0.npz", "real-mect-1.npz"]
    assert (out / "real-mect-0.npz").read_bytes() == first
    report = (out / "report.md").read_text()
    for part in ("Single operations", "re-timed by the simulator", "Left to itself", "Policies by mean E2E", "probes"):
        assert part in report
    for picture in ("scatter.png", "timelines.png"):
        assert (out / picture).stat().st_size > 10_000

    def no_server(*args: object, **settings: object) -> None:
        raise AssertionError("a server was started to compare what is there")

    monkeypatch.setattr(replay, "LlamaCpp", no_server)
    assert replay.main(replay_arguments(disguised, out)) == 0
    assert (out / "report.md").read_text() == report
    assert report in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was measured with requests=6, not 7; accepted: the same, or another out="):
        replay.main(replay_arguments(disguised, out, "requests=7"))


def test_a_file_that_is_no_model_is_one_line_and_leaves_no_server(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    before = temporary_files(), set(children(os.getpid()))
    with pytest.raises(MmschedError, match=r"llama.cpp: .*; see .*server.log; 0 of .* samples are kept") as caught:
        command.main(arguments(broken, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert (temporary_files(), set(children(os.getpid()))) == before


def test_what_goes_on_beside_a_figure_slows_it_and_ends_with_it(model: Path, tmp_path: Path) -> None:
    second = max(os.sched_getaffinity(0))
    backend = LlamaCpp(model.parent, [CORE], tmp_path / "log", seats=2, context=256, ubatch=64, second=[second])
    try:
        instance = backend.load(Point(str(model), "load", tier="page_cache", mode=READ))[1]
        for operation in sorted(BESIDE):
            assert operation in backend.operations
            assert instance.measure(beside(str(model), PRESETS["tiny"], operation)).seconds > 0
        assert not any(slot["is_processing"] for slot in llama_http.slots(instance.url))
        instance.unload()
        assert len(backend.pids) == 2
    finally:
        backend.close()
    assert not any(alive(pid) for pid in backend.pids)


@pytest.mark.parametrize("seats", [1, 2])
def test_a_running_llama_server_is_measured_by_http(seats: int, backend: LlamaCpp, model: Path, tmp_path: Path) -> None:
    instance = backend.load(Point(str(model), "load", tier="page_cache", mode=READ))[1]
    known = http_backend.Http(instance.url).server.models()
    settings = ["backend=http", "preset=tiny", f"url={instance.url}/v1", f"seats={seats}", "context=256"]
    assert command.main([*settings, f"models={json.dumps(known)}", f"out={tmp_path / 'out'}"]) == 0
    rows = schema.read(tmp_path / "out" / command.SAVED)
    assert {(row.operation, row.engine) for row in rows} == {
        ("prefill", "OpenAI-compatible server"),
        ("decode", "OpenAI-compatible server"),
    }
    assert {row.batch for row in rows if row.operation == "decode"} == set(range(1, seats + 1))
    with pytest.raises(ConfigError, match="has no model 'another'; accepted: "):
        command.main([*settings, "models=[another]", f"out={tmp_path / 'other'}"])
    instance.unload()
    with pytest.raises(ConfigError, match="accepted: the URL of a running server"):
        command.main([*settings, f"models={json.dumps(known)}", f"out={tmp_path / 'gone'}"])


# ---------------------------------------------------------------- small things


def temporary_files() -> set[str]:
    """What servers save caches in."""
    return {path.name for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("mmsched-*")}


def workers() -> set[int]:
    """Processes that serve models, or watch over one that does."""
    found = set()
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"measure/worker.py" in line.read_bytes() and alive(int(line.parent.name)):
                found.add(int(line.parent.name))
    return found


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)
