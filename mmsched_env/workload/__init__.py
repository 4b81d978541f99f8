"""Workloads: request traces, and where they come from."""

from .generator import GeneratorConfig
from .source import TraceSource
from .trace import RequestTrace

__all__ = ["GeneratorConfig", "RequestTrace", "TraceSource"]
