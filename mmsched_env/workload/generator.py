"""The embedded default workload: synthetic requests from a handful of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import unknown_name

from .arrivals import ARRIVALS
from .checks import require, require_at_least, require_load, require_models, require_positive, require_share
from .classes import ClassConfig
from .clients import ClientsConfig
from .followups import PairConfig, SessionConfig
from .lengths import ImageConfig, OutputConfig, PromptConfig
from .modulation import BurstConfig, ProfileConfig, bend
from .popularity import ORDERS, DriftConfig, draw_by_share, zipf_shares
from .predict import PredictionConfig
from .source import stream
from .trace import RequestTrace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class GeneratorConfig:
    """Renewal arrivals, log-normal lengths and Zipf popularity, and what makes them more like real traffic; a
    `TraceSource`.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    num_requests: int = 200
    rate_per_s: float = 1.0
    """mean arrivals per second over all models"""
    rho: float | None = None
    """offered load: an environment sets rate_per_s to this multiple of its capacity (costmodel/capacity.py); none: as
    rate_per_s says"""
    arrivals: str = "poisson"
    """poisson, gamma or weibull: the gaps between arrivals"""
    cv: float = 1.0
    """coefficient of variation of the gaps between arrivals; poisson has 1"""
    bursts: tuple[BurstConfig, ...] = ()
    """on/off sources that modulate the rate; empty: none"""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """a rate that repeats, such as a day's"""
    clients: ClientsConfig = field(default_factory=ClientsConfig)
    """many clients with their own rate and cv (which then takes the place of cv above)"""
    tenants: int = 1
    """tenants of a single process, drawn by Zipf of exponent 1; with several clients each client is a tenant"""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    max_tokens: int | None = None
    """what every request may generate and reserves KV cache for; none: output.max. Longer outputs are clipped to it"""
    zipf_exponent: float = 0.9
    """popularity of the r-th model falls as r to the minus this; 0: all alike"""
    shares: tuple[float, ...] = ()
    """popularity of the r-th model, for as many models or more (the first ones count); empty: by zipf_exponent"""
    popularity_order: str = "shuffled"
    """shuffled: each episode ranks the models anew; listed: in the order of models.names"""
    drift: DriftConfig = field(default_factory=DriftConfig)
    """models that rise and die"""
    pairs: tuple[PairConfig, ...] = ()
    """requests followed by one for another model"""
    sessions: SessionConfig = field(default_factory=SessionConfig)
    """chats of several turns with growing context"""
    multimodal: tuple[str, ...] = ("qwen2.5-vl-7b-q4_k_m",)
    """models that take images, by name; names that are not served are ignored"""
    image_share: float = 0.5
    """share of a multimodal model's requests that carry an image"""
    image_tokens: int = 1024
    """tokens of an image: 896 x 896 pixels at 28 x 28 a token (Qwen2.5-VL)"""
    images: ImageConfig | None = None
    """tokens of a request's images; none: image_tokens for every one"""
    classes: ClassConfig = field(default_factory=ClassConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        require_at_least("workload.num_requests", self.num_requests, 1)
        require_positive("workload.rate_per_s", self.rate_per_s)
        require_load(self.rho)
        require(self.arrivals in ARRIVALS, "workload.arrivals", self.arrivals, " or ".join(ARRIVALS))
        require(0.01 <= self.cv <= 100, "workload.cv", self.cv, "a number in [0.01, 100]")
        if self.arrivals == "poisson":
            for key, cv in (("workload.cv", self.cv), ("workload.clients.cv", self.clients.cv)):
                require(cv == 1, key, cv, "1 with arrivals=poisson; use arrivals=gamma for another")
        for i, burst in enumerate(self.bursts):
            burst.check(f"workload.bursts[{i}]")
        self.profile.check("workload.profile")
        self.clients.check("workload.clients")
        require_at_least("workload.tenants", self.tenants, 1)
        self.prompt.check("workload.prompt")
        self.output.check("workload.output")
        if self.max_tokens is not None:
            require_at_least("workload.max_tokens", self.max_tokens, 1)
        require(0 <= self.zipf_exponent <= 100, "workload.zipf_exponent", self.zipf_exponent, "a number in [0, 100]")
        ok = all(0 <= share < math.inf for share in self.shares) and (not self.shares or sum(self.shares) > 0)
        require(ok, "workload.shares", self.shares, "numbers >= 0, not all 0")
        require(
            self.popularity_order in ORDERS, "workload.popularity_order", self.popularity_order, " or ".join(ORDERS)
        )
        self.drift.check("workload.drift")
        for i, pair in enumerate(self.pairs):
            pair.check(f"workload.pairs[{i}]")
        self.sessions.check("workload.sessions")
        require(
            not self.pairs or self.sessions.turns == 1, "workload.sessions.turns", self.sessions.turns, "1 with pairs"
        )
        require_share("workload.image_share", self.image_share)
        require_at_least("workload.image_tokens", self.image_tokens, 0)
        if self.images is not None:
            self.images.check("workload.images")
        self.classes.check("workload.classes")
        self.prediction.check("workload.prediction")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The requests of one episode; see `TraceSource.sample`."""
        require_models(model_names)
        enough = not self.shares or (len(self.shares) >= len(model_names) and sum(self.shares[: len(model_names)]) > 0)
        require(enough, "workload.shares", self.shares, f"{len(model_names)} numbers or more, not all 0")
        size = self.num_requests
        if self.sessions.turns > 1:
            columns = self._chats(seed, model_names)
        elif self.pairs:
            columns = self._paired(seed, model_names)
        else:
            columns = self._requests(seed, size, self.rate_per_s, model_names)
        columns = {name: values[:size] for name, values in columns.items()}
        limit = np.full(size, self._cap)
        reference = None if self.prediction.rank_correlation is None else np.minimum(self.output.reference(), self._cap)
        predicted = self.prediction.predict(seed, columns["output_tokens"], limit, columns["slo_class"], reference)
        given: dict[str, Any] = {**columns, "max_tokens": limit, "predicted_tokens": predicted}
        return RequestTrace.from_columns(model_names, source="generated workload", **given)

    @property
    def _cap(self) -> int:
        return self.max_tokens or self.output.max

    def _requests(self, seed: int, size: int, rate_per_s: float, model_names: tuple[str, ...]) -> Columns:
        """Columns of `size` requests that do not depend on each other."""
        arrival, tenant = self._arrivals(seed, size, rate_per_s)
        model = self._models(seed, arrival, len(model_names))
        return {
            "arrival_s": arrival,
            "model": model,
            "tenant": tenant,
            "prompt_tokens": self.prompt.draw(stream(seed, "prompt_tokens"), size),
            "output_tokens": np.minimum(self.output.draw(stream(seed, "output_tokens"), size), self._cap),
            "image_tokens": self._images(seed, model, model_names),
            **self.classes.draw(seed, size),
        }

    def _arrivals(self, seed: int, size: int, rate_per_s: float) -> tuple[FloatArray, IntArray]:
        """Times in seconds and tenants, [size] each."""
        if self.clients.count > 1:
            return self.clients.times(seed, size, rate_per_s, self.arrivals, self.bursts, self.profile)
        gaps = ARRIVALS[self.arrivals](stream(seed, "arrivals"), size, rate_per_s, self.cv)
        tenant = draw_by_share(stream(seed, "tenants").random(size), zipf_shares(self.tenants, 1.0))
        return bend(np.cumsum(gaps), seed, "arrivals", self.bursts, self.profile), tenant

    def _models(self, seed: int, arrival_s: FloatArray, count: int) -> IntArray:
        """[N] model indices: a popularity rank a request, then the model that holds the rank this episode."""
        uniform = stream(seed, "models").random(len(arrival_s))
        rank = self.drift.draw(seed, uniform, arrival_s, self._rank_shares(count))
        return self._by_rank(seed, count)[rank]

    def _rank_shares(self, count: int) -> FloatArray:
        if self.shares:
            return np.array(self.shares[:count]) / sum(self.shares[:count])
        return zipf_shares(count, self.zipf_exponent)

    def _by_rank(self, seed: int, count: int) -> IntArray:
        """[M] the model that holds each popularity rank."""
        ranks: IntArray = np.arange(count)
        return stream(seed, "popularity").permutation(count) if self.popularity_order == "shuffled" else ranks

    def _images(self, seed: int, model: IntArray, model_names: tuple[str, ...]) -> IntArray:
        """[N] image tokens; a draw for every request, whatever its model, so that popularity shifts none."""
        takes_images = np.isin(np.asarray(model_names), self.multimodal)[model]
        has_image = stream(seed, "images").random(len(model)) < self.image_share
        tokens: Any = self.image_tokens
        if self.images is not None:
            tokens = self.images.draw(stream(seed, "image_tokens"), len(model))
        return np.where(takes_images & has_image, tokens, 0)

    def _chats(self, seed: int, model_names: tuple[str, ...]) -> Columns:
        """Columns of the first turns, `num_requests` of them or more, of chats at their long-run rate."""
        sessions, rate_per_s = self.sessions, self.rate_per_s / self.sessions.mean_turns
        size = self.num_requests + int(2 * rate_per_s * sessions.warm_up_s)
        while True:
            chats = self._requests(seed, size, rate_per_s, model_names)
            begin_s = chats["arrival_s"] - sessions.warm_up_s
            if (begin_s >= 0).sum() >= self.num_requests:
                break
            size *= 2
        answers = self.output.draw(stream(seed, "answers"), size * sessions.max_turns)
        answers = np.minimum(answers, self._cap).reshape(size, -1)
        chat, arrival, prompt, output = sessions.expand(seed, begin_s, chats["prompt_tokens"], answers)
        order = np.lexsort((chat, arrival))
        order = order[arrival[order] >= 0]
        rows = chat[order]
        turns = {"arrival_s": arrival[order], "prompt_tokens": prompt[order], "output_tokens": output[order]}
        return {name: values[rows] for name, values in chats.items()} | turns

    def _paired(self, seed: int, model_names: tuple[str, ...]) -> Columns:
        """Columns of `num_requests` requests or more, each with those that follow it."""
        for pair in self.pairs:
            for name in (pair.first, pair.second):
                if name not in model_names:
                    raise unknown_name("model in workload.pairs", name, model_names)
        size, of = self.num_requests, np.argsort(self._by_rank(seed, len(model_names)))
        shares = self._rank_shares(len(model_names))[of]
        followed = sum(pair.share * shares[model_names.index(pair.first)] for pair in self.pairs)
        firsts = self._requests(seed, size, self.rate_per_s / (1 + float(followed)), model_names)
        parts = [firsts]
        for i, pair in enumerate(self.pairs):
            asked = firsts["model"] == model_names.index(pair.first)
            rows = np.flatnonzero(asked & (stream(seed, f"pair{i}").random(size) < pair.share))
            delay = pair.delay_s * stream(seed, f"pair{i}.delay").standard_exponential(size)
            own = {
                "arrival_s": (firsts["arrival_s"] + delay)[rows],
                "model": np.full(len(rows), model_names.index(pair.second)),
                "prompt_tokens": self.prompt.draw(stream(seed, f"pair{i}.prompt_tokens"), size)[rows],
                "output_tokens": self.output.draw(stream(seed, f"pair{i}.output_tokens"), size)[rows],
            }
            own["output_tokens"] = np.minimum(own["output_tokens"], self._cap)
            parts.append({name: values[rows] for name, values in firsts.items()} | own)
        for pair in self.pairs:
            if pair.first_output is not None:
                asked = firsts["model"] == model_names.index(pair.first)
                output = np.minimum(pair.first_output, self._cap)
                firsts["output_tokens"] = np.where(asked, output, firsts["output_tokens"])
        merged = {name: np.concatenate([part[name] for part in parts]) for name in firsts}
        order = np.argsort(merged["arrival_s"], kind="stable")
        return {name: values[order] for name, values in merged.items()}
