"""What every workload is to the environment: something that makes a `RequestTrace` out of a seed."""

from __future__ import annotations

import operator
from typing import Protocol, runtime_checkable
from zlib import crc32

import numpy as np

from mmsched_env.errors import ConfigError

from .trace import RequestTrace


@runtime_checkable
class TraceSource(Protocol):
    """A workload. Same seed and same models: the same bits, in any process."""

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The requests of one episode; ``trace.model`` indexes `model_names`."""
        ...


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one process, such as "arrivals" or "output_tokens".

    Each process has its own generator and draws one whole vector from it, entry i for request i. So a setting of one
    process, or a decision of the scheduler, never shifts a draw of another. The name enters by CRC-32, since Python's
    ``hash(str)`` differs from process to process.

    Raises
    ------
    ConfigError
        `seed` is not a whole number >= 0.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"seed is {seed!r}; accepted: a whole number >= 0")
    return np.random.default_rng([number, crc32(name.encode())])
