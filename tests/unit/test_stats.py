"""Statistics of comparisons, against what they must give by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmsched_env.evaluation.stats import (
    holm,
    interquartile_mean,
    p_value,
    paired_difference,
    probability_of_improvement,
)

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(10, 3, 40)
BETTER = REFERENCE + RNG.normal(-1.0, 1.0, 40)


def test_pairing_takes_out_what_the_traces_share() -> None:
    d = paired_difference(BETTER, REFERENCE)
    assert d.mean == pytest.approx((BETTER - REFERENCE).mean()) and d.low < d.mean < d.high < 0
    alone = paired_difference(BETTER, np.full(40, REFERENCE.mean()))
    assert alone.high - alone.low > 2 * (d.high - d.low)


def test_members_that_differ_widen_the_interval() -> None:
    same = np.stack([BETTER] * 5)
    spread = same + np.array([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None]
    one, three, five = (paired_difference(x, REFERENCE) for x in (BETTER, same, spread))
    assert one.mean == pytest.approx(three.mean) == pytest.approx(five.mean)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.15)
    assert five.high - five.low > 2 * (three.high - three.low)


def test_coverage_is_what_it_says() -> None:
    """Of 300 experiments with 25 traces the 95 % interval holds the truth in about 95 %."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        d = paired_difference(rng.normal(0.5, 1, 25), np.zeros(25))
        hits += d.low <= 0.5 <= d.high
    assert 0.90 <= hits / 300 <= 0.985


def test_equal_and_missing_values() -> None:
    d = paired_difference(REFERENCE, REFERENCE)
    assert (d.mean, d.low, d.high) == (0, 0, 0) and p_value(REFERENCE, REFERENCE) == 1
    holes = REFERENCE.copy()
    holes[:3] = np.nan
    assert paired_difference(BETTER, holes).mean == pytest.approx((BETTER - REFERENCE)[3:].mean())
    assert np.isnan(paired_difference([1.0], [2.0]).low)


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 1e9]) == pytest.approx(np.mean([3, 4, 5, 6]))


def test_probability_of_improvement() -> None:
    assert probability_of_improvement([1, 1, 1, 1], [2, 2, 0, 1]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert probability_of_improvement([[0, 0], [3, 3]], [1, 1]) == pytest.approx(0.5)


def test_p_values_are_even_without_a_difference() -> None:
    rng = np.random.default_rng(2)
    low = sum(p_value(rng.normal(0, 1, 12), np.zeros(12)) < 0.1 for _ in range(200))
    assert 8 <= low <= 34  # about 20
    assert p_value(BETTER, REFERENCE) < 0.001


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1]) and holm([0.9, 0.8]) == [1.0, 1.0]
