"""What `mmsched evolve` searches: a row of numbers, and the rule they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adjust import NETWORK, UNIT, UNITS, WEIGHTS

SETTINGS = ("max_wait_s", "patience", "sharing", "return_price", "harm", "loading", "resize_gain")
"""of the rule, searched as well, by the logarithms of what they are multiplied with"""
MOST_CHANGE = 3.0
"""of such a logarithm"""
FIRST_UNITS = np.random.default_rng(0).normal(0.0, 0.7, (UNITS, len(UNIT))) * (np.array(UNIT) != "output")
"""the network before it has learned: what each unit looks at is drawn, none has a say"""
GROUP_OF = (*(name.split("_")[0] for name in WEIGHTS), *["settings"] * len(SETTINGS), *["units"] * FIRST_UNITS.size)
"""of each number of a candidate: weights, logarithms of what the settings are multiplied with, changes of the units"""
GROUPS = tuple(dict.fromkeys(GROUP_OF))
GENES = len(GROUP_OF)


def policy_of(genes: NDArray[np.float64], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, weights) of the rule for `genes` (GENES,); with all of them 0 it decides as it did."""
    linear, factors, units = np.split(genes, np.cumsum([len(WEIGHTS), len(SETTINGS)]))
    changes = np.exp(np.clip(factors, -MOST_CHANGE, MOST_CHANGE)).tolist()
    changed = {key: settings[key] * change for key, change in zip(SETTINGS, changes, strict=True)}
    network = (FIRST_UNITS + units.reshape(FIRST_UNITS.shape)).tolist()
    return {**settings, **changed}, {**dict(zip(WEIGHTS, linear.tolist(), strict=True)), NETWORK: network}
