"""Two measurements of one box: what their spreads explain, and what they do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration.measure import again, command, profiles, results
from mmsched_env.calibration.measure.rows import figures, rows
from mmsched_env.costmodel.profile import PROFILES
from mmsched_env.errors import ConfigError

SHIPPED = PROFILES.parent / "measured" / "amd-epyc-zen4-1t"
COMMON = {"gpu": "none (CPU)", "num_gpus": 0, "engine": "llama.cpp CPU", "source": "a test"}


def measured(folder: Path, slower: float) -> Path:
    """The shipped measurement on a machine that decodes slower."""
    header, samples, _ = results.read(SHIPPED / results.NAME)
    kept = results.Results(folder, header)
    for sample in samples:
        factor = slower if sample.point.operation == "decode" else 1.0
        kept.add(dataclasses.replace(sample, seconds=sample.seconds * factor))
    found = figures(kept.samples)
    profiles.write(folder, profiles.Device("box", None), rows(found, COMMON, {}), found, "a test")
    return folder


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.os, "fsync", lambda descriptor: None)


def test_a_measurement_agrees_with_itself(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    lines = again.compared(measured(tmp_path / "a", 1.0), measured(tmp_path / "b", 1.0)).splitlines()
    assert not any(line.endswith("apart") for line in lines)
    assert "median 0.0%; largest +0.0%" in lines[-1]


def test_a_slower_machine_is_noticed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    text = again.compared(measured(tmp_path / "a", 1.5), measured(tmp_path / "b", 1.0))
    apart = [line for line in text.splitlines() if line.endswith("apart")]
    assert any(line.startswith("read.q8_0") and "-33.3%" in line for line in apart)
    assert not any(line.startswith(("load", "save", "vocab_s")) for line in apart)
    assert "largest +50.0%" in text


def test_a_folder_without_a_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no measurement; accepted: the out= of an earlier one"):
        command.main([f"against={tmp_path}", f"out={tmp_path}/out"])
