"""Views of an episode: text of the present instant, and a Gantt chart of all so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..core import Simulation

MODES = ("ansi", "rgb_array")


def render(simulation: Simulation, env: int, mode: str) -> str | NDArray[np.uint8]:
    """One frame of environment `env`: text for ``ansi``, uint8 (height, width, 3) for ``rgb_array``.

    Raises
    ------
    ConfigError
        An unknown mode, or `rgb_array` without matplotlib.
    MmschedError
        `rgb_array` of a simulation that keeps no event log.
    """
    if mode == "ansi":
        from .ansi import render_ansi

        return render_ansi(simulation, env)
    if mode == "rgb_array":
        from .gantt import gantt_array

        return gantt_array(simulation, env)
    raise unknown_name("render mode", mode, MODES)
