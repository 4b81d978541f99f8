"""A second device by RPC: what is missing is said, and nothing is built twice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration.measure import build, command
from mmsched_env.calibration.measure.launchers import RPC_SERVER, Binary
from mmsched_env.errors import ConfigError


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


def test_what_is_built_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"llama.cpp-{build.VERSION}" / "build" / "bin"
    server = program(folder / build.SERVER)
    program(folder / RPC_SERVER)
    monkeypatch.setattr(subprocess, "run", lambda *args, **settings: pytest.fail("something was run"))
    assert build.built(tmp_path) == server


def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("cmake", "ninja") else f"/usr/bin/{name}")
    with pytest.raises(ConfigError, match="needs cmake, ninja; accepted: install them, or server="):
        build.built(tmp_path)


def test_no_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**8))
    with pytest.raises(ConfigError, match=r"building llama.cpp needs 3 GB, 0.1 GB are free"):
        build.built(tmp_path)


def test_a_step_that_fails_shows_its_last_line_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def fail(steps: list[str], stdout: Any, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        stdout.write(b"Collecting\nERROR: No matching distribution\n")
        stdout.flush()
        return subprocess.CompletedProcess(steps, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ConfigError, match=r"failed: ERROR: No matching distribution; see .*build.log") as caught:
        build.built(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_server_without_rpc_is_refused(tmp_path: Path) -> None:
    server = program(tmp_path / build.SERVER)
    with pytest.raises(ConfigError, match=f"rpc= needs .*{RPC_SERVER}; accepted: a server= that was built"):
        Binary(str(server), [0], tmp_path / "log", rpc=[0])
    with pytest.raises(ConfigError, match=r"rpc is \[9999\]; accepted: of"):
        command.main(["rpc=[9999]", f"out={tmp_path}/out"])
