"""The kernel with a deliberate fault fails the tests, whichever fault it is.

Each fault is put into a copy of the package, which a part of the tests is then run against, in a process of its own
with its own compiled code: about a minute each. MMSCHED_MUTANTS_TABLE=path writes which test caught which.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
COPIED = ("mmsched_env", "tests", "pyproject.toml")
SUITE = (
    "tests/golden/test_golden.py",
    "tests/invariants/test_by_hand.py",
    "tests/invariants/test_fuzz.py",
    "tests/invariants/test_invariants.py",
    "tests/mutants/few_scenarios.py",
    "tests/unit/test_observation_image.py",
)
CPU_S = 900
PROBE = """
import pathlib, sys
import mmsched_env.core
import mmsched_env.sim.kernel.step
for module in (mmsched_env, mmsched_env.sim.kernel.step):
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), f"{module.__file__} is not in {sys.argv[1]}"
"""


def copy_with(fault: Fault | None, folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    if fault is not None:
        path = folder / "mmsched_env" / "sim" / "kernel" / fault.file
        text = path.read_text()
        assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} times: {fault.old}"
        path.write_text(text.replace(fault.old, fault.new))


def limit_cpu() -> None:
    """Processor time, not wall clock: a crowded machine would make every fault look like one that hangs."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 10))


def failures(folder: Path) -> list[str]:
    """First test of every file that fails on the copy."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests" / "mutants")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "NUMBA_OPT": "1",  # compiles in less time
    }
    subprocess.run([sys.executable, "-c", PROBE, str(folder)], check=True, env=environment, cwd=folder)
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "--tb=no", "-rfE", "-p", "one_failure_a_file", *SUITE]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, preexec_fn=limit_cpu, check=False
    )
    if done.returncode == -signal.SIGXCPU:
        return ["hangs"]
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return re.findall(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\S+)", done.stdout, re.MULTILINE)


def row(fault: Fault, caught: list[str]) -> str:
    return f"| {fault.name} | {fault.what} | {'; '.join(caught)} |\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_every_fault_can_be_put_in() -> None:
    """Its text stands in the kernel exactly once."""
    assert len(FAULTS) >= 12 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        text = (ROOT / "mmsched_env" / "sim" / "kernel" / fault.file).read_text()
        assert text.count(fault.old) == 1, f"{fault.name}: {fault.file} has {text.count(fault.old)} times: {fault.old}"


@pytest.mark.slow
def test_without_a_fault_all_is_well(folder: Path) -> None:
    copy_with(None, folder)
    assert not failures(folder)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_caught(folder: Path, fault: Fault) -> None:
    copy_with(fault, folder)
    caught = failures(folder)
    table = os.environ.get("MMSCHED_MUTANTS_TABLE")
    if table:
        with Path(table).open("a") as file:
            file.write(row(fault, caught))
    assert caught, f"{fault.what}: no test notices"
