"""Workloads: request traces, and where they come from.

A new source is one file with a frozen dataclass that has ``sample`` (see `TraceSource`) and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsched_env.config import build
from mmsched_env.errors import ConfigError, unknown_name

from .arena27 import Arena27Config
from .azure import AzureTraceConfig
from .burstgpt import BurstGptConfig
from .csv_file import CsvFileConfig
from .generator import GeneratorConfig
from .mooncake import MooncakeConfig
from .servegen import ServeGenConfig
from .source import TraceSource
from .stats import summary
from .trace import RequestTrace

__all__ = [
    "KINDS",
    "Arena27Config",
    "AzureTraceConfig",
    "BurstGptConfig",
    "CsvFileConfig",
    "GeneratorConfig",
    "MooncakeConfig",
    "RequestTrace",
    "ServeGenConfig",
    "TraceSource",
    "source_from",
    "summary",
]

KINDS: dict[str, type[TraceSource]] = {
    "generator": GeneratorConfig,
    "azure2023": AzureTraceConfig,
    "arena27": Arena27Config,
    "mooncake": MooncakeConfig,
    "burstgpt": BurstGptConfig,
    "servegen": ServeGenConfig,
    "file": CsvFileConfig,
}
"""``workload.kind`` -> the dataclass that holds its settings; ``conf/workload/<kind>.yaml`` holds the same values"""


def source_from(mapping: Mapping[str, Any]) -> TraceSource:
    """The workload that plain settings describe: ``kind`` picks the class, the rest fills its fields.

    Raises
    ------
    ConfigError
        No or an unknown kind, an unknown key, a value of the wrong type or out of range.
    """
    settings = dict(mapping)
    if "kind" not in settings:
        raise ConfigError(f"workload.kind is missing; accepted: {', '.join(KINDS)}")
    kind = settings.pop("kind")
    if kind not in KINDS:
        raise unknown_name("workload.kind", kind, KINDS)
    return build(KINDS[kind], settings, "workload")
