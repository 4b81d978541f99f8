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
    for first in range(0, advantages.shape[1], group):
        members = range(first, first + group)
        for one in members:
            for other in members:
                if other == one:
                    continue
                for episode in np.intersect1d(episodes[:, one], episodes[:, other]):
                    here = np.flatnonzero(episodes[:, one] == episode)
                    there = episodes[:, other] == episode
                    when, seen = times_s[here, one], times_s[there, other]
                    here, when = here[inside := (when >= seen[0]) & (when <= seen[-1])], when[inside]
                    total[here, one] += np.interp(when, seen, advantages[there, other])
                    count[here, one] += 1
    return total / np.maximum(count, 1)
