"""The differential test on a few scenarios, a test each: run by test_mutants.py only."""

from __future__ import annotations

import pytest

from tests.differential.compare import compare
from tests.differential.scenarios import random_scenario


@pytest.mark.parametrize("seed", range(60))
def test_differential(seed: int) -> None:
    compare(random_scenario(seed))
