"""Which served model stands for a recorded one (or for a client of the record)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError, unknown_name

from .checks import require
from .popularity import draw_by_share, zipf_shares
from .source import stream

RULES = ("share", "rank", "size", "name")
IndexArray = NDArray[np.int64]


@dataclass(frozen=True)
class MappingConfig:
    """How requests are given to served models.

    share: every request draws its model by ``shares``, whatever it asked for (makes each model's arrivals more regular
    than the record). rank: the r-th most requested name goes to model r of ``models``, beyond the last again to the
    first. size: the same over ``models`` from small to large by the bytes of their files. name: by the table ``names``,
    and a name that is a served model's stays.
    """

    rule: str = "rank"
    models: tuple[str, ...] = ()
    """models to use, most popular first; empty: all, in the order of models.names"""
    shares: tuple[float, ...] = ()
    """for ``share``: one number a model; empty: Zipf with zipf_exponent"""
    zipf_exponent: float = 0.9
    names: dict[str, str] | None = None
    """for ``name``: recorded name -> served model"""

    def __hash__(self) -> int:
        table = tuple((self.names or {}).items())
        return hash((self.rule, self.models, self.shares, self.zipf_exponent, table))

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require(self.rule in RULES, f"{key}.rule", self.rule, " or ".join(RULES))
        require(0 <= self.zipf_exponent <= 100, f"{key}.zipf_exponent", self.zipf_exponent, "a number in [0, 100]")
        ok = all(0 <= share < float("inf") for share in self.shares) and (not self.shares or sum(self.shares) > 0)
        require(ok, f"{key}.shares", self.shares, "numbers >= 0, not all 0")
        if self.rule == "name":
            require(self.names is not None, f"{key}.names", self.names, "a table of recorded names to served models")

    def assign(
        self, seed: int, labels: IndexArray, label_names: Sequence[str], model_names: tuple[str, ...], key: str
    ) -> IndexArray:
        """[N] served model of each request, from [N] ``labels`` into `label_names` (stream "models").

        Raises
        ------
        ConfigError
            A model that is not served, a recorded name without a model, the wrong number of shares.
        """
        models = pick(self.models, model_names, f"{key}.models")
        if self.rule == "share":
            require(len(self.shares) in (0, len(models)), f"{key}.shares", self.shares, f"{len(models)} numbers")
            shares = np.array(self.shares) if self.shares else zipf_shares(len(models), self.zipf_exponent)
            return models[draw_by_share(stream(seed, "models").random(len(labels)), shares)]
        if self.rule == "name":
            return by_name(label_names, model_names, self.names or {}, f"{key}.names")[labels]
        if self.rule == "size":
            models = by_size(models, model_names)
        return models[by_popularity(labels, len(models))][labels]


def pick(chosen: tuple[str, ...], model_names: tuple[str, ...], key: str) -> IndexArray:
    """Indices of the models named in `chosen`, or of all."""
    for name in chosen:
        if name not in model_names:
            raise unknown_name(f"model in {key}", name, model_names)
    return np.array([model_names.index(name) for name in chosen or model_names])


def by_popularity(labels: NDArray[Any], count: int) -> IndexArray:
    """[largest label + 1] rank of each label by its requests (ties: lower label first), modulo `count`."""
    requests = np.bincount(labels)
    rank = np.empty(len(requests), np.int64)
    rank[np.argsort(-requests, kind="stable")] = np.arange(len(requests))
    return rank % count


def by_size(models: IndexArray, model_names: tuple[str, ...]) -> IndexArray:
    """`models` from the smallest file to the largest (profiles; equal sizes stay as listed)."""
    from mmsched_env.costmodel.profile import load_model

    size = np.array([load_model(model_names[m]).file_bytes for m in models])
    return models[np.argsort(size, kind="stable")]


def by_name(label_names: Sequence[str], model_names: tuple[str, ...], table: Mapping[str, str], key: str) -> IndexArray:
    """[L] served model of each recorded name."""
    out = []
    for label in label_names:
        model = table.get(label, label)
        if label not in table and label not in model_names:
            raise ConfigError(f"{key} has no model for the recorded name '{label}'; accepted: one for each name")
        if model not in model_names:
            raise unknown_name(f"model in {key}", model, model_names)
        out.append(model_names.index(model))
    return np.array(out, np.int64)
