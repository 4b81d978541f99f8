"""`mmsched tune`: Optuna through Hydra's sweeper; stopped, it goes on; what it finds is checked where it has not looked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no sweeper: pip install 'mmsched-env[tune]'")

SMALL = ["family=offload", "family.scenarios=[long-context]", "policy=fcfs", "traces=1", "other_traces=1"]


def tune(cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsched_env", "tune", *SMALL, *more]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_trials_go_on_and_settings_are_kept_only_if_better_elsewhere(tmp_path: Path) -> None:
    first = tune(tmp_path, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    assert (first.stdout + first.stderr).count("Launching 1 jobs") == 2
    again = tune(tmp_path, "hydra.sweeper.n_trials=3")
    assert again.returncode == 0, again.stderr
    assert (again.stdout + again.stderr).count("Launching 1 jobs") == 1, "trials of before count"
    found = yaml.safe_load((tmp_path / "runs/tune/offload.yaml").read_text())["fcfs"]
    assert found["command"] == " ".join(
        ["mmsched tune", *(f"'{a}'" if "[" in a else a for a in SMALL), "hydra.sweeper.n_trials=3"]
    )
    # one model: nothing is ever unloaded to make room, so no order of eviction is better than another
    assert found["score"] == {"search": 1.0, "other_traces": 1.0} and found["settings"] == {}


def test_bad_values_are_one_line(tmp_path: Path) -> None:
    for bad, words in (("traces=0", "traces is 0"), ("family.scenarios=[no-such]", "unknown scenario 'no-such'")):
        done = tune(tmp_path, bad)
        assert done.returncode == 2 and words in done.stderr, done.stderr
