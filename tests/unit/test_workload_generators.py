"""What the generator can do beyond its defaults: each process has the law it claims, and is indexed by request."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from mmsched_env.errors import ConfigError
from mmsched_env.workload import GeneratorConfig, RequestTrace, source_from
from mmsched_env.workload.arrivals import weibull_shape
from mmsched_env.workload.clients import ClientsConfig
from mmsched_env.workload.followups import PairConfig, SessionConfig
from mmsched_env.workload.lengths import ImageConfig, OutputConfig, PromptConfig
from mmsched_env.workload.modulation import BurstConfig, ProfileConfig
from mmsched_env.workload.popularity import DriftConfig
from mmsched_env.workload.predict import PredictionConfig, spearman
from mmsched_env.workload.stats import fano
from mmsched_env.workload.trace import COLUMNS

MODELS = ("a", "b", "vl", "c")
MANY = GeneratorConfig(num_requests=20_000, multimodal=("vl",))
VARIANTS = {
    "weibull": {"arrivals": "weibull", "cv": 2.0},
    "bursts": {"bursts": (BurstConfig(3, 9), BurstConfig(30, 60, 0.2))},
    "profile": {"profile": ProfileConfig(100.0, (1, 0, 3), 20.0), "arrivals": "gamma", "cv": 1.5},
    "clients": {"clients": ClientsConfig(5, cv=3.0), "arrivals": "gamma", "bursts": (BurstConfig(3, 9),)},
    "tenants": {"tenants": 4},
    "mixture": {"prompt": PromptConfig(family="mixture", weights=(1, 2), medians=(10, 900), sigmas=(0.1, 0.5))},
    "histogram": {"output": OutputConfig(family="histogram", weights=(1, 0, 2), edges=(1, 10, 50, 60))},
    "drift": {"drift": DriftConfig(60.0)},
    "pairs": {"pairs": (PairConfig("a", "b", 0.5, first_output=1),)},
    "sessions": {"sessions": SessionConfig(4.0)},
    "images": {"images": ImageConfig(500.0, 0.5)},
    "rank correlation": {"prediction": PredictionConfig(rank_correlation=0.7)},
}


def many(**changes: object) -> GeneratorConfig:
    return dataclasses.replace(MANY, **changes)


def digest(trace: RequestTrace) -> str:
    return hashlib.sha256(b"".join(getattr(trace, name).tobytes() for name in COLUMNS)).hexdigest()


def test_the_default_has_kept_its_bits() -> None:
    """As before any of this existed (NumPy of constraints.txt)."""
    assert digest(GeneratorConfig().sample(0, MODELS)) == DEFAULT_DIGEST


DEFAULT_DIGEST = "98fe3ffbd3d281ee60c3304fc18365742ec4ab2be0be3f9a218e8126a9e820ba"


@pytest.mark.parametrize("name", VARIANTS)
def test_more_requests_leave_the_first_ones_alone(name: str) -> None:
    few, more = (GeneratorConfig(num_requests=n, multimodal=("vl",), **VARIANTS[name]) for n in (60, 300))
    assert digest(few.sample(5, MODELS)) == digest(more.sample(5, MODELS).select(slice(60)))
    assert digest(few.sample(5, MODELS)) != digest(few.sample(6, MODELS))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("histogram", "mixture", "images")])
def test_the_rate_is_kept(name: str) -> None:
    config = many(rate_per_s=2.0, **VARIANTS[name])
    spans = [config.sample(seed, MODELS).arrival_s[-1] for seed in range(8)]
    assert 8 * 20_000 / sum(spans) == pytest.approx(2.0, rel=0.04)


@pytest.mark.parametrize("cv", [0.3, 1.0, 4.0])
def test_weibull_gaps(cv: float) -> None:
    shape = weibull_shape(cv)
    first, second = math.gamma(1 + 1 / shape), math.gamma(1 + 2 / shape)
    assert math.sqrt(second / first**2 - 1) == pytest.approx(cv, rel=1e-9)
    gaps = np.diff(many(arrivals="weibull", cv=cv).sample(0, MODELS).arrival_s, prepend=0)
    assert gaps.mean() == pytest.approx(1, rel=0.1) and gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)


def test_on_off_bursts_have_the_moments_of_theory() -> None:
    """Interrupted Poisson process: E[gap^2] = 2 pi (L - Q)^-2 1 over the phases, counts by its covariance function."""
    on_s, off_s, rate = 4.0, 12.0, 2.0
    peak, a, b = rate * (on_s + off_s) / on_s, 1 / on_s, 1 / off_s
    inside = np.linalg.inv(np.array([[peak + a, -a], [-b, b]]))
    second = 2 * np.array([1.0, 0.0]) @ inside @ inside @ np.ones(2)
    cv = math.sqrt(second * rate**2 - 1)
    share, decay = on_s / (on_s + off_s), a + b
    fano_60 = 1 + 2 * peak**2 * share * (1 - share) * (60 / decay - (1 - math.exp(-60 * decay)) / decay**2) / (
        rate * 60
    )
    traces = [many(rate_per_s=rate, bursts=(BurstConfig(on_s, off_s),)).sample(seed, MODELS) for seed in range(6)]
    gaps = np.concatenate([np.diff(t.arrival_s) for t in traces])
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04)
    assert np.mean([fano(t, 60) for t in traces]) == pytest.approx(fano_60, rel=0.12)


def test_a_profile_is_followed_exactly() -> None:
    config = many(num_requests=60_000, rate_per_s=10.0, profile=ProfileConfig(300.0, (1, 0, 5), 100.0))
    arrival = config.sample(0, MODELS).arrival_s
    counts = np.bincount((((arrival + 100) % 300) // 100).astype(int), minlength=3)
    assert counts[1] == 0
    assert counts[2] / counts[0] == pytest.approx(5, rel=0.05)
    inside = ((arrival + 100) % 100) / 100  # even within a step
    assert np.histogram(inside, bins=10, range=(0, 1))[0] == pytest.approx(6000, rel=0.06)


def test_clients_have_their_own_rate_and_cv() -> None:
    clients = ClientsConfig(3, shares=(6, 3, 1), cvs=(0.5, 1.0, 4.0))
    trace = many(arrivals="gamma", clients=clients, rate_per_s=5.0).sample(0, MODELS)
    for c, (share, cv) in enumerate(zip((0.6, 0.3, 0.1), (0.5, 1.0, 4.0), strict=True)):
        times = trace.arrival_s[trace.tenant == c]
        gaps = np.diff(times)
        assert len(times) / len(trace) == pytest.approx(share, rel=0.15)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15)


def test_bursty_clients_do_not_all_burst_at_the_start() -> None:
    config = GeneratorConfig(
        num_requests=2000, arrivals="gamma", clients=ClientsConfig(50, 0.0, cv=4.0), rate_per_s=10.0
    )
    first = [np.searchsorted(config.sample(seed, MODELS).arrival_s, 10.0) for seed in range(40)]
    assert np.mean(first) == pytest.approx(100, abs=25)  # 10 s at 10/s


def test_mixture_and_histogram() -> None:
    mixture = PromptConfig(family="mixture", weights=(1, 3), medians=(10, 1000), sigmas=(0.0, 0.2), max=100_000)
    histogram = OutputConfig(family="histogram", weights=(1, 0, 3), edges=(1, 10, 50, 90))
    trace = many(prompt=mixture, output=histogram).sample(0, MODELS)
    assert (trace.prompt_tokens == 10).mean() == pytest.approx(0.25, abs=0.02)
    large = np.log(trace.prompt_tokens[trace.prompt_tokens > 100])
    assert large.mean() == pytest.approx(math.log(1000), abs=0.01) and large.std() == pytest.approx(0.2, rel=0.03)
    assert (trace.output_tokens <= 10).mean() == pytest.approx(0.25, abs=0.02)
    assert not ((trace.output_tokens > 10) & (trace.output_tokens < 50)).any()
    assert trace.output_tokens[trace.output_tokens >= 50].mean() == pytest.approx(70, abs=0.5)


def test_drifting_models_rise_and_die() -> None:
    trace = many(drift=DriftConfig(20_000.0, 0.1), zipf_exponent=0.0, popularity_order="listed").sample(1, MODELS)
    hours = [np.bincount(trace.model[part], minlength=4) for part in np.array_split(np.arange(len(trace)), 20)]
    share = np.array(hours) / 1000
    assert (share.max(axis=0) > 0.5).all() and (share.min(axis=0) < 0.05).all()
    still = many(zipf_exponent=0.0).sample(1, MODELS)
    parts = np.array([np.bincount(part, minlength=4) for part in np.array_split(still.model, 20)]) / 1000
    assert parts.max() < 0.32


def test_pairs_follow_each_other() -> None:
    config = many(
        pairs=(PairConfig("a", "b", 0.5, 0.2, first_output=1),), shares=(2, 0, 1, 1), popularity_order="listed"
    )
    trace = config.sample(0, MODELS)
    first, second = (np.flatnonzero(trace.model == m) for m in (0, 1))
    assert len(second) / len(first) == pytest.approx(0.5, abs=0.02)
    assert set(trace.output_tokens[first]) == {1} and trace.output_tokens[second].mean() > 100
    before = trace.arrival_s[second] - trace.arrival_s[first[np.searchsorted(first, second) - 1]]
    assert np.median(before) < 0.2  # exponential of mean 0.2 s, at most
    with pytest.raises(ConfigError, match=r"unknown model in workload\.pairs 'a'"):
        config.sample(0, ("b", "x", "y", "z"))


def test_chats_grow() -> None:
    sessions = SessionConfig(turns=5.0, max_turns=8, pause_s=10.0, max_context=3000)
    trace = many(sessions=sessions, prompt=PromptConfig(100.0, 0.0), output=OutputConfig(50.0, 0.0), rate_per_s=20.0)
    prompts = trace.sample(0, MODELS).prompt_tokens
    firsts = prompts == 100
    assert 1 / firsts.mean() == pytest.approx(sessions.mean_turns, rel=0.05)
    assert sessions.mean_turns == pytest.approx(sum(min(t, 8) * 0.2 * 0.8 ** (t - 1) for t in range(1, 400)), rel=1e-6)
    assert prompts[~firsts].min() > 150 and prompts.max() <= 3000
    early = dataclasses.replace(trace, num_requests=200).sample(1, MODELS)
    assert (early.prompt_tokens == 100).mean() < 0.5  # chats begun before second 0 go on


def test_image_tokens_vary() -> None:
    trace = many(images=ImageConfig(600.0, 0.5)).sample(0, MODELS)
    tokens = trace.image_tokens[trace.image_tokens > 0]
    assert np.median(tokens) == pytest.approx(600, rel=0.05) and len(set(tokens)) > 100


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("family", ["lognormal", "histogram"])
def test_the_stated_rank_correlation_is_met(rho: float, family: str) -> None:
    output = OutputConfig(family=family, weights=(1, 5, 1), edges=(1, 20, 60, 900), max=2000, sigma=1.0)
    trace = many(output=output, prediction=PredictionConfig(rank_correlation=rho)).sample(0, MODELS)
    reached = spearman(trace.output_tokens.astype(float), trace.predicted_tokens.astype(float))
    assert reached == pytest.approx(rho, abs=0.025)


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, 500).astype(float), rng.normal(size=500)
    assert spearman(x, x + 9 * y) == pytest.approx(spearmanr(x, x + 9 * y).statistic)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bursts": [{"on_s": 0, "off_s": 1}]}, r"workload\.bursts\[0\]\.on_s is 0"),
        ({"bursts": [{"on_s": 1, "off_s": 1, "off_rate": 1}]}, r"workload\.bursts\[0\]\.off_rate is 1"),
        ({"bursts": [{"on_s": 1, "of_s": 1}]}, r"did you mean 'workload\.bursts\[0\]\.off_s'"),
        ({"profile": {"rates": [0, 0]}}, "workload.profile.rates"),
        ({"profile": {"period_s": 10, "start_s": 10}}, "workload.profile.start_s"),
        ({"clients": {"count": 0}}, "workload.clients.count is 0"),
        ({"clients": {"count": 2, "shares": [1]}}, "workload.clients.shares is .*; accepted: 2 numbers"),
        ({"clients": {"count": 2, "cv": 2}}, "workload.clients.cv is 2.0; accepted: 1 with arrivals=poisson"),
        ({"tenants": 0}, "workload.tenants is 0"),
        ({"prompt": {"family": "pareto"}}, "workload.prompt.family is 'pareto'; accepted: lognormal or mixture"),
        ({"prompt": {"family": "mixture"}}, "workload.prompt.weights"),
        ({"prompt": {"family": "mixture", "weights": [1], "medians": [1, 2]}}, "workload.prompt.medians"),
        ({"output": {"family": "histogram", "weights": [1], "edges": [5, 1]}}, "workload.output.edges"),
        ({"shares": [0, 0]}, "workload.shares"),
        ({"drift": {"cycle_s": 0}}, "workload.drift.cycle_s is 0"),
        ({"pairs": [{"first": "a", "second": "a"}]}, r"workload\.pairs\[0\]\.second"),
        ({"pairs": [{"first": "a", "second": "b"}], "sessions": {"turns": 2}}, "workload.sessions.turns is 2.0"),
        ({"sessions": {"turns": 99}}, "workload.sessions.turns is 99"),
        ({"images": {"sigma": -1}}, "workload.images.sigma is -1"),
        ({"prediction": {"rank_correlation": 0}}, "workload.prediction.rank_correlation is 0"),
        ({"prediction": {"kind": "none", "rank_correlation": 0.5}}, "use kind=noisy"),
        ({"rho": 0}, "workload.rho is 0"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_from({"kind": "generator", **settings})


def test_shares_for_another_number_of_models() -> None:
    with pytest.raises(ConfigError, match=r"workload\.shares is \(1.0,\); accepted: 4 numbers or more"):
        GeneratorConfig(shares=(1.0,)).sample(0, MODELS)
