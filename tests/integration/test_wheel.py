"""The wheel holds everything, and works from another directory without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source") / "mmsched"  # a build leaves folders behind that the next one would pack
    junk = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=junk)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_code_configuration_and_profiles_under_one_root(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert all(name.startswith(("mmsched_env/", "mmsched_env-")) for name in names)
    shipped = ("agents", "baselines", "benchmarks", "calibration", "conf", "mmsched_env")
    for folder in shipped:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".csv") and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT)
                wanted = inside.as_posix() if folder == "mmsched_env" else f"mmsched_env/{inside.as_posix()}"
                assert wanted in names, wanted
    assert not any("tests/" in name for name in names)


@pytest.mark.slow
def test_train_and_evaluate_from_the_installed_wheel_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """In an empty venv with the tested versions: train the smoke experiment, evaluate its checkpoint beside MECT."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True, timeout=900)
    subprocess.run([*pip, f"{wheel}[all]"], check=True, timeout=900)
    away = tmp_path / "away"
    away.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def mmsched(*arguments: str) -> str:
        command = [str(tmp_path / "venv/bin/mmsched"), *arguments]
        run = subprocess.run(
            command, cwd=away, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    mmsched("train", "experiment=smoke", "out=smoke")
    table = mmsched("evaluate", "policies=[mect,smoke/latest.zip]", "episodes=2", "workload.num_requests=30")
    assert "smoke/latest.zip: 60 requests arrived, 60 finished" in table
