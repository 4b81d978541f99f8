"""Generator settings fitted to a trace, and how well draws of them match it. Needs SciPy.

Arrivals: Poisson, modulated by up to two on/off sources whose rates and times are such that the CV of the gaps and the
Fano factors in several windows come out as in the trace (all of these have closed forms). Lengths: histograms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .clients import ClientsConfig
from .generator import GeneratorConfig
from .lengths import ImageConfig, LengthConfig
from .modulation import BurstConfig
from .servegen import Client
from .stats import fano_of
from .trace import RequestTrace

FloatArray = NDArray[np.float64]
Length = TypeVar("Length", bound=LengthConfig)

WINDOWS_S = (1.0, 5.0, 20.0, 60.0)
QUANTILES = np.unique(np.round([*np.arange(0, 1, 0.025), 0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0], 4))
"""edges of a fitted histogram"""
STARTS = ((2.0, 6.0), (20.0, 60.0), (200.0, 300.0))
"""(on, off) seconds the search begins at: every pair of these"""
BAND = (2.5, 97.5)
"""percentiles over draws within which a figure of the trace should lie"""


def gap_cv(arrival_s: FloatArray) -> float:
    """Coefficient of variation of the gaps."""
    gaps = np.diff(arrival_s)
    return float(gaps.std() / gaps.mean())


def fit_bursts(arrival_s: FloatArray) -> tuple[BurstConfig, ...]:
    """On/off sources that give the trace's CV and Fano factors: none, one or two, as many as it takes."""
    from scipy.optimize import least_squares

    rate = (len(arrival_s) - 1) / float(arrival_s[-1] - arrival_s[0])
    windows = [w for w in WINDOWS_S if arrival_s[-1] - arrival_s[0] >= 8 * w]
    target = np.array([gap_cv(arrival_s), *(fano_of(arrival_s, w) for w in windows)])

    def error(x: FloatArray) -> FloatArray:
        ratio: FloatArray = np.log(moments(rate, _sources(x), windows) / np.maximum(target, 1.0))
        return ratio

    fits: list[tuple[float, tuple[BurstConfig, ...]]] = [(float((error(np.zeros(0)) ** 2).sum()), ())]
    for count in (1, 2):
        for first in STARTS:
            for second in STARTS if count == 2 else (first,):
                start = np.array([[*np.log(times), -2.0] for times in (first, second)[:count]]).ravel()
                low, high = np.tile([-4.0, -4.0, -12.0], count), np.tile([6.2, 6.2, 4.0], count)
                found = least_squares(error, start, bounds=(low, high))
                fits.append((2 * float(found.cost), _sources(found.x)))
    small = [fit for fit in fits if fit[0] < 0.01]  # about 5 % in each figure
    best = min(small, key=lambda fit: len(fit[1])) if small else min(fits, key=lambda fit: fit[0])
    best = min((fit for fit in fits if len(fit[1]) == len(best[1])), key=lambda fit: fit[0])
    return best[1]


def _sources(x: FloatArray) -> tuple[BurstConfig, ...]:
    """Burst sources from an unbounded vector, rounded as they will be written."""
    return tuple(
        BurstConfig(float(np.exp(on)), float(np.exp(off)), float(1 / (1 + np.exp(-low))))
        for on, off, low in x.reshape(-1, 3)
    )


def moments(rate_per_s: float, bursts: Sequence[BurstConfig], windows_s: Sequence[float]) -> FloatArray:
    """CV of the gaps, then the Fano factor of each window, of Poisson arrivals modulated by `bursts`, in the long run.

    The CV from the phases' generator Q and rates L: with D = L - Q and p the phases just after an arrival, E[gap^2] =
    2 p D^-2 1. The counts from the covariance of the rate, for each source 1 + v exp(-d t), for all their product.
    """
    generator: FloatArray = np.zeros((1, 1))
    rates: FloatArray = np.ones(1)
    stationary: FloatArray = np.ones(1)
    terms = {0.0: 1.0}  # decay rate -> weight in E[r(0) r(t)]
    for burst in bursts:
        leave = np.array([[-1 / burst.off_s, 1 / burst.off_s], [1 / burst.on_s, -1 / burst.on_s]])
        share = np.array([burst.off_s, burst.on_s]) / (burst.on_s + burst.off_s)
        own: FloatArray = np.array(burst.rates)
        generator = np.asarray(np.kron(generator, np.eye(2)) + np.kron(np.eye(len(rates)), leave), np.float64)
        rates = np.asarray(np.kron(rates, own), np.float64)
        stationary = np.asarray(np.kron(stationary, share), np.float64)
        variance, decay = float(share @ own**2) - 1, 1 / burst.on_s + 1 / burst.off_s
        faster: dict[float, float] = {}
        for d, weight in terms.items():
            faster[d] = faster.get(d, 0.0) + weight
            faster[d + decay] = faster.get(d + decay, 0.0) + weight * variance
        terms = faster
    inside = np.linalg.solve(np.diag(rate_per_s * rates) - generator, np.eye(len(rates)))
    after = stationary * rates
    second = 2 * float(after @ inside @ inside @ np.ones(len(rates)))
    fanos = [
        1 + 2 * rate_per_s / w * sum(c * (w / d - (1 - np.exp(-d * w)) / d**2) for d, c in terms.items() if d > 0)
        for w in windows_s
    ]
    return np.array([np.sqrt(max(second * rate_per_s**2 - 1, 1e-12)), *fanos])


def fit_lengths(tokens: NDArray[Any], like: Length) -> Length:
    """A histogram with edges at the quantiles of `tokens`; `like` is the default of its kind."""
    edges = np.quantile(tokens, QUANTILES)
    weights = np.diff(QUANTILES)
    repeated = np.diff(edges) == 0  # many requests of one length: a bin of no width, of all their weight
    keep = np.append(True, ~(repeated[1:] & repeated[:-1]))
    starts = np.flatnonzero(keep)
    merged = np.add.reduceat(weights, starts)
    median, top = float(max(1.0, np.median(tokens))), int(tokens.max())
    changes: dict[str, Any] = {
        "edges": tuple(float(x) for x in np.round(edges[np.append(starts, len(weights))], 1)),
        "weights": tuple(float(x) for x in np.round(merged, 4)),
    }
    return dataclasses.replace(like, median=min(median, top), max=top, family="histogram", **changes)


def fit_clients(clients: Sequence[Client], start_s: float, end_s: float) -> tuple[float, ClientsConfig]:
    """Requests per second, and ServeGen's clients over a part of their record: each with its mean rate and the
    mean CV of its windows there, weighted by requests."""
    rates, cvs = [], []
    for client in clients:
        inside = (client.lines["t_s"] >= start_s) & (client.lines["t_s"] < end_s)
        rate, cv = client.lines["rate_per_s"][inside], client.lines["cv"][inside]
        if rate.sum() == 0:
            continue
        rates.append(float(rate.mean()))
        cvs.append(float(np.average(cv, weights=rate)))
    shares = np.array(rates) / sum(rates)
    keep = shares > 1e-4
    return sum(rates), ClientsConfig(
        count=int(keep.sum()),
        shares=tuple(float(f"{x:.3g}") for x in shares[keep]),
        cvs=tuple(min(100.0, max(0.01, float(f"{x:.3g}"))) for x in np.array(cvs)[keep]),
    )


def fit_generator(trace: RequestTrace) -> GeneratorConfig:
    """A generator like `trace`: rate, bursts, lengths, popularity, images, classes' shares."""
    default = GeneratorConfig()
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    bursts = tuple(
        BurstConfig(*(float(f"{value:.4g}") for value in dataclasses.astuple(burst)))
        for burst in fit_bursts(trace.arrival_s)
    )
    shares = np.sort(np.bincount(trace.model, minlength=len(trace.model_names)))[::-1] / len(trace)
    return dataclasses.replace(
        default,
        rate_per_s=float(f"{len(trace) / span_s:.4g}"),
        bursts=bursts,
        prompt=fit_lengths(trace.prompt_tokens, default.prompt),
        output=fit_lengths(trace.output_tokens, default.output),
        shares=tuple(float(x) for x in np.round(shares, 4)) if len(shares) > 1 else (),
        **_fit_images(trace),
    )


def _fit_images(trace: RequestTrace) -> dict[str, Any]:
    """Settings of images, if there are any; every model of the trace takes them."""
    has_image = trace.image_tokens > 0
    if not has_image.any():
        return {}
    lengths = fit_lengths(trace.image_tokens[has_image], ImageConfig())
    return {"image_share": round(float(has_image.mean()), 3), "images": lengths, "multimodal": trace.model_names}


@dataclass(frozen=True)
class Row:
    """One figure of a trace beside that of draws."""

    figure: str
    real: float
    mean: float
    low: float
    high: float
    accepted: str
    """"2 %" and such: the mean lies that near; "band": the real figure lies between low and high; empty: not judged"""

    @property
    def ok(self) -> bool:
        if self.accepted == "band":
            return self.low <= self.real <= self.high
        if not self.accepted:
            return True
        return abs(self.mean - self.real) <= float(self.accepted.split()[0]) / 100 * abs(self.real)


def compare(trace: RequestTrace, config: GeneratorConfig, draws: int, first_seed: int = 0) -> list[Row]:
    """`draws` draws of as many requests as `trace` has, beside it: rate, CV, Fano factors, lengths, popularity."""
    same_length = dataclasses.replace(config, num_requests=len(trace))
    drawn = [figures(same_length.sample(first_seed + i, trace.model_names)) for i in range(draws)]
    real = figures(trace)
    rows = []
    for name, value in real.items():
        values = np.array([one.get(name, 0.0) for one in drawn])
        low, high = np.percentile(values, BAND)
        mean = 1 / float((1 / values).mean()) if name == "rate_per_s" else float(values.mean())
        rows.append(Row(name, value, mean, float(low), float(high), ACCEPTED.get(name, "")))
    return rows


ACCEPTED: Mapping[str, str] = {
    "rate_per_s": "2 %",
    "cv": "band",
    "fano_60s": "band",
    **{f"{side}_p{p}": "5 %" for side in ("prompt", "output", "image") for p in (50, 95)},
}


def figures(trace: RequestTrace) -> dict[str, float]:
    """The figures that are compared."""
    times = trace.arrival_s
    out = {
        "rate_per_s": len(trace) / float(times[-1] - times[0]),
        "cv": gap_cv(times),
        "fano_1s": fano_of(times, 1.0),
        "fano_60s": fano_of(times, 60.0),
    }
    columns = [("prompt", trace.prompt_tokens), ("output", trace.output_tokens)]
    if trace.image_tokens.any():
        columns.append(("image", trace.image_tokens[trace.image_tokens > 0]))
    for side, tokens in columns:
        out |= {f"{side}_p{p}": float(np.percentile(tokens, p)) for p in (50, 90, 95, 99)}
    if len(trace.model_names) > 1:
        shares = np.sort(np.bincount(trace.model, minlength=len(trace.model_names)))[::-1] / len(trace)
        out |= {"top1_share": float(shares[0]), "top5_share": float(shares[:5].sum())}
    return out


def yaml_of(config: GeneratorConfig, comment: str) -> str:
    """The settings of `config` that are not the generator's defaults, as a file of conf/workload."""
    import yaml

    default, lines = dataclasses.asdict(GeneratorConfig()), [f"# {line}" for line in comment.splitlines()]
    lines += ["defaults:", "  - generator", "  - _self_"]
    for name, value in dataclasses.asdict(config).items():
        changes = _changes(value, default[name])
        if changes is not None:
            flow = None if isinstance(changes, dict | list) else False
            text = yaml.safe_dump({name: changes}, default_flow_style=flow, sort_keys=False, width=116)
            lines.append(text.rstrip())
    return "\n".join(lines) + "\n"


def _changes(value: Any, default: Any) -> Any:
    """What differs from `default`, tuples as lists; none if nothing does."""
    if isinstance(value, dict) and isinstance(default, dict):
        found = {key: _changes(entry, default[key]) for key, entry in value.items()}
        return {key: entry for key, entry in found.items() if entry is not None} or None
    return None if value == default else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
