"""The compiled kernel against `tests/reference`, decision by decision, on random clusters, costs, traces and policies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmsched_env.sim import events
from tests.differential.compare import NOT_COMPARED, Mismatch, Report, compare
from tests.differential.scenarios import Scenario, random_scenario

CASES = Path(__file__).parent / "cases"


def difference(scenario: Scenario) -> str | None:
    try:
        compare(scenario)
    except Mismatch as mismatch:
        return str(mismatch)
    return None


def shrink(scenario: Scenario, what: str) -> tuple[Scenario, str]:
    """The same scenario with the fewest first requests that still makes the two disagree, on whatever it is."""
    for count in range(1, len(scenario.trace["arrival_s"])):
        smaller = scenario.first_requests(count)
        now = difference(smaller)
        if now is not None:
            return smaller, now
    return scenario, what


def save_case(scenario: Scenario, what: str) -> str:
    """Save the shrunk scenario for good. Returns a line about it."""
    smaller, now = shrink(scenario, what)
    path = CASES / f"seed{scenario.seed}.json"
    smaller.save(path, now)
    return f"seed {scenario.seed}: {what}; as {path.name} with {len(smaller.trace['arrival_s'])} requests: {now}"


def run_many(seeds: Iterable[int], folder: Path) -> Report:
    """Compare all, report, and fail with every disagreement."""
    total, failures, started = Report(), [], time.perf_counter()
    for seed in seeds:
        scenario = random_scenario(seed)
        try:
            total.add(compare(scenario))
        except Mismatch as mismatch:
            failures.append(save_case(scenario, str(mismatch)))
    summary = vars(total) | {"failures": failures}
    (folder / "differential.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"{total.scenarios} scenarios, {total.decisions} decisions, {total.events} events agree; largest relative time "
        f"difference {total.largest:.1e}; {time.perf_counter() - started:.0f} s; {folder}/differential.json"
    )
    assert not failures, "\n".join(failures)
    return total


def test_kernel_agrees_with_the_reference(tmp_path: Path) -> None:
    compared = run_many(range(300), tmp_path).kinds
    assert compared["load_failed"] > 20  # R31 is really reached
    assert set(compared) == set(events.NAMES) - set(NOT_COMPARED)


@pytest.mark.slow
def test_kernel_agrees_with_the_reference_at_length(tmp_path: Path) -> None:
    run_many(range(300, 5300), tmp_path)


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_cases_that_once_disagreed(path: Path) -> None:
    scenario = Scenario.load(path)
    what = difference(scenario)
    assert what is None, what
