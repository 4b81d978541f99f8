"""The command line as a user runs it: results, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmsched_env import hydra_app

DATA = os.environ.get("MMSCHED_TEST_DATA")
SHORT = ["workload.num_requests=30", "episodes=2", "policies=[fcfs,mect]"]


def mmsched(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsched_env", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_two_evaluations_with_one_seed_write_the_same_bytes(tmp_path: Path) -> None:
    for out in ("a", "b"):
        run = mmsched("evaluate", *SHORT, f"out={out}", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    first, second = ((tmp_path / out / "requests.parquet").read_bytes() for out in ("a", "b"))
    assert first == second


def test_an_evaluation_accounts_for_every_request(tmp_path: Path) -> None:
    run = mmsched("evaluate", *SHORT, "out=x", cwd=tmp_path)
    assert "fcfs: 60 requests arrived, 60 finished, 0 unfinished" in run.stdout
    rows = pq.read_table(tmp_path / "x" / "requests.parquet").to_pandas()
    assert len(rows) == 2 * 2 * 30 and rows.finished.all()
    assert (rows.generated_tokens == rows.output_tokens).all()
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    (scenario,) = summary["scenarios"].values()
    mean = scenario["mean"]["mect"]["mean_e2e_ms"]
    by_episode = rows[rows.policy == "mect"].groupby("episode").e2e_s.mean()
    assert mean == pytest.approx(1e3 * by_episode.mean(), rel=1e-12)
    assert scenario["config"]["workload"]["num_requests"] == 30
    assert len(scenario["profile_hash"]) == 64


def test_multirun_and_scenarios(tmp_path: Path) -> None:
    run = mmsched("evaluate", "-m", *SHORT, "seed=1,2", "out=sweep", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "sweep/0/summary.json").exists() and (tmp_path / "sweep/1/summary.json").exists()
    run = mmsched("evaluate", *SHORT, "scenarios=[default,long-context]", "out=two", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(json.loads((tmp_path / "two/summary.json").read_text())["scenarios"]) == 2


@pytest.mark.skipif(DATA is None, reason="needs the real traces: set MMSCHED_TEST_DATA")
@pytest.mark.parametrize(("kind", "count"), [("arena27", 1500), ("azure2023", 2000)])
def test_real_traces_are_served_to_the_end(tmp_path: Path, kind: str, count: int) -> None:
    assert DATA is not None
    path = {"arena27": "arena27_slora_vtc_prism/arena27_requests.csv", "azure2023": "azure_llm_2023"}[kind]
    more = ["workload.num_requests=2000", "workload.rate_per_s=1"] if kind == "azure2023" else []
    where = f"workload.path={Path(DATA) / 'traces' / path}"
    run = mmsched("evaluate", f"workload={kind}", where, *more, "policies=[mect]", "episodes=1", "out=x", cwd=tmp_path)
    assert f"mect: {count} requests arrived, {count} finished, 0 unfinished" in run.stdout, run.stderr


def test_gpus_and_models_by_name(tmp_path: Path) -> None:
    """``cluster=[...] models=[...]`` in the place of a configuration's name; what is said of a single key still counts."""
    lists = ["cluster=[rtx4090,rtx3090]", "models=[qwen3-8b-q4_k_m,llama-3-8b-q4_k_m]"]
    run = mmsched(
        "evaluate", *lists, "policies=[mect]", "episodes=1", "workload.num_requests=20", "out=x", cwd=tmp_path
    )
    assert "mect: 20 requests arrived, 20 finished, 0 unfinished" in run.stdout, run.stderr
    written = hydra_app.expanded(["cluster.gpu_hosts=[0,1]", *lists, "seed=1"])
    assert written == [
        "cluster.gpus=[rtx4090,rtx3090]",
        "cluster.gpu_hosts=[]",
        "models.names=[qwen3-8b-q4_k_m,llama-3-8b-q4_k_m]",
        "cluster.gpu_hosts=[0,1]",
        "seed=1",
    ]
    assert hydra_app.expanded(["cluster=edge", "-m"]) == ["cluster=edge", "-m"]


BAD = {
    "unknown command": (["fly"], "unknown command 'fly'; accepted: train, evolve, evaluate"),
    "unknown policy": (["evaluate", "policies=[mecd]"], "'mecd' (did you mean 'mect'?); accepted: "),
    "unknown policy setting": (["evaluate", "policies=[{name: mect, gian: 1}]"], "setting of policy mect 'gian'"),
    "policy setting of the wrong type": (["evaluate", "policies=[{name: mect, resize_gain: much}]"], "much"),
    "no policy": (["evaluate", "policies=[]"], "policies is []"),
    "a policy that is no list": (["evaluate", "policies=mect"], "policies is 'mect'; accepted: a list"),
    "a load that is no list": (["evaluate", "loads=0.5"], "loads is 0.5; accepted: a list"),
    "a load that is no number": (["evaluate", "loads=[0.5,much]"], "loads is [0.5, 'much']; accepted: a list"),
    "unknown GPU": (["evaluate", "cluster.gpus=[rtx9090]", "cluster.gpu_hosts=[]"], "gpu profile 'rtx9090'"),
    "unknown model": (["evaluate", "models.names=[llama-9]"], "'llama-9'"),
    "unknown GPU in a list": (["evaluate", "cluster=[rtx9090]"], "gpu profile 'rtx9090'"),
    "unknown scenario": (["evaluate", "scenarios=[nope]"], "unknown scenario 'nope'; accepted:"),
    "unknown group option": (["evaluate", "cluster=nope"], "nope"),
    "unknown key": (["evaluate", "clutser.gpus=[x]"], "clutser"),
    "wrong type": (["evaluate", "limits.queue=many"], "limits.queue is 'many'; accepted: a whole number"),
    "unknown key of a sweep": (["evaluate", "-m", "clutser=1,2"], "Could not override 'clutser'"),
    "unknown group option of a sweep": (
        ["evaluate", "-m", "seed=1,2", "cluster=nope"],
        "Could not find 'cluster/nope'",
    ),
    "out of range": (["evaluate", "workload.rate_per_s=-1"], "workload.rate_per_s"),
    "nan": (["evaluate", "workload.rate_per_s=.nan"], "workload.rate_per_s"),
    "no episodes": (["evaluate", "episodes=0"], "episodes is 0"),
    "settings of a rule that are none": (["evaluate", "policies=[{name: mect, resize_gain: -1}]"], "resize_gain is -1"),
    "no load": (["evaluate", "loads=[]"], "loads is []; accepted: a list"),
    "tuned that is neither": (["evaluate", "tuned=abc"], "tuned is 'abc'; accepted: true or false"),
    "more rows than there is room for": (["evaluate", "limits.queue=100000000"], "limits.queue is 100000000"),
    "a validation line that is none": (["train", "validation_line=nope"], "nope"),
    "seed that is no number": (["evaluate", "seed=a"], "seed is 'a'; accepted: a whole number"),
    "seed that is no whole number": (["evaluate", "seed=1.5"], "seed is 1.5; accepted: a whole number"),
    "policy of no checkpoints": (["evaluate", "policies=[{name: x, checkpoints: []}]"], "checkpoints is []"),
    "policy setting out of range": (["evaluate", "policies=[{name: random, change_share: x}]"], "change_share is 'x'"),
    "unknown device": (["train", "device=gpu"], "device is 'gpu'; accepted: auto, cpu"),
    "imitation that never ends": (["train", "agent.imitation.batch_size=0"], "agent.imitation.batch_size is 0"),
    "missing trace file": (["evaluate", "workload=arena27", "workload.path=none.csv"], "none.csv"),
    "broken trace file": (["evaluate", "workload=arena27", "workload.path=broken.csv"], "broken.csv"),
    "missing checkpoint": (["evaluate", "policies=[none.zip]"], "none.zip"),
    "not a zip of Stable-Baselines3": (["evaluate", "policies=[{name: broken.zip, sb3: true}]"], "broken.zip"),
    "not a checkpoint": (["evaluate", "policies=[broken.zip]"], "broken.zip"),
    "model that fits nowhere": (
        [
            "evaluate",
            "cluster.gpus=[rtx-5060-ti-16gb]",
            "cluster.gpu_hosts=[]",
            "cluster.hosts=[desktop-ddr4]",
            "cluster.kv_swap_fraction=0.99",
        ],
        "fits on no GPU",
    ),
    "wrong agent setting": (["train", "agent.gamma=2"], "agent.gamma is 2"),
    "rounds that are none": (["bench", "rounds=0"], "rounds is 0; accepted: a whole number >= 1"),
    "rounds that are no number": (["bench", "rounds=abc"], "rounds is 'abc'; accepted: a whole number >= 1"),
    "parts that are no list": (["bench", "parts=memory"], "parts is 'memory'; accepted: a list of environment"),
    "unknown experiment": (["train", "experiment=nope"], "nope"),
    "unknown calibrate command": (["calibrate", "guess"], "calibrate guess"),
}


@pytest.mark.parametrize("out", ["broken.csv", "broken.csv/x", "", "null", "[1]"])
@pytest.mark.parametrize("command", ["evaluate", "train", "tune"])
def test_out_must_be_a_folder(command: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text("")
    run = mmsched(command, f"out={out}", cwd=tmp_path)
    assert run.returncode == 2 and f"out is '{out}'" in run.stderr and run.stderr.count("\n") == 1, run.stderr


def test_a_file_behind_a_link_is_written_and_a_device_is_not(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to("there.json")
    asked = ["export-trace", "policy=mect", "workload.num_requests=5"]
    assert mmsched(*asked, "file=link.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "there.json").read_text())
    os.mkfifo(tmp_path / "pipe")
    run = mmsched(*asked, "file=pipe", cwd=tmp_path)
    assert run.returncode == 2 and "file is 'pipe'; accepted: a file" in run.stderr


def test_a_table_names_what_was_asked_for(tmp_path: Path) -> None:
    """Lists in brackets are no markup of the table's."""
    run = mmsched("evaluate", *SHORT, "episodes=1", "models=[llama-3-8b-f16]", "out=x", cwd=tmp_path)
    assert run.returncode == 0 and "models.names=[llama-3-8b-f16]" in run.stdout


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_and_status_2(name: str, tmp_path: Path) -> None:
    arguments, expected = BAD[name]
    (tmp_path / "broken.csv").write_text("arrival_s,model_id,prompt_tokens,output_tokens,req_id\n0.0,1,5,nan,0\n")
    (tmp_path / "broken.zip").write_text("no zip")
    run = mmsched(*arguments, *(["out=out"] if arguments[0] in ("train", "evaluate") else []), cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("mmsched: error: "), run.stderr
    assert expected in lines[0]
    assert not list(tmp_path.glob("out/*.parquet")) and not list(tmp_path.glob("out/**/*.part"))


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["calibrate"], ["catalogue"]])
def test_help(command: list[str], tmp_path: Path) -> None:
    run = mmsched(*command, "--help", cwd=tmp_path)
    assert run.returncode == 0
    assert "mmsched" in run.stdout and "Traceback" not in run.stderr


def test_an_episode_is_exported_for_perfetto(tmp_path: Path) -> None:
    run = mmsched("export-trace", "policy=mect", "workload.num_requests=20", "file=mect.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(json.loads((tmp_path / "mect.json").read_text())["traceEvents"]) > 100
    wrong = mmsched("export-trace", "file=nowhere/mect.json", cwd=tmp_path)
    assert wrong.returncode == 2 and "accepted: a file in a folder that exists" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
