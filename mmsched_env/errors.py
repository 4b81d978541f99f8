"""Errors a user can cause: one line saying what, where and what would be right.

The command line prints the message alone and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MmschedError(ValueError):
    """Base of every error caused by bad input."""


class ConfigError(MmschedError):
    """A configuration value, profile or checkpoint that cannot be used."""


class TraceError(MmschedError):
    """A request trace that cannot be used; the message names file and row."""


def unknown_name(what: str, name: object, known: Iterable[str]) -> ConfigError:
    """Error for a name that is not in a catalogue, with the nearest match and the accepted names."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return ConfigError(f"unknown {what} '{name}'{hint}; accepted: {', '.join(names)}")
