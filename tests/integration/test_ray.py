"""Sweeps on Ray (extra `ray`): the same files as in one process, also when a worker is lost. A local cluster of processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="needs Ray: pip install 'mmsched-env[ray]'",
    ),
]
SWEEP = ["-m", "policies=[fcfs,mect]", "workload.num_requests=40", "seed=1,2"]
RAY = [
    "hydra/launcher=ray",
    "+hydra.launcher.ray.init.num_cpus=2",
    "+hydra.launcher.ray.init.include_dashboard=false",
]


def evaluate(cwd: Path, out: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmsched_env", "evaluate", *SWEEP, *arguments, f"out={cwd / out}"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/requests.parquet"))}


def workers() -> list[int]:
    """Processes in which Ray runs a job now."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::_run_job"):
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


def test_a_sweep_on_ray_is_that_of_one_process(tmp_path: Path) -> None:
    alone = evaluate(tmp_path, "alone", "episodes=3")
    assert alone.wait(900) == 0, alone.communicate()[0]
    on_ray = evaluate(tmp_path, "ray", "episodes=3", *RAY)
    assert on_ray.wait(900) == 0, on_ray.communicate()[0]
    assert results(tmp_path / "ray") == results(tmp_path / "alone") != {}


def test_what_a_lost_worker_had_not_finished_runs_again(tmp_path: Path) -> None:
    run = evaluate(tmp_path, "ray", "episodes=30", *RAY)
    begun, lost = time.monotonic(), False
    while run.poll() is None and not lost and time.monotonic() - begun < 600:
        if list((tmp_path / "ray").rglob("0*.parquet")) and (found := workers()):
            os.kill(found[0], signal.SIGKILL)
            lost = True
        time.sleep(0.05)
    assert run.wait(900) == 0, run.communicate()[0]
    assert lost
    alone = evaluate(tmp_path, "alone", "episodes=30")
    assert alone.wait(900) == 0
    assert results(tmp_path / "ray") == results(tmp_path / "alone") != {}
