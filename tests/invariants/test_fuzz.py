"""10^5 random sequences of legal and illegal actions over random configurations, all invariants after every step."""

from __future__ import annotations

from typing import Any

import fuzz
import numpy as np
import pytest

SHORT = 16  # configurations
LONG = 100
SEQUENCES = 1000  # per configuration of the long run


@pytest.mark.parametrize("seed", range(SHORT))
def test_random_sequences(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    assert fuzz.play(seed, 32, 16, monkeypatch)["sequences"] >= 32


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + LONG))
def test_many_random_sequences(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """In the environment with the full recount in every tenth configuration only: it takes most of the time."""
    assert fuzz.play(seed, SEQUENCES, 128, monkeypatch, full=seed % 10 == 0)["sequences"] >= SEQUENCES


def test_everything_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequences are worth the name: all that can happen does."""
    seen: Any = sum((fuzz.play(seed, 16, 16, monkeypatch, full=False) for seed in range(100, 116)), fuzz.Counter())
    for name in (
        "illegal",
        "num_loads",
        "num_failed_loads",
        "num_preempted",
        "num_resizes",
        "num_dropped",
        "num_done",
        "drained",
    ):
        assert seen[name] > 20, f"{name}: {seen}"


def test_random_actions_are_legal_and_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    layout = fuzz.Simulation(fuzz.EnvConfig(), 1).layout
    mask = (rng.random((2000, layout.size)) < 0.05).astype(np.int8)
    mask[:, 0] |= ~mask.any(axis=1)
    actions = np.array([fuzz.random_actions(rng, layout, mask) for _ in range(10)])
    legal = np.take_along_axis(mask, np.clip(actions, 0, layout.size - 1).T, axis=1)
    assert 0.85 < legal.mean() < 0.95
    kinds = np.digitize(actions, [1, layout.preempt_at, layout.offload_at])
    assert all((kinds == kind).sum() > 100 for kind in range(4))
