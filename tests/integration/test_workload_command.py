"""`mmsched workload show|fit|convert` and the suite of scenarios, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_module

from mmsched_env import hydra_app
from mmsched_env.workload import GeneratorConfig, source_from
from mmsched_env.workload.load import capacity_of
from mmsched_env.workload.splits import SEEDS

REPOSITORY = Path(__file__).parents[2]
SUITE = (
    "steady", "swap-thrash", "head-of-line", "offload-cliff", "interactive-and-batch", "bursty-code", "popularity-drift",
    "long-context",
    "model-zoo", "unequal-gpus", "rag-pairs", "edge-box", "paper-testbed", "fleet",
)  # fmt: skip


def mmsched(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsched_env", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_show_prints_and_draws(tmp_path: Path) -> None:
    run = mmsched("workload", "show", "scenario=edge-box", "out=edge.png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    env = hydra_app.env_config_of(hydra_app.composed("workloads", ["scenario=edge-box"], "test"))
    trace = env.workload.sample(0, env.models.names)
    rate = len(trace) / (trace.arrival_s[-1] - trace.arrival_s[0])
    assert re.search(rf"rate_per_s +│ {rate:.6g}", run.stdout)
    assert (tmp_path / "edge.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["edge.png"]


def test_convert_and_fit_round_trip(tmp_path: Path) -> None:
    changes = ["workload.num_requests=400", "workload.arrivals=gamma", "workload.cv=2.0"]
    for out in ("a.csv", "a.parquet"):
        run = mmsched("workload", "convert", *changes, f"out={out}", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        env = hydra_app.env_config_of(hydra_app.composed("workloads", changes, "test"))
        made = env.workload.sample(0, env.models.names)
        read = source_from({"kind": "file", "path": str(tmp_path / out)}).sample(0, env.models.names)
        assert (read.arrival_s == made.arrival_s).all() and (read.predicted_tokens == made.predicted_tokens).all()
    run = mmsched("workload", "fit", "workload=file", "workload.path=a.csv", "draws=20", "out=mine.yaml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    settings = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert settings.pop("defaults") == ["generator", "_self_"]
    fitted = source_from({"kind": "generator", **settings})
    assert isinstance(fitted, GeneratorConfig)
    assert fitted.rate_per_s == pytest.approx(400 / (made.arrival_s[-1] - made.arrival_s[0]), rel=1e-3)
    (tmp_path / "own" / "workload").mkdir(parents=True)
    (tmp_path / "mine.yaml").rename(tmp_path / "own" / "workload" / "mine.yaml")
    run = mmsched(
        "evaluate", "--config-dir", "own", "workload=mine", "workload.num_requests=5", "policies=[mect]", "episodes=1",
        "out=x", cwd=tmp_path,
    )  # fmt: skip
    assert "mect: 5 requests arrived, 5 finished" in run.stdout, run.stderr


BAD = {
    "no such command": (["workload", "shwo"], "unknown command 'workload shwo'; accepted: show, fit, convert"),
    "unknown scenario": (["workload", "show", "scenario=nope"], "nope"),
    "unknown key": (["workload", "show", "workload.rate=2"], "workload.rate"),
    "out of range": (["workload", "show", "workload.rho=-1"], "workload.rho is -1"),
    "no folder": (["workload", "show", "out=none/x.png"], "out is 'none/x.png'; accepted: a file in a folder that exists"),
    "no picture": (["workload", "show", "out=x.docx"], "out is 'x.docx'; accepted: a file ending in"),
    "no format": (["workload", "convert", "out=x.txt"], "out is 'x.txt'; accepted: a file ending in .csv"),
    "no out": (["workload", "convert"], "out is None; accepted"),
    "missing file": (["workload", "convert", "workload=mooncake", "workload.path=no.jsonl", "out=x.csv"], "no.jsonl"),
    "too short to fit": (["workload", "fit", "workload.num_requests=10"], "at least 100"),
    "no such split": (["workload", "show", "split=exam"], "unknown split 'exam'; accepted: test, train, validation"),
    "seed beyond the split": (["evaluate", "seed=999995", "episodes=10"], "seed + episodes"),
    "scenarios twice": (["evaluate", "scenario=steady", "scenarios=all"], "accepted: one of them"),
    "no scenarios": (["evaluate", "scenarios=[]"], "scenarios is []"),
    "unknown version": (["evaluate", "scenarios=[steady-v9]"], "unknown scenario 'steady-v9'"),
    "requests too long for any GPU": (
        ["evaluate", "scenario=edge-box", "workload.rho=0.5", "workload.sessions.turns=1", "workload.prompt.max=9000000",
         "workload.prompt.median=8000000"], "fit on no GPU at any level"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_and_status_2(name: str, tmp_path: Path) -> None:
    arguments, expected = BAD[name]
    out = ["out=out"] if arguments[0] == "evaluate" else []
    run = mmsched(*arguments, *out, cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("mmsched: error: ") and expected in lines[0], run.stderr
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.png"))


def test_help(tmp_path: Path) -> None:
    run = mmsched("workload", "--help", cwd=tmp_path)
    assert run.returncode == 0 and "convert" in run.stdout


def test_the_suite_is_complete_and_documented() -> None:
    page = (REPOSITORY / "docs" / "scenarios.md").read_text()
    names = hydra_app.scenario_names()
    assert set(SUITE) | {"default"} == set(names)
    assert hydra_app.scenario_ids() == [f"{name}-v0" for name in names]
    for name in SUITE:
        section = page.split(f"\n## {name}-v0\n")[1].split("\n## ")[0]
        for heading in ("**Stresses**", "**Complaint**", "**Setting**"):
            assert heading in section, f"{name}: {heading}"


@pytest.mark.parametrize("name", SUITE)
def test_a_scenario_offers_the_load_it_says(name: str) -> None:
    with initialize_config_module(hydra_app.CONF, version_base="1.3"):
        config = compose("evaluate", overrides=[f"scenario={name}"])
        swept = compose("evaluate", overrides=[f"scenario={name}", "workload.rho=1.1"])
    env, more = hydra_app.env_config_of(config), hydra_app.env_config_of(swept)
    capacity = capacity_of(env.workload, env)
    if env.workload.rho is not None:
        assert env.workload.rate_per_s == pytest.approx(env.workload.rho * capacity)
    assert more.workload.rate_per_s == pytest.approx(1.1 * capacity)
    assert env.workload.sample(0, env.models.names).model.max() < len(env.models.names)


def test_several_scenarios_give_one_table(tmp_path: Path) -> None:
    run = mmsched(
        "evaluate", "scenarios=[swap-thrash-v0,steady]", "policies=[fcfs,mect]", "episodes=2", "workload.num_requests=20",
        "out=x", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("┏") == 1
    results = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert results["split"] == "test"
    label = "swap-thrash-v0 workload.num_requests=20"
    mean = results["scenarios"][label]["mean"]["mect"]["mean_e2e_ms"]
    row = next(line for line in run.stdout.splitlines() if "mect" in line)
    assert f"{mean:,.0f}" in row


def test_validation_seeds_are_other_traces(tmp_path: Path) -> None:
    found = {}
    for split in ("test", "validation"):
        run = mmsched(
            "evaluate", "scenarios=[steady]", "policies=[fcfs]", "episodes=1", "workload.num_requests=20", f"split={split}",
            f"out={split}", cwd=tmp_path,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        results = json.loads((tmp_path / split / "summary.json").read_text())["scenarios"]
        found[split] = next(iter(results.values()))["mean"]["fcfs"]["mean_e2e_ms"]
    assert found["test"] != found["validation"]


def test_environments_train_on_training_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsched_env.config import EnvConfig
    from mmsched_env.env import draw_episode

    class Low(np.random.Generator):
        """Draws a test seed twice, then a training seed."""

        values = iter((5, 10**6 + 5, 10**7))

        def integers(self, *_: object, **__: object) -> int:  # type: ignore[override]
            return next(self.values)

    _, seed = draw_episode(EnvConfig(), Low(np.random.PCG64(0)))
    assert seed == 10**7 and seed in SEEDS["train"]
