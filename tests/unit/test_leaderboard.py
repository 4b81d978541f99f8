"""The leaderboard: who is compared with whom, on which traces, and what the page says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.leaderboard import leaderboard, page, rows_of


def part(**policies: list[float]) -> dict[str, Any]:
    """A scenario's figures from the E2E of each policy's traces in seconds; the bound is 5 s."""
    count = max(len(seconds) for seconds in policies.values())
    figures = {
        name: {
            "weighted_mean_e2e_ms": [[1e3 * s for s in seconds]],
            "slo_attainment": [[0.5] * len(seconds)],
            "loads_per_100": [[3.0] * len(seconds)],
        }
        for name, seconds in policies.items()
    }
    return {
        "mean": dict.fromkeys(policies),
        "per_episode": figures,
        "entries": {name: {"name": name} | ({"knob": 1} if name == "slow" else {}) for name in policies},
        "lower_bound_ms": [5e3] * count,
        "decision_us": {name: {"p50": 20.0, "p99": 40.0} for name in policies},
    }


def run(**scenarios: dict[str, Any]) -> dict[str, Any]:
    facts = {"split": "test", "seed": 0, "warmup": 0.0, "command": "mmsched evaluate ...", "machine": "a machine"}
    return {**facts, "processor_s": 1.0, "revision": {"mmsched_env": "0", "git": None}, "scenarios": scenarios}


RULES = run(
    one=part(composite=[10.0, 12.0, 8.0, 10.0], slow=[20.0, 24.0, 16.0, 20.0]),
    two=part(composite=[6.0, 6.0, 6.0, 6.0], slow=[6.0, 6.0, 6.0, 6.0]),
)


def test_policies_are_compared_on_the_traces_that_both_have_met() -> None:
    ahead = run(one=part(planner=[9.0, 11.0]))
    rows = rows_of([RULES, ahead], "composite")["one"]
    assert list(rows) == ["planner", "composite", "slow"], "the best first"
    assert rows["planner"].against is not None and rows["planner"].against.mean == pytest.approx(-1000.0)
    assert rows["planner"].ratio == pytest.approx(10 / 11) and rows["planner"].p_better == 1.0
    assert rows["slow"].ratio == pytest.approx(2.0) and rows["slow"].p_better == 0.0
    assert rows["composite"].against is None and rows["composite"].gap == pytest.approx(1.0)


def test_the_best_rule_of_each_scenario_is_neither_learned_nor_looks_ahead() -> None:
    rules = run(
        one=part(composite=[10.0, 12.0], mect=[20.0, 24.0], planner=[9.0, 9.0], learned=[8.0, 8.0]),
        two=part(composite=[7.0, 7.0], mect=[6.0, 6.0], planner=[3.0, 3.0], learned=[3.0, 6.0]),
    )
    rows = rows_of([rules], "best-rule")
    assert rows["one"]["composite"].against is None and rows["one"]["learned"].ratio == pytest.approx(8 / 11)
    assert rows["two"]["mect"].against is None and rows["two"]["learned"].ratio == pytest.approx(0.75)
    few = run(one=part(srpt=[5.0]))
    assert rows_of([rules, few], "best-rule")["one"]["composite"].against is None, "of those with the most traces"
    assert "| learned |" in page([rules], "best-rule")
    with pytest.raises(ConfigError, match="policy '' is in no run"):
        rows_of([run(one=part(learned=[1.0, 2.0]))], "best-rule")


def test_p_values_are_corrected_for_the_number_of_scenarios() -> None:
    one_alone = rows_of([run(one=RULES["scenarios"]["one"])], "composite")["one"]["slow"].p
    assert rows_of([RULES], "composite")["one"]["slow"].p == pytest.approx(2 * one_alone)


def test_the_page_names_commands_and_every_policy() -> None:
    text = page([RULES], "composite")
    assert "mmsched evaluate ..." in text and "a machine" in text and "in some scenario at least: slow." in text
    assert "| slow | 1.414 |" in text, "the geometric mean of 2 and 1"
    assert text.count("| slow |") == 3 and text.count("\n## ") == 3


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    other = copy.deepcopy(RULES) | {"seed": 1}
    with pytest.raises(ConfigError, match="same split, seed"):
        rows_of([RULES, other], "composite")
    with pytest.raises(ConfigError, match="a policy is in two runs of one"):
        rows_of([RULES, RULES], "composite")
    with pytest.raises(ConfigError, match="'mect' is in no run of one"):
        rows_of([RULES], "mect")
    (tmp_path / "summary.json").write_text(json.dumps({"scenarios": {}}))
    with pytest.raises(ConfigError, match="has no 'command'"):
        leaderboard([str(tmp_path)])
