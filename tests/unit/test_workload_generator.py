"""The generator: its statistics, its streams, and its configuration."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmsched_env.errors import ConfigError
from mmsched_env.workload import KINDS, GeneratorConfig, RequestTrace, TraceSource, source_from, summary
from mmsched_env.workload.classes import ClassConfig
from mmsched_env.workload.lengths import OutputConfig, PromptConfig
from mmsched_env.workload.popularity import draw_by_share, zipf_shares
from mmsched_env.workload.predict import PredictionConfig
from mmsched_env.workload.source import stream
from mmsched_env.workload.trace import COLUMNS

MODELS = ("a", "b", "vl", "c")
MANY = GeneratorConfig(num_requests=20_000, multimodal=("vl",))
REPOSITORY = Path(__file__).parents[2]


def digest(trace: RequestTrace) -> str:
    return hashlib.sha256(b"".join(getattr(trace, name).tobytes() for name in COLUMNS)).hexdigest()


def changed_columns(one: RequestTrace, other: RequestTrace) -> set[str]:
    return {name for name in COLUMNS if getattr(one, name).tobytes() != getattr(other, name).tobytes()}


@pytest.mark.parametrize(("arrivals", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 3.0)])
def test_arrivals_have_their_rate_and_cv(arrivals: str, cv: float) -> None:
    trace = dataclasses.replace(MANY, rate_per_s=4.0, arrivals=arrivals, cv=cv).sample(1, MODELS)
    gaps = np.diff(trace.arrival_s, prepend=0)
    assert gaps.mean() == pytest.approx(0.25, rel=5 * cv / np.sqrt(len(gaps)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_poisson_counts_have_fano_one() -> None:
    figures = summary(MANY.sample(1, MODELS))
    assert figures["fano_1s"] == pytest.approx(1, abs=0.05)
    assert figures["fano_60s"] == pytest.approx(1, abs=0.35)


def test_lengths_are_log_normal_and_clipped() -> None:
    lengths = {"prompt": PromptConfig(300.0, 0.7, 2000), "output": OutputConfig(90.0, 0.4, 10_000)}
    trace = dataclasses.replace(MANY, **lengths).sample(2, MODELS)
    for name, config in lengths.items():
        tokens = getattr(trace, f"{name}_tokens")
        assert np.median(tokens) == pytest.approx(config.median, rel=0.02)
        spread = np.log(np.percentile(tokens, 84.134) / np.percentile(tokens, 15.866)) / 2
        assert spread == pytest.approx(config.sigma, rel=0.03)
    assert trace.prompt_tokens.max() == 2000 and trace.prompt_tokens.min() >= 1
    assert (trace.max_tokens == 10_000).all()


def test_max_tokens_clips_outputs() -> None:
    trace = dataclasses.replace(MANY, max_tokens=100).sample(0, MODELS)
    assert (trace.max_tokens == 100).all()
    assert 0.5 < (trace.output_tokens == 100).mean() < 1


def test_popularity_is_zipf_and_shuffled_per_episode() -> None:
    shares = zipf_shares(4, 0.9)
    assert shares.sum() == pytest.approx(1) and shares[1] / shares[0] == pytest.approx(2**-0.9)
    listed = dataclasses.replace(MANY, popularity_order="listed").sample(0, MODELS)
    assert np.bincount(listed.model) / len(listed) == pytest.approx(shares, abs=0.015)
    leaders = {int(np.bincount(MANY.sample(seed, MODELS).model).argmax()) for seed in range(12)}
    assert len(leaders) >= 3


def test_draw_by_share_skips_empty_shares() -> None:
    drawn = draw_by_share(np.random.default_rng(0).random(4000), (0.0, 2.0, 0.0, 6.0, 0.0))
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 3).mean() == pytest.approx(0.75, abs=0.03)


def test_classes() -> None:
    config = dataclasses.replace(MANY, classes=ClassConfig(0.6, 2.0, 0.5, 4.0, 30.0))
    trace = config.sample(0, MODELS)
    interactive = trace.slo_class == 0
    assert interactive.mean() == pytest.approx(0.6, abs=0.015)
    assert set(trace.weight[interactive]) == {2.0} and set(trace.weight[~interactive]) == {0.5}
    assert set(trace.slo_scale[interactive]) == {4.0} and set(trace.slo_scale[~interactive]) == {30.0}


def test_only_multimodal_models_get_images() -> None:
    trace = dataclasses.replace(MANY, image_share=0.25, image_tokens=77).sample(0, MODELS)
    has_image = trace.image_tokens > 0
    assert set(trace.model[has_image]) == {MODELS.index("vl")}
    assert has_image[trace.model == MODELS.index("vl")].mean() == pytest.approx(0.25, abs=0.03)
    assert set(trace.image_tokens) == {0, 77}
    assert not MANY.sample(0, ("a", "b")).image_tokens.any()


def test_noisy_prediction_is_median_unbiased_and_follows_the_request() -> None:
    lengths = OutputConfig(200.0, 0.5, 100_000)
    trace = dataclasses.replace(MANY, output=lengths, prediction=PredictionConfig("noisy", 0.4)).sample(0, MODELS)
    error = np.log(trace.predicted_tokens / trace.output_tokens)
    assert np.median(error) == pytest.approx(0, abs=0.015)
    assert error.std() == pytest.approx(0.4, rel=0.03)
    assert abs(np.corrcoef(error, np.log(trace.output_tokens))[0, 1]) < 0.03
    wild = dataclasses.replace(MANY, prediction=PredictionConfig("noisy", 4.0)).sample(0, MODELS)
    assert wild.predicted_tokens.min() == 1 and wild.predicted_tokens.max() == wild.max_tokens[0]


def test_other_predictions() -> None:
    oracle = dataclasses.replace(MANY, prediction=PredictionConfig("oracle")).sample(0, MODELS)
    assert (oracle.predicted_tokens == oracle.output_tokens).all()
    none = dataclasses.replace(MANY, prediction=PredictionConfig("none")).sample(0, MODELS)
    assert (none.predicted_tokens == none.max_tokens).all()
    mean = dataclasses.replace(MANY, prediction=PredictionConfig("class_mean")).sample(0, MODELS)
    for index in (0, 1):
        rows = mean.slo_class == index
        assert mean.predicted_tokens[rows] == pytest.approx(mean.output_tokens[rows].mean(), rel=1e-6)


def test_same_seed_same_bits_in_another_process() -> None:
    code = (
        "import hashlib; from mmsched_env.workload import GeneratorConfig; "
        "from mmsched_env.workload.trace import COLUMNS; "
        "t = GeneratorConfig(arrivals='gamma', cv=2.0, multimodal=('vl',)).sample(7, ('a', 'b', 'vl', 'c')); "
        "print(hashlib.sha256(b''.join(getattr(t, c).tobytes() for c in COLUMNS)).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    here = GeneratorConfig(arrivals="gamma", cv=2.0, multimodal=("vl",))
    assert digest(here.sample(7, MODELS)) == other
    assert digest(here.sample(8, MODELS)) != other


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"output": OutputConfig(50.0, 1.2, 1024)}, {"output_tokens", "predicted_tokens"}),
        ({"prompt": PromptConfig(50.0, 1.2, 1024)}, {"prompt_tokens"}),
        ({"rate_per_s": 9.0}, {"arrival_s"}),
        ({"arrivals": "gamma", "cv": 4.0}, {"arrival_s"}),
        ({"zipf_exponent": 2.0}, {"model", "image_tokens"}),
        ({"popularity_order": "listed"}, {"model", "image_tokens"}),
        ({"image_share": 0.9}, {"image_tokens"}),
        ({"classes": ClassConfig(interactive_share=0.2)}, {"slo_class", "weight", "slo_scale"}),
        ({"prediction": PredictionConfig("noisy", 0.1)}, {"predicted_tokens"}),
    ],
)
def test_streams_are_independent(change: dict[str, object], columns: set[str]) -> None:
    base = GeneratorConfig(multimodal=("vl",))
    assert changed_columns(base.sample(5, MODELS), dataclasses.replace(base, **change).sample(5, MODELS)) == columns


def test_more_requests_leave_the_first_ones_alone() -> None:
    for arrivals, cv in (("poisson", 1.0), ("gamma", 2.0)):
        base = GeneratorConfig(num_requests=50, arrivals=arrivals, cv=cv)
        longer = dataclasses.replace(base, num_requests=80).sample(5, MODELS)
        assert not changed_columns(base.sample(5, MODELS), longer.select(slice(50)))


def test_streams_differ_by_name_and_seed() -> None:
    draws = {(seed, name): stream(seed, name).random() for seed in (0, 1) for name in ("arrivals", "models")}
    assert len(set(draws.values())) == 4
    for seed in (-1, 1.5, "1", None):
        with pytest.raises(ConfigError, match=r"seed is .*; accepted: a whole number >= 0"):
            stream(seed, "arrivals")
    assert stream(np.int64(3), "models").random() == stream(3, "models").random()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_requests": 0}, "workload.num_requests is 0; accepted: a whole number >= 1"),
        ({"num_requests": 1.5}, "workload.num_requests is 1.5; accepted: a whole number"),
        ({"rate_per_s": 0}, r"workload.rate_per_s is 0.*> 0"),
        ({"rate_per_s": float("inf")}, "workload.rate_per_s is inf"),
        ({"rate_per_s": float("nan")}, "workload.rate_per_s is nan"),
        ({"rate_per_s": "fast"}, "workload.rate_per_s is 'fast'; accepted: a number"),
        ({"rate_per": 2}, "did you mean 'workload.rate_per_s'"),
        ({"arrivals": "weekly"}, "workload.arrivals is 'weekly'; accepted: poisson or gamma"),
        ({"cv": 2.0}, "workload.cv is 2.0; accepted: 1 with arrivals=poisson"),
        ({"arrivals": "gamma", "cv": 0}, "workload.cv is 0"),
        ({"prompt": {"median": 0}}, "workload.prompt.median is 0"),
        ({"prompt": {"median": 9000}}, r"workload.prompt.median is 9000.0; accepted: tokens in \[1, .*4096\]"),
        ({"output": {"sigma": -1}}, "workload.output.sigma is -1"),
        ({"output": {"max": 0}}, "workload.output.max is 0"),
        ({"max_tokens": 0}, "workload.max_tokens is 0"),
        ({"zipf_exponent": -0.1}, "workload.zipf_exponent is -0.1"),
        ({"popularity_order": "random"}, "accepted: shuffled or listed"),
        ({"image_share": 1.1}, "workload.image_share is 1.1"),
        ({"image_tokens": -1}, "workload.image_tokens is -1"),
        ({"classes": {"interactive_share": 2}}, "workload.classes.interactive_share is 2"),
        ({"classes": {"batch_weight": 0}}, "workload.classes.batch_weight is 0"),
        ({"prediction": {"kind": "psychic"}}, "workload.prediction.kind is 'psychic'; accepted: noisy or oracle"),
        ({"prediction": {"sigma": -1}}, "workload.prediction.sigma is -1"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_from({"kind": "generator", **settings})


def test_partial_settings_keep_the_other_defaults() -> None:
    config = source_from({"kind": "generator", "prompt": {"median": 100}, "output": {"median": 100}})
    assert config == GeneratorConfig(prompt=PromptConfig(median=100.0), output=OutputConfig(median=100.0))


def test_kind_is_needed_and_known() -> None:
    with pytest.raises(ConfigError, match=r"workload\.kind is missing; accepted: generator"):
        source_from({"rate_per_s": 1.0})
    with pytest.raises(ConfigError, match="did you mean 'azure2023'"):
        source_from({"kind": "azure2024"})
    with pytest.raises(ConfigError, match="at least one model"):
        GeneratorConfig().sample(0, ())


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_holds_the_defaults(kind: str) -> None:
    values = yaml.safe_load((REPOSITORY / "conf" / "workload" / f"{kind}.yaml").read_text())
    assert values["kind"] == kind
    assert set(values) - {"kind"} == {field.name for field in dataclasses.fields(KINDS[kind])}
    source = source_from(values)
    assert isinstance(source, TraceSource) and source == KINDS[kind]()
