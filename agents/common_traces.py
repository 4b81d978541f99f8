"""Input-dependent baselines (Mao and others, ICLR 2019; Decima, SIGCOMM 2019): what the traffic did to everyone is nobody's merit.

Environments of a group play the same traces, each with decisions of its own. What their advantages at one time of a trace have in
common is the traffic that came after it, which no value of the observation can foresee; the mean over the others, which does
not depend on a decision of one's own, is taken off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def input_dependent_baseline(advantages: Floats, episodes: NDArray[np.int64], times_s: Floats, group: int) -> Floats:
    """Mean advantage of the others of each environment's group at the same time of the same trace, (steps, N).

    Parameters
    ----------
    advantages
        (steps, N); environments ``group * g`` to ``group * (g + 1) - 1`` play the same traces.
    episodes
        (steps, N): how many traces the environment had finished.
    times_s
        (steps, N): simulated seconds at the decision, not falling within an episode.
    group
        Environments in a group; N is a multiple of it.

    Returns
    -------
    Linear between two decisions of another environment; those that made no decision of that trace before or none after it do not
    count, and where nobody does the baseline is 0.
    """
    total = np.zeros_like(advantages)
    count = np.zeros(advantages.shape, np.int64)
    for one in range(advantages.shape[1]):
        first = one // group * group
        for other in range(first, first + group):
            if other != one:
                pair = [one, other]
                rows, values = _at_the_same_times(advantages[:, other], episodes[:, pair], times_s[:, pair])
                total[rows, one] += values
                count[rows, one] += 1
    return total / np.maximum(count, 1)


def _at_the_same_times(
    advantages: Floats, episodes: NDArray[np.int64], times_s: Floats
) -> tuple[NDArray[np.int64], Floats]:
    """Steps (n,) of the first environment that the second one's decisions on the same trace enclose, and the second one's advantage (n,)
    then; `episodes` and `times_s` (steps, 2) of both, `advantages` (steps,) of the second."""
    rows, values = [], []
    for episode in np.intersect1d(episodes[:, 0], episodes[:, 1]):
        here, there = np.flatnonzero(episodes[:, 0] == episode), episodes[:, 1] == episode
        when, seen = times_s[here, 0], times_s[there, 1]
        enclosed = (when >= seen[0]) & (when <= seen[-1])
        rows.append(here[enclosed])
        values.append(np.interp(when[enclosed], seen, advantages[there]))
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(rows), np.concatenate(values)
