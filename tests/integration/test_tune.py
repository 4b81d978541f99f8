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
    for bad, words in (
        ("traces=0", "traces is 0"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials is 0; accepted: a whole number >= 1"),
        ("family.scenarios=[no-such]", "unknown scenario 'no-such'"),
    ):
        done = tune(tmp_path, bad)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def search(cwd: Path, trials: int) -> str:
    """Trials of `experiment=search`, as small as they can be."""
    brief = ["num_envs=4", "agent.improvement.rounds=1", "agent.improvement.states=16", "validation_episodes=1"]
    command = [sys.executable, "-m", "mmsched_env", "train", "-m", "experiment=search", *brief]
    command += ["workload.num_requests=10", f"hydra.sweeper.n_trials={trials}", "out=runs/search"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_agents_settings_are_searched_by_its_validation(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert search(tmp_path, 1).count("trained") == 1
    assert search(tmp_path, 2).count("trained") == 1, "the trial of before counts"
    found = yaml.safe_load((tmp_path / "runs/search/optimization_results.yaml").read_text())
    assert {"agent.improvement.toll", "agent.improvement.worlds"} <= set(found["best_params"])
    assert 0 < found["best_value"] <= 1, "the rule's own decisions, before the improvement, score 1"
    assert len(list((tmp_path / "runs/search").glob("*/best.zip"))) == 2
