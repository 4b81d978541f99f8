"""Evaluations that are stopped go on; what is finished is not run again; processes do not change results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

ASKED = ["policies=[fcfs,mect]", "workload.num_requests=30", "episodes=4", "out=run"]


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "mmsched_env", "evaluate", *ASKED, *more]


def evaluate(cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*more), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def files(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.parquet")}


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
