"""What a run of `mmsched evaluate` left, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ConfigError

REQUESTS, SUMMARY = "requests.parquet", "summary.json"


@dataclass(frozen=True)
class Run:
    """One evaluation: a row per request, and the figures of every scenario."""

    folder: Path
    requests: pd.DataFrame
    """columns of `metrics.per_request`, and scenario, policy, episode"""
    summary: dict[str, Any]

    @property
    def scenarios(self) -> list[str]:
        return list(self.summary["scenarios"])

    @property
    def policies(self) -> list[str]:
        """Labels in the order they were given: the first is the reference of differences."""
        return [str(policy["label"]) for policy in self.summary["policies"]]

    def entry(self, scenario: str, policy: str) -> Any:
        """What made the policy there: an entry of ``policies=[...]``, with what was tuned for it."""
        return self.summary["scenarios"][scenario]["entries"][policy]

    def of(self, scenario: str, policy: str | None = None) -> pd.DataFrame:
        """Requests of a scenario, by one policy or all."""
        rows = self.requests[self.requests["scenario"] == scenario]
        return rows if policy is None else rows[rows["policy"] == policy]

    def config(self, scenario: str) -> dict[str, Any]:
        """The scenario's resolved configuration."""
        config: dict[str, Any] = _with_infinity(self.summary["scenarios"][scenario]["config"])
        return config


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises
    ------
    ConfigError
        A file that is missing, unreadable or of another version of the package.
    """
    for name in (REQUESTS, SUMMARY):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; accepted: a folder written by `mmsched evaluate out=...`")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        requests = pd.read_parquet(folder / REQUESTS)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{folder}: {REQUESTS} or {SUMMARY} is damaged ({reason}); run the evaluation again"
        ) from None
    missing = {"scenarios", "policies", "split", "seed"} - set(summary)
    if missing:
        raise ConfigError(
            f"{folder / SUMMARY} has no '{min(missing)}'; accepted: a run of this version: evaluate again"
        )
    lost = set(summary["scenarios"]) - set(requests["scenario"].unique())
    if lost:
        raise ConfigError(f"{folder / REQUESTS} has no requests of scenario '{min(lost)}'; run the evaluation again")
    return Run(folder, requests.astype({"scenario": str, "policy": str}), summary)


def _with_infinity(value: Any) -> Any:
    """JSON has no infinity: `report.write_json` writes it as text."""
    if isinstance(value, dict):
        return {key: _with_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_infinity(entry) for entry in value]
    return float(value) if value in ("inf", "-inf") else value
