"""The embedded default workload: synthetic requests from a handful of numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .arrivals import ARRIVALS
from .checks import require, require_at_least, require_models, require_positive, require_share
from .classes import ClassConfig
from .lengths import OutputConfig, PromptConfig
from .popularity import ORDERS, draw_by_share, zipf_shares
from .predict import PredictionConfig
from .source import stream
from .trace import RequestTrace


@dataclass(frozen=True)
class GeneratorConfig:
    """Renewal arrivals, log-normal lengths and Zipf popularity; a `TraceSource`.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    num_requests: int = 200
    rate_per_s: float = 1.0
    """mean arrivals per second over all models"""
    arrivals: str = "poisson"
    """poisson or gamma"""
    cv: float = 1.0
    """coefficient of variation of the gaps between arrivals; poisson has 1"""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    max_tokens: int | None = None
    """what every request may generate and reserves KV cache for; none: output.max. Longer outputs are clipped to it"""
    zipf_exponent: float = 0.9
    """popularity of the r-th model falls as r to the minus this; 0: all alike"""
    popularity_order: str = "shuffled"
    """shuffled: each episode ranks the models anew; listed: in the order of models.names"""
    multimodal: tuple[str, ...] = ("qwen2.5-vl-7b-q4_k_m",)
    """models that take images, by name; names that are not served are ignored"""
    image_share: float = 0.5
    """share of a multimodal model's requests that carry an image"""
    image_tokens: int = 1024
    """tokens of an image: 896 x 896 pixels at 28 x 28 a token (Qwen2.5-VL)"""
    classes: ClassConfig = field(default_factory=ClassConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        require_at_least("workload.num_requests", self.num_requests, 1)
        require_positive("workload.rate_per_s", self.rate_per_s)
        require(self.arrivals in ARRIVALS, "workload.arrivals", self.arrivals, " or ".join(ARRIVALS))
        require(0.01 <= self.cv <= 100, "workload.cv", self.cv, "a number in [0.01, 100]")
        if self.arrivals == "poisson":
            require(self.cv == 1, "workload.cv", self.cv, "1 with arrivals=poisson; use arrivals=gamma for another")
        self.prompt.check("workload.prompt")
        self.output.check("workload.output")
        if self.max_tokens is not None:
            require_at_least("workload.max_tokens", self.max_tokens, 1)
        require(0 <= self.zipf_exponent <= 100, "workload.zipf_exponent", self.zipf_exponent, "a number in [0, 100]")
        require(
            self.popularity_order in ORDERS, "workload.popularity_order", self.popularity_order, " or ".join(ORDERS)
        )
        require_share("workload.image_share", self.image_share)
        require_at_least("workload.image_tokens", self.image_tokens, 0)
        self.classes.check("workload.classes")
        self.prediction.check("workload.prediction")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The requests of one episode; see `TraceSource.sample`."""
        size = self.num_requests
        require_models(model_names)
        gaps = ARRIVALS[self.arrivals](stream(seed, "arrivals"), size, self.rate_per_s, self.cv)
        model = self._models(seed, len(model_names))
        cap = self.max_tokens or self.output.max
        output = np.minimum(self.output.draw(stream(seed, "output_tokens"), size), cap)
        limit = np.full(size, cap)
        classes = self.classes.draw(seed, size)
        return RequestTrace.from_columns(
            model_names,
            source="generated workload",
            arrival_s=np.cumsum(gaps),
            model=model,
            prompt_tokens=self.prompt.draw(stream(seed, "prompt_tokens"), size),
            image_tokens=self._images(seed, model, model_names),
            max_tokens=limit,
            output_tokens=output,
            predicted_tokens=self.prediction.predict(seed, output, limit, classes["slo_class"]),
            **classes,
        )

    def _models(self, seed: int, count: int) -> NDArray[np.int64]:
        """[N] model indices: a popularity rank a request, then the model that holds the rank this episode."""
        rank = draw_by_share(stream(seed, "models"), zipf_shares(count, self.zipf_exponent), self.num_requests)
        return stream(seed, "popularity").permutation(count)[rank] if self.popularity_order == "shuffled" else rank

    def _images(self, seed: int, model: NDArray[np.int64], model_names: tuple[str, ...]) -> NDArray[np.int64]:
        """[N] image tokens; a draw for every request, whatever its model, so that popularity shifts none."""
        takes_images = np.isin(np.asarray(model_names), self.multimodal)[model]
        has_image = stream(seed, "images").random(self.num_requests) < self.image_share
        return np.where(takes_images & has_image, self.image_tokens, 0)
