"""The composite rule with learned weights, read from the file that `mmsched evolve` writes. Source: ours (baselines/evolve.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsched_env.errors import ConfigError

from .composite import Composite

FORMAT = "mmsched learned weights 2"


class Evolved(Composite):
    """`Composite` with the settings and learned weights of a file.

    Parameters
    ----------
    path
        JSON with ``format``, ``settings`` (of `Composite`, by name) and ``weights`` (of adjust.py, by name).

    Raises
    ------
    ConfigError
        No such file, or it does not hold them.
    """

    def __init__(self, path: str | Path) -> None:
        learned = read_learned(Path(path))
        try:
            super().__init__(**learned["settings"], weights=learned["weights"])
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error


def read_learned(path: Path) -> Mapping[str, Any]:
    """The contents of a file of learned weights.

    Raises
    ------
    ConfigError
        No such file, or it is none of these.
    """
    accepted = "accepted: a .json written by `mmsched evolve`"
    try:
        learned = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"learned weights '{path}' cannot be read; {accepted}") from None
    except ValueError as error:
        raise ConfigError(f"learned weights '{path}': no JSON ({error}); {accepted}") from None
    if not isinstance(learned, dict) or learned.get("format") != FORMAT:
        raise ConfigError(f"learned weights '{path}': no '\"format\": \"{FORMAT}\"'; {accepted}")
    if not all(isinstance(learned.get(key), dict) for key in ("settings", "weights")):
        raise ConfigError(f"learned weights '{path}': 'settings' and 'weights' are not both there; {accepted}")
    return learned
