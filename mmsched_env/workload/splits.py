"""Which seeds, and which parts of a recorded trace, are for training, validation and test. No two share any.

A seed belongs to one split by its size, and a recorded trace with ``windows: by_seed`` shows a seed only its split's
part of the record: what an agent was trained on cannot turn up in its test.
"""

from __future__ import annotations

from mmsched_env.errors import ConfigError, unknown_name

SEEDS = {"test": range(10**6), "validation": range(10**6, 2 * 10**6), "train": range(2 * 10**6, 2**63)}
"""seeds of each split; `mmsched evaluate` uses the first ones of test, environments draw theirs from train"""
WINDOWS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
"""parts of a record's time, from its beginning to its last request"""


def split_of(seed: int) -> str:
    """The split that `seed` belongs to."""
    return next((name for name, seeds in SEEDS.items() if seed in seeds), "train")


def seed_of(split: str, index: int, key: str = "seed") -> int:
    """The `index`-th seed of a split.

    Raises
    ------
    ConfigError
        No such split, or the split has not so many seeds.
    """
    if split not in SEEDS:
        raise unknown_name("split", split, SEEDS)
    if not isinstance(index, int) or not 0 <= index < len(SEEDS[split]):
        raise ConfigError(f"{key} is {index!r}; accepted: a whole number in [0, {len(SEEDS[split])}) for split={split}")
    return SEEDS[split][index]


def is_training_seed(seed: int) -> bool:
    """Whether training may use `seed`."""
    return seed in SEEDS["train"]


def window_of(seed: int, last_s: float) -> tuple[float, float]:
    """Seconds [from, to) of a record whose last request arrives at `last_s` that `seed` may see."""
    first, last = WINDOWS[split_of(seed)]
    return first * last_s, last * last_s if last < 1 else float("inf")
