"""`mmsched report`: one page that needs nothing else, and what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmsched_env.reporting.figures import per_group
from mmsched_env.reporting.run import Run, read_run
from mmsched_env.reporting.timelines import play

POLICIES = ("mect", "fcfs", "preemptive")


def mmsched(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsched_env", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluation")
    asked = [f"policies=[{','.join(POLICIES)}]", "workload.num_requests=25", "episodes=2", "out=run"]
    done = mmsched("evaluate", *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    return read_run(folder / "run")


@pytest.fixture(scope="module")
def page(run: Run) -> Path:
    done = mmsched("report", str(run.folder), cwd=run.folder)
    assert done.returncode == 0, done.stderr
    return run.folder / "report" / "report.html"


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text()
    body = text[text.index("<body>") :]
    assert not re.search(r'(?:src|href)="(?!data:|#)', body)
    assert body.count("data:image/svg+xml;base64,") == 5
    for policy in POLICIES:
        assert f"<td>{policy}</td>" in body


def test_pictures_lie_beside_it(page: Path) -> None:
    pictures = sorted(path.name for path in page.parent.glob("*.png"))
    assert len(pictures) == 5 + 2
    assert all(path.read_bytes()[1:4] == b"PNG" for path in page.parent.glob("*.png"))


def test_the_same_run_gives_the_same_page(run: Run, page: Path, tmp_path: Path) -> None:
    assert mmsched("report", str(run.folder), f"--out={tmp_path}", cwd=tmp_path).returncode == 0
    assert (tmp_path / "report.html").read_bytes() == page.read_bytes()


def test_policies_keep_their_order(run: Run) -> None:
    assert run.policies == list(POLICIES)


def test_an_episode_played_again_is_the_one_evaluated(run: Run) -> None:
    (scenario,) = run.scenarios
    for one in play(run, scenario, run.policies, episode=1):
        rows = run.of(scenario, one.policy)
        expected = rows[rows["episode"] == 1]["e2e_s"].to_numpy()
        records = one.simulation.episode_requests(0)
        assert np.array_equal(records["finish_s"] - records["arrival_s"], expected)


def test_groups_add_up(run: Run) -> None:
    (scenario,) = run.scenarios
    table = per_group(run, scenario, "model")
    assert table.groupby("policy")["requests"].sum().tolist() == [50, 50, 50]


def test_bad_input_is_one_line(run: Run, tmp_path: Path) -> None:
    damaged, old = tmp_path / "damaged", tmp_path / "old"
    for folder in (damaged, old):
        shutil.copytree(run.folder, folder)
    (damaged / "requests.parquet").write_bytes(b"PAR1")
    summary = json.loads((old / "summary.json").read_text())
    del summary["policies"]
    (old / "summary.json").write_text(json.dumps(summary))
    for folder, words in ((tmp_path, "has no requests.parquet"), (damaged, "is damaged"), (old, "has no 'policies'")):
        done = mmsched("report", str(folder), cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_a_browser_draws_it(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    command = [browser, "--headless", *quiet.split(), f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "Uncaught" not in done.stderr
    assert "main-svg" in done.stdout, "the timelines are not drawn"
    assert done.stdout.count('class="trace bars"') > 5


@pytest.mark.parametrize("policies", [["random"], ["random", "fcfs"]])
def test_policies_that_finish_nothing_have_a_page(policies: list[str], tmp_path: Path) -> None:
    """Cut off after five decisions; no table or picture has a figure to show, and none fails for it."""
    short = ["workload.num_requests=25", "episodes=2", "sim.max_steps=5", "out=run"]
    assert mmsched("evaluate", f"policies=[{','.join(policies)}]", *short, cwd=tmp_path).returncode == 0
    done = mmsched("report", "run", cwd=tmp_path)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    text = (tmp_path / "run/report/report.html").read_text()
    assert all(f"<td>{policy}</td>" in text for policy in policies)
