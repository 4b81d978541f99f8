"""`mmsched evolve`: the search finds what there is to find; stopped, it goes on to the last bit; any number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cmaes", reason="no search: pip install 'mmsched-env[cli]'")
pytest.importorskip("hydra", reason="no commands: pip install 'mmsched-env[cli]'")

from mmsched_env.baselines.episodes import Task
from mmsched_env.baselines.evolve import EvolveConfig, Search, evolve, loss
from mmsched_env.baselines.genes import GENES, GROUPS, policy_of
from mmsched_env.config import ConfigError, EnvConfig
from mmsched_env.evaluation.policies import make_policy, policy_settings
from mmsched_env.hydra_app import composed

SETTINGS = {key: value for key, value in policy_settings("composite").items() if key not in ("_target_", "weights")}


@pytest.fixture
def small(tiny: Callable[..., EnvConfig], tmp_path: Path) -> EvolveConfig:
    return EvolveConfig(
        envs=(tiny(num_requests=20), tiny(num_requests=15)),
        settings=SETTINGS,
        learn=("order", "place", "settings", "units"),
        run_dir=str(tmp_path / "run"),
        seed=3,
        generations=3,
        population=5,
        sigma=0.3,
        traces=2,
        validate_every=2,
        validation_traces=3,
        processes=1,
    )


def results(config: EvolveConfig) -> tuple[bytes, bytes]:
    path = evolve(config, {})
    return path.read_bytes(), path.with_name("history.json").read_bytes()


def test_stopped_and_gone_on_is_the_same_to_the_last_bit(small: EvolveConfig) -> None:
    whole = results(small)
    again = replace(small, run_dir=small.run_dir + "-again")
    results(replace(again, generations=2))
    assert results(again) == whole
    assert results(again) == whole, "nothing is left to do"


def test_several_processes_find_the_same(small: EvolveConfig) -> None:
    assert results(replace(small, processes=2, run_dir=small.run_dir + "-two")) == results(small)


def test_another_seed_finds_something_else_and_may_not_go_on_with_this_one(small: EvolveConfig) -> None:
    ours = results(small)
    with pytest.raises(ConfigError, match="another search"):
        evolve(replace(small, seed=4), {})
    assert results(replace(small, seed=4, run_dir=small.run_dir + "-other")) != ours


def test_a_damaged_history_is_said(small: EvolveConfig) -> None:
    evolve(small, {})
    history = Path(small.run_dir) / "history.json"
    history.write_bytes(history.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"history.json is damaged; accepted: another `out`"):
        evolve(small, {})


def test_what_is_written_is_a_policy_that_validated_no_worse_than_the_rule(small: EvolveConfig) -> None:
    path = evolve(small, {"scenarios": ["tiny"]})
    make_policy(str(path))
    training = json.loads(path.read_text())["training"]
    assert training["scenarios"] == ["tiny"] and len(training["validation"]) == 2
    history = json.loads(path.with_name("history.json").read_text())
    assert min(row["loss"] for row in history["validations"]) <= 0.0
    assert [row["generation"] for row in history["validations"]] == [0, 2, 3]


def test_the_search_finds_the_least(small: EvolveConfig) -> None:
    """On a made-up E2E that is least where every number that is searched is 0.5, those of other groups counting nothing."""
    seen: list[Task] = []

    def play(tasks: Iterable[Task]) -> Iterable[Any]:
        for task in tasks:
            seen.append(task)
            genes = np.array(task.genes)
            off = ((genes[search.searched] - 0.5) ** 2).mean()
            noise = np.random.default_rng(task.first).random(task.count)  # the traffic's: the same for all candidates
            yield (1.0 + 10.0 * off) * (1.0 + noise)

    config = replace(small, learn=("keep",), generations=60, population=12, validate_every=10)
    Path(config.run_dir).mkdir()
    search = Search(config, play)
    search.run(lambda best: None)
    found = np.array(search.best["genes"])
    np.testing.assert_allclose(found[search.searched], 0.5, atol=0.05)
    assert np.count_nonzero(found) == len(search.searched) < GENES
    assert {task.split for task in seen} == {"train", "validation"}
    firsts = [task.first for task in seen if task.split == "train"]
    assert len(set(firsts)) == config.generations, "every generation has traces of its own"


def test_by_default_everything_is_searched() -> None:
    assert tuple(composed("evolve", [], "evolve").learn) == GROUPS


def test_nothing_learned_is_the_rule() -> None:
    settings, weights = policy_of(np.zeros(GENES), SETTINGS)
    assert settings == SETTINGS
    assert not any(value for key, value in weights.items() if key != "order_units")
    assert all(unit[-1] == 0.0 for unit in weights["order_units"])


def test_loss_is_nought_for_the_rule_and_rises_with_e2e() -> None:
    rule = np.array([[1.0, 2.0], [30.0, 10.0]])
    assert loss(rule, rule) == 0.0
    assert loss(0.5 * rule, rule) == pytest.approx(np.log(0.5))
    assert loss(rule, rule) < loss(rule * [[1.0, 1.2], [1.0, 1.0]], rule) < loss(np.full((2, 2), np.inf), rule)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"population": 3}, "population is 3"),
        ({"generations": -1}, "generations is -1"),
        ({"traces": 0}, "traces is 0"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"learn": ("orders",)}, "orders"),
        ({"learn": ()}, "learn"),
    ],
)
def test_wrong_values_are_said(small: EvolveConfig, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(small, **change)


def test_the_command(tmp_path: Path) -> None:
    brief = [
        "workload.num_requests=10",
        "generations=1",
        "population=4",
        "traces=1",
        "validation_traces=1",
        "processes=1",
    ]
    command = [sys.executable, "-m", "mmsched_env", "evolve", *brief, "rule={factor: 1e9}", "out=runs/x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    learned = json.loads((tmp_path / "runs/x/best.json").read_text())
    assert learned["settings"]["factor"] == 1e9 and learned["training"]["scenarios"] == ["default-v0"]
    for bad, words in (
        ("scenarios=[swap-thrash,popularity-drift]", "tuned=false"),
        ("rule={no_such: 1}", "no_such"),
        ("rule={factor: nan}", "factor is nan"),
        ("learn=[no_such]", "no_such"),
        ("scenarios=[no-such]", "no-such"),
    ):
        done = subprocess.run([*command, bad], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
