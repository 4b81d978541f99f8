"""Runs in files: read back as they were, and the shipped ones give the shipped reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration.replay import command, compare, kept, plots
from mmsched_env.calibration.replay.real import Operation
from mmsched_env.calibration.replay.scenarios import SCENARIOS
from mmsched_env.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "replay"
SHIPPED = sorted(path.name for path in DOCS.iterdir() if path.is_dir())


def settings_of(folder: Path) -> command.ReplayConfig:
    """What the runs of a folder were made with; a scenario may have several, named after it."""
    scenario = next(name for name in SCENARIOS if folder.name.startswith(name))
    runs = [path.stem.removeprefix("real-").rsplit("-", 1)[0] for path in folder.glob("real-*.npz")]
    first = SCENARIOS[scenario].policy
    policies = (first, *sorted(set(runs) - {first}))
    others = min((runs.count(policy) for policy in policies[1:]), default=1)
    return command.ReplayConfig(scenario, policies=policies, repeats=runs.count(first), others=others, out=str(folder))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_runs_give_the_shipped_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever changes a simulated time changes these figures: the reports are then made again, not edited."""
    for draw in ("scatter", "timelines"):
        monkeypatch.setattr(plots, draw, lambda *args: None)
    folder = Path(shutil.copytree(DOCS / name, tmp_path / name))
    assert command.compared(settings_of(folder), folder) == (DOCS / name / "report.md").read_text()
    made, shipped = (dict(figures(json.loads((path / "figures.json").read_text()))) for path in (folder, DOCS / name))
    # not to the last bit: processors add up a mean in another order
    assert list(made) == list(shipped)
    assert made == pytest.approx(shipped, rel=1e-9)


def figures(of: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Every number in what a JSON file holds, and where it stands."""
    if isinstance(of, dict | list):
        for key, value in of.items() if isinstance(of, dict) else enumerate(of):
            yield from figures(value, f"{where}/{key}")
    else:
        yield where, of


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = min((DOCS / SHIPPED[0]).glob("real-*.npz"))
    run = kept.read(path)
    assert len(run.decisions) >= len(run.records)
    assert all(a.after <= b.after for a, b in zip(run.decisions, run.decisions[1:], strict=False))
    run.operations.append(Operation("restore", 1, 5, 2.0, 0.25, 4096))
    kept.write(tmp_path / "again.npz", run)
    again = kept.read(tmp_path / "again.npz")
    assert (again.decisions, again.operations, again.summary) == (run.decisions, run.operations, run.summary)
    np.testing.assert_array_equal(again.records, run.records)
    np.testing.assert_array_equal(again.log, run.log)
    assert [file.name for file in tmp_path.iterdir()] == ["again.npz"]
    assert compare.agreement(run.decisions, again.decisions) == 1.0


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half of one"])
def test_another_file_is_no_run(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "real-mect-0.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no run; accepted: a file that calibrate replay wrote") as caught:
        kept.read(path)
    assert "\n" not in str(caught.value)
