"""Requests that bring on others: chat sessions whose context grows, and pairs such as embedding, then chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import require, require_at_least, require_positive, require_share
from .lengths import LengthConfig
from .source import stream

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MessageConfig(LengthConfig):
    """What a user adds in a later turn, in tokens."""

    median: float = 50.0
    sigma: float = 1.0
    max: int = 2048


@dataclass(frozen=True)
class SessionConfig:
    """Chats: every turn's prompt is the whole talk before it and a new message. The simulator shares no prefixes, so
    all of it is computed again."""

    turns: float = 1.0
    """mean turns of a chat (geometric); 1: single requests"""
    max_turns: int = 16
    pause_s: float = 30.0
    """median time from one turn's arrival to the next: the answer, reading and writing"""
    pause_sigma: float = 1.0
    """standard deviation of its logarithm"""
    message: MessageConfig = field(default_factory=MessageConfig)
    max_context: int = 8192
    """prompts are clipped to this: the oldest part of the talk is forgotten"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_at_least(f"{key}.max_turns", self.max_turns, 1)
        require(1 <= self.turns <= self.max_turns, f"{key}.turns", self.turns, f"a number in [1, {self.max_turns}]")
        require_positive(f"{key}.pause_s", self.pause_s, "seconds")
        require(0 <= self.pause_sigma <= 5, f"{key}.pause_sigma", self.pause_sigma, "a number in [0, 5]")
        self.message.check(f"{key}.message")
        require_at_least(f"{key}.max_context", self.max_context, 1)

    @property
    def mean_turns(self) -> float:
        """Of the geometric distribution cut at max_turns."""
        return float(self.turns * (1 - (1 - 1 / self.turns) ** self.max_turns))

    @property
    def warm_up_s(self) -> float:
        """Time in which chats begun before the episode still send: nearly all of the longest."""
        return self.max_turns * self.pause_s * float(np.exp(self.pause_sigma**2 / 2)) if self.turns > 1 else 0.0

    def expand(
        self, seed: int, begin_s: FloatArray, prompt: NDArray[Any], output: NDArray[Any]
    ) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
        """All turns of n chats: (chat, arrival, prompt tokens, output tokens) of each, from the chats' beginnings [n],
        first prompts [n] and answers [n, max_turns]."""
        size, turns = output.shape
        count = np.minimum(stream(seed, "turns").geometric(1 / self.turns, size), turns)
        pause = self.pause_s * np.exp(self.pause_sigma * stream(seed, "pauses").standard_normal((size, turns)))
        message = self.message.draw(stream(seed, "messages"), size * turns).reshape(size, turns).astype(np.int64)
        arrival = begin_s[:, None] + np.cumsum(pause, axis=1) - pause[:, :1]
        added = np.concatenate([prompt[:, None], output[:, :-1] + message[:, 1:]], axis=1)
        context = np.minimum(np.cumsum(added, axis=1), np.maximum(self.max_context, prompt[:, None]))
        chat, turn = np.nonzero(np.arange(turns) < count[:, None])
        return chat, arrival[chat, turn], context[chat, turn], output[chat, turn]


@dataclass(frozen=True)
class PairConfig:
    """A request for one model that is followed by one for another: retrieval (embedding or a small model), then chat."""

    first: str
    second: str
    share: float = 1.0
    """part of the requests for `first` that are followed"""
    delay_s: float = 0.5
    """mean time between the two arrivals (exponential)"""
    first_output: int | None = None
    """output tokens of requests for `first`, such as 1 for an embedding; none: as drawn"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require(self.first != self.second, f"{key}.second", self.second, "another model than first")
        require_share(f"{key}.share", self.share)
        require_positive(f"{key}.delay_s", self.delay_s, "seconds")
        if self.first_output is not None:
            require_at_least(f"{key}.first_output", self.first_output, 1)
