"""http: any server that is running already, by the OpenAI API, measured as its clients see it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mmsched_env.errors import ConfigError

from .. import schema
from .backend import Figure, ServerDied
from .http_api import Client, Completion, OpenAI, Refused, dialect_of
from .points import Point, Preset

SERVED = "served"
"""mode of a load that ends with the first token, the model having been sent away before"""

SWAP = "swap"
"""mode of a first token that comes after another model was asked: whatever the server does then"""

WORDS = ("the", "a", "of", "and", "to", "in", "is", "it", "for", "on")

TRIES = 5
NEAR_TOKENS, NEAR = 2, 0.02
"""prompts are as long as wanted within the larger of these, by the server's own count"""


class Http:
    """A model server at a URL. Which models it is running, and on what, is its own business.

    Parameters
    ----------
    url
        Without ``/v1``.
    gpu, gpu_mem_bytes
        What it runs on, as its vendor calls it; `schema.CPU_ONLY` without a GPU.
    timeout_s
        Longest silence.

    Raises
    ------
    ConfigError
        A URL where no server answers.
    """

    def __init__(
        self, url: str, gpu: str = schema.CPU_ONLY, gpu_mem_bytes: int | None = None, timeout_s: float = 300.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError(f"url is {url!r}; accepted: http://HOST:PORT of a running server")
        self.client = Client(url.rstrip("/").removesuffix("/v1"), timeout_s)
        self.server: OpenAI = dialect_of(self.client)
        self.gpu, self.gpu_mem_bytes = gpu, gpu_mem_bytes
        self.version = self.server.version()
        self.operations = frozenset({"prefill", "decode", *self.server.operations})
        self._models: list[str] = []
        self._rng = np.random.default_rng()  # a prompt that was asked before is cached somewhere
        self._words: dict[str, tuple[float, float]] = {}
        self._extra: dict[str, Any] = {"ignore_eos": True}

    @property
    def engine(self) -> str:
        return self.server.name

    @property
    def pids(self) -> Sequence[int]:
        return ()

    def prepare(self, model: str) -> int:
        """Raises ConfigError for a model the server does not have. Its bytes are not known: 0."""
        known = self.server.models()
        name = next((one for one in (model, f"{model}:latest") if one in known), None)
        if name is None:
            raise ConfigError(f"the server at {self.client.url} has no model {model!r}; accepted: {', '.join(known)}")
        self._models.append(model)
        return 0

    def loads(self, model: str, preset: Preset) -> Iterable[Point]:
        """After sending it away where the server lets us, and after another model was asked."""
        if len(self._models) > 1 or "unload" not in self.operations:
            yield Point(model, "first_token", mode=SWAP)
        if "unload" in self.operations:
            yield Point(model, "load", tier="page_cache", mode=SERVED)

    def load(self, point: Point) -> tuple[Figure, HttpInstance]:
        if point.mode == SERVED:
            self.server.unload(self._name(point.model))
        for other in [one for one in self._models if one != point.model][:1] if point.mode == SWAP else []:
            self.complete(other, 1, 1)
        seconds = self.complete(point.model, 1, 1).first_s
        return Figure(seconds), HttpInstance(self, point.model)

    def copies(self, preset: Preset) -> Iterable[Point]:
        return ()

    def copy(self, point: Point) -> Figure:
        raise NotImplementedError  # no copies are offered

    def close(self) -> None:
        """The server stays as it is."""

    def unload(self, model: str) -> Figure:
        """Seconds until the server says the model is gone."""
        begun = time.perf_counter()
        self.server.unload(self._name(model))
        return Figure(time.perf_counter() - begun)

    def complete(self, model: str, words: int, tokens: int) -> Completion:
        """A completion after a prompt of random words. A server that refuses a setting of ours is asked without it."""
        chosen = [WORDS[i % len(WORDS)] for i in range(words)]
        prompt = " ".join(self._rng.permutation(chosen))  # the same words in any order: as many tokens
        try:
            return self.client.complete(self._name(model), prompt, tokens, self._extra)
        except Refused as error:
            if error.status not in (400, 422) or not self._extra:
                raise
            self._extra = {}
            return self.complete(model, words, tokens)

    def prompt_of(self, model: str, wanted: int, tokens: int) -> Completion:
        """A completion after a prompt of `wanted` tokens by the server's own count."""
        for _ in range(TRIES):
            fixed, rate = self._words.get(model, (0.0, 1.0))
            words = max(1, round((wanted - fixed) / rate))
            done = self.complete(model, words, tokens)
            near = abs(done.prompt_tokens - wanted) <= max(NEAR_TOKENS, NEAR * wanted)
            if near or (words == 1 and done.prompt_tokens > wanted):  # what the server puts around it is longer
                return done
            if not done.prompt_tokens:
                raise ServerDied(f"the server at {self.client.url} counts no prompt tokens")
            self._learn(model, words, done.prompt_tokens)
        raise ServerDied(
            f"the server at {self.client.url} counts {done.prompt_tokens} tokens in {words} words, {wanted} were wanted; "
            "accepted: a context that holds them"
        )

    def _learn(self, model: str, words: int, tokens: int) -> None:
        """Tokens of the template and of a word, by the count of a long and a short prompt."""
        short = self.complete(model, 1, 1).prompt_tokens
        rate = max(0.1, (tokens - short) / max(1, words - 1))
        self._words[model] = short - rate, rate

    def _name(self, model: str) -> str:
        """As the server calls it: Ollama's own names have a tag."""
        return f"{model}:latest" if self.engine == "Ollama" and ":" not in model else model


class HttpInstance:
    """A model that the server has."""

    def __init__(self, backend: Http, model: str) -> None:
        self.backend, self.model = backend, model

    def measure(self, point: Point) -> Figure:
        return getattr(self, f"_{point.operation}")(point)  # type: ignore[no-any-return]

    def unload(self) -> Figure:
        return self.backend.unload(self.model) if "unload" in self.backend.operations else Figure(0.0)

    def _prefill(self, point: Point) -> Figure:
        return Figure(self.backend.prompt_of(self.model, point.tokens, 1).first_s)

    def _decode(self, point: Point) -> Figure:
        """Seconds a step while all decode: from the last one's first token to the first one's last."""

        def one(_: int) -> Completion:
            return self.backend.prompt_of(self.model, max(1, point.depth), point.tokens + 1 + point.batch)

        one(0)  # that the length of the prompt is known
        with ThreadPoolExecutor(point.batch) as pool:
            done = list(pool.map(one, range(point.batch)))
        short = min(done, key=lambda completion: completion.tokens)
        if short.tokens < 2:
            raise ServerDied(f"{self.model} stopped after {short.tokens} token; accepted: a model that goes on")
        begin, end = max(c.times_s[0] for c in done), min(c.times_s[-1] for c in done)
        first = done[0]
        pieces = sum(begin < at <= end for at in first.times_s)
        if pieces == 0:
            raise ServerDied(
                f"the server at {self.backend.client.url} does not answer {point.batch} requests at once; accepted: a smaller seats="
            )
        steps = pieces * (first.tokens - 1) / (len(first.times_s) - 1)  # a piece may hold several tokens
        return Figure((end - begin) / steps)

    def _footprint(self, point: Point) -> Figure:
        return Figure(0.0, self.backend.server.size_bytes(self.backend._name(self.model)))
