"""The formulas against their textbook limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from formulas import cyclic_polling, erlang_c, patient_polling, pollaczek_khinchine


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_a_patient_server_that_switches_at_once_is_m_g_1(load: float) -> None:
    expected = pollaczek_khinchine(load, 1.0, 2.0)
    assert patient_polling(load, 1.0, 2.0, lambda s: 1 / (1 + s), 1e-9) == pytest.approx(expected, rel=1e-6)


def test_a_patient_server_that_is_never_idle_is_the_cyclic_one() -> None:
    cyclic = cyclic_polling(np.array([0.4, 0.4]), np.ones(2), np.ones(2), 2 * 40.0) / 0.8
    assert patient_polling(0.8, 1.0, 1.0, lambda s: math.exp(-s), 40.0) == pytest.approx(cyclic, rel=1e-9)


def test_erlang_c_of_one_server_is_its_load() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
