"""What counts as the measured work, and what as somebody else's."""

from __future__ import annotations

import os

import pytest

from mmsched_env.calibration.measure import disturbance
from mmsched_env.calibration.measure.disturbance import TICK, Watch

OWN = os.getpid()


@pytest.mark.parametrize(
    ("before", "after", "busy", "foreign"),
    [
        ({OWN: 50}, {OWN: 60, 7: 90}, 100, 0.0),  # a server that the sample started
        ({OWN: 50, 7: 400}, {OWN: 60}, 10, 0.0),  # one that it ended: what that had used before is not taken off
        ({OWN: 50, 7: 400}, {OWN: 60, 7: 410}, 70, 50.0),  # somebody else's 50 ticks
    ],
)
def test_processes_that_start_or_end_within_a_sample_are_its_own(
    before: dict[int, int], after: dict[int, int], busy: int, foreign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, machine = dict(before), [1000, 1000 + busy]
    monkeypatch.setattr(disturbance, "_own_ticks", lambda pid: used.get(pid, 0))
    monkeypatch.setattr(disturbance, "_machine_ticks", lambda: (machine.pop(0), 0))
    watch = Watch(lambda: [pid for pid in used if pid != OWN])
    used.clear()
    used.update(after)
    found = watch.stop()
    assert found.foreign_cores * found.seconds * TICK == pytest.approx(foreign)
