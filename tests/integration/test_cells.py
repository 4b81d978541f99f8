"""Evaluations that are stopped go on; what is finished is not run again; processes do not change results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.workload import GeneratorConfig

ASKED = ["policies=[fcfs,mect]", "workload.num_requests=30", "episodes=4", "out=run"]


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "mmsched_env", "evaluate", *ASKED, *more]


def evaluate(cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*more), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def files(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.parquet")}


def workers(parent: int) -> list[str]:
    """Process ids of the pool's processes."""
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "spawn_main"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def rows(folder: Path) -> bytes:
    return (folder / "run" / "requests.parquet").read_bytes()


def test_killed_half_way_and_started_again(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert evaluate(whole, "processes=1").returncode == 0
    running = subprocess.Popen(command("processes=1"), cwd=killed, stdout=subprocess.DEVNULL, start_new_session=True)
    while len(files(killed)) < 3 and running.poll() is None:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = files(killed)
    assert 3 <= len(before) < 8 and not (killed / "run" / "requests.parquet").exists()
    assert evaluate(killed, "processes=1").returncode == 0
    after = files(killed)
    assert len(after) == 8 and before.items() <= after.items(), "finished cells were run again"
    assert rows(killed) == rows(whole)
    figures = [json.loads((f / "run" / "summary.json").read_text())["scenarios"] for f in (killed, whole)]
    for scenarios in figures:
        for scenario in scenarios.values():
            del scenario["decision_us"]
    assert figures[0] == figures[1]


def at_work(cwd: Path) -> subprocess.Popen[str]:
    """A long evaluation in two processes that has finished some episodes."""
    asked = ["policies=[fcfs]", "episodes=5000", "out=run", "processes=2"]
    line = [sys.executable, "-m", "mmsched_env", "evaluate", *asked]
    running = subprocess.Popen(line, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(files(cwd)) < 3 and running.poll() is None:
        time.sleep(0.01)
    return running


@pytest.mark.skipif(
    shutil.which("pgrep") is None or not Path("/proc").is_dir(), reason="looks at the system's processes"
)
def test_workers_end_with_the_process_they_work_for(tmp_path: Path) -> None:
    running = at_work(tmp_path)
    working = workers(running.pid)
    running.kill()
    running.communicate()
    assert len(working) == 2
    until = time.monotonic() + 30
    while any((Path("/proc") / pid).exists() for pid in working) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in working if (Path("/proc") / pid).exists()]


def test_sigterm_ends_it_as_ctrl_c_does(tmp_path: Path) -> None:
    running = at_work(tmp_path)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143 and said.endswith("mmsched: stopped\n"), said


def test_processes_change_nothing_and_more_traces_run_only_what_is_new(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        folder.mkdir()
        assert evaluate(folder, f"processes={processes}").returncode == 0
    assert rows(one) == rows(two)
    before = files(two)
    assert evaluate(two, "episodes=5", "processes=1").returncode == 0
    after = files(two)
    assert len(after) == 10 and before.items() <= after.items()
    assert evaluate(two, "seed=1", "processes=1").returncode == 0  # other traces: nothing of before counts
    assert all(files(two)[name] != stamp for name, stamp in before.items())


def test_warmup_is_served_but_not_measured(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "warmup=0.2", "processes=1").returncode == 0
    measured = pq.read_table(tmp_path / "run" / "requests.parquet").to_pandas()
    assert len(measured) == 2 * 4 * 24
    assert evaluate(tmp_path, "processes=1").returncode == 0
    everything = pq.read_table(tmp_path / "run" / "requests.parquet").to_pandas()
    later = everything.groupby(["policy", "episode"], sort=False).tail(24)
    assert measured["e2e_s"].tolist() == later["e2e_s"].tolist()


def test_loads_and_busy_gpus_are_the_whole_episodes_whatever_is_measured() -> None:
    simulation = Simulation(EnvConfig(), 1)
    trace = GeneratorConfig(num_requests=40).sample(1, simulation.config.models.names)
    whole, late = (run_episode(simulation, make_policy("mect")[1], trace, 1, skip).summary for skip in (0, 20))
    for name in ("loads", "loads_per_100", "gpu_busy_share"):
        assert whole[name] == late[name]
    assert (whole["num_requests"], late["num_requests"]) == (40, 20)


def test_another_record_under_the_same_name_is_another_cell(tmp_path: Path) -> None:
    record = tmp_path / "trace.csv"
    header, *lines = [
        "arrival_s,model,prompt_tokens,output_tokens",
        *(f"{t},llama-3-8b-q4_k_m,100,20" for t in range(5)),
    ]

    def mean(rows: list[str]) -> float:
        record.write_text("\n".join([header, *rows]) + "\n")
        asked = ["policies=[fcfs]", "workload=file", f"workload.path={record}", "episodes=1", "out=run"]
        line = [sys.executable, "-m", "mmsched_env", "evaluate", *asked]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return float(pq.read_table(tmp_path / "run" / "requests.parquet").to_pandas()["output_tokens"].mean())

    assert mean(lines) == 20
    assert mean([line.replace(",20", ",40") for line in lines]) == 40


def test_loads_and_bad_values(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "loads=[0.3,0.6]", "episodes=1", "processes=1")
    assert done.returncode == 0, done.stderr
    scenarios = json.loads((tmp_path / "run" / "summary.json").read_text())["scenarios"]
    assert [name.split()[-1] for name in sorted(scenarios)] == ["rho=0.3", "rho=0.6"]
    for bad, words in (
        ("warmup=1.5", "warmup is 1.5"),
        ("processes=-1", "processes is -1"),
        ("episodes=0", "episodes is 0"),
        ("loads=[-1]", "rho is -1"),
    ):
        done = evaluate(tmp_path, bad)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
