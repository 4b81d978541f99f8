"""Reader of the Azure LLM inference trace of 2023 (CC-BY 4.0; Patel et al., Splitwise, ISCA 2024).

Two CSV files, one a service, with columns TIMESTAMP (wall clock), ContextTokens, GeneratedTokens. They name no model:
each service's requests are spread over models by share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import unknown_name

from .checks import require, require_models
from .lines import Stamp, file_stamp
from .popularity import draw_by_share, zipf_shares
from .replay import ReplayConfig
from .source import stream
from .table import WallClock, read_columns, token_field
from .trace import RequestTrace

SERVICES = ("conv", "code")
"""in this order: a request's tenant is the index of its service"""


@dataclass(frozen=True)
class AzureTraceConfig(ReplayConfig):
    """The two services merged by time (at equal times conv first); a `TraceSource`.

    ``path`` is the folder that holds the files. Time 0 is the first request of the files read. A service's
    ``max_tokens`` is the largest output of its file unless set. The seed draws models (one stream a service), classes
    and prediction errors; times and lengths are the record's.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    conv_file: str = "AzureLLMInferenceTrace_conv.csv"
    """file of the chat service in the folder; empty: leave the service out"""
    code_file: str = "AzureLLMInferenceTrace_code.csv"
    """file of the code completion service in the folder; empty: leave the service out"""
    conv_models: tuple[str, ...] = ()
    """models that serve chat, most popular first; empty: all, in the order of models.names"""
    code_models: tuple[str, ...] = ()
    """models that serve code, most popular first; empty: all, in the order of models.names"""
    conv_shares: tuple[float, ...] = ()
    """how chat requests divide over its models; empty: Zipf with zipf_exponent"""
    code_shares: tuple[float, ...] = ()
    """how code requests divide over its models; empty: Zipf with zipf_exponent"""
    zipf_exponent: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.conv_file or self.code_file),
            "workload.conv_file and code_file",
            (self.conv_file, self.code_file),
            "at least one file name",
        )
        require(0 <= self.zipf_exponent <= 100, "workload.zipf_exponent", self.zipf_exponent, "a number in [0, 100]")
        for service in SERVICES:
            models, shares = self._spread(service)
            ok = all(0 <= share < float("inf") for share in shares) and (not shares or sum(shares) > 0)
            require(ok, f"workload.{service}_shares", shares, "numbers >= 0, not all 0")
            if models and shares:
                self._check_count(service, shares, len(models))

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The recorded requests with models drawn by share; see `TraceSource.sample`."""
        require_models(model_names)
        folder = self.folder_or_file("the folder that holds the Azure 2023 files")
        names = (self.conv_file, self.code_file)
        paths = tuple(folder / name if name else None for name in names)
        columns = dict(_read(paths, tuple(path and file_stamp(path) for path in paths), self.min_tokens))
        model = np.zeros(len(columns["tenant"]), np.int64)
        for tenant, service in enumerate(SERVICES):
            rows = columns["tenant"] == tenant
            model[rows] = self._models(service, seed, int(rows.sum()), model_names)
        source = str(folder / " + ".join(name for name in names if name))
        return self.replay(seed, model_names, source, {**columns, "model": model})

    def _models(self, service: str, seed: int, size: int, model_names: tuple[str, ...]) -> NDArray[np.int64]:
        """[size] model indices of a service's requests."""
        models, shares = self._spread(service)
        for name in models:
            if name not in model_names:
                raise unknown_name(f"model in workload.{service}_models", name, model_names)
        models = models or model_names
        if shares:
            self._check_count(service, shares, len(models))
        index = np.array([model_names.index(name) for name in models])
        weights = np.array(shares) if shares else zipf_shares(len(models), self.zipf_exponent)
        return index[draw_by_share(stream(seed, f"models.{service}").random(size), weights)]

    def _spread(self, service: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        return getattr(self, f"{service}_models"), getattr(self, f"{service}_shares")

    def _check_count(self, service: str, shares: tuple[float, ...], count: int) -> None:
        require(len(shares) == count, f"workload.{service}_shares", shares, f"{count} numbers, one a model")


@lru_cache(maxsize=8)
def _read(paths: tuple[Path | None, ...], stamps: tuple[Stamp | None, ...], min_tokens: int) -> dict[str, NDArray[Any]]:
    """Columns of both services merged by time; a changed file has another stamp and is read anew."""
    parts = [_read_service(path, tenant, min_tokens) for tenant, path in enumerate(paths) if path is not None]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(merged["time_ns"], kind="stable")
    merged = {name: values[order] for name, values in merged.items()}
    time_ns = merged.pop("time_ns")
    return {"arrival_s": (time_ns - time_ns[0]) / 1e9, **merged}


def _read_service(path: Path, tenant: int, min_tokens: int) -> dict[str, NDArray[Any]]:
    lengths = {name: token_field(min_tokens) for name in ("ContextTokens", "GeneratedTokens")}
    columns = read_columns(path, {"TIMESTAMP": WallClock(), **lengths})
    output = columns["GeneratedTokens"]
    return {
        "time_ns": columns["TIMESTAMP"],
        "prompt_tokens": columns["ContextTokens"],
        "output_tokens": output,
        "max_tokens": np.full(len(output), max(output.max(), min_tokens)),
        "tenant": np.full(len(output), tenant),
    }
