"""One sentence for every refused setting: key, value, what is accepted."""

from __future__ import annotations

import math

from mmsched_env.errors import ConfigError


def require(ok: bool, key: str, value: object, accepted: str) -> None:
    """Raise `ConfigError` naming the key, its value and what is accepted, unless `ok`."""
    if not ok:
        raise ConfigError(f"{key} is {value!r}; accepted: {accepted}")


def require_positive(key: str, value: float, unit: str = "a finite number") -> None:
    """Raise `ConfigError` unless ``0 < value < inf``."""
    require(0 < value < math.inf, key, value, f"{unit} > 0")


def require_share(key: str, value: float) -> None:
    """Raise `ConfigError` unless ``0 <= value <= 1``."""
    require(0 <= value <= 1, key, value, "a share in [0, 1]")


def require_at_least(key: str, value: int, low: int) -> None:
    """Raise `ConfigError` unless ``low <= value < 2**31``: every count is stored in 32 bits."""
    require(low <= value < 2**31, key, value, f"a whole number >= {low} (and below 2**31)")


def require_models(model_names: tuple[str, ...]) -> None:
    """Raise `ConfigError` without a model to serve."""
    require(len(model_names) >= 1, "models.names", model_names, "at least one model")


def require_load(rho: float | None) -> None:
    """Raise `ConfigError` unless `rho` is none or in (0, 10]."""
    require(rho is None or 0 < rho <= 10, "workload.rho", rho, "none, or a multiple of the capacity in (0, 10]")
