"""Draws docs/learning_curves.png: validation of the searches of `mmsched evolve`, by generation, a line for each training seed.

``python docs/make_learning_curves.py [FAMILY=RUN,RUN,...] ...`` takes the curves of runs into docs/learning_curves.json first; without
arguments the picture is drawn from what is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

DATA = Path(__file__).with_name("learning_curves.json")
PICTURE = Path(__file__).with_name("learning_curves.png")
COLUMNS = 3


def curve(run: Path) -> dict[str, list[Any]]:
    """Generations, and the geometric mean over scenarios of validation E2E over the rule's."""
    found = json.loads((run / "history.json").read_text())["validations"]
    ratios = [float(np.exp(np.mean(np.log(one["ratios"])))) for one in found]  # inf: an episode that did not end
    return {
        "generation": [one["generation"] for one in found],
        "ratio": [round(ratio, 4) if np.isfinite(ratio) else None for ratio in ratios],
    }


def draw(curves: dict[str, list[dict[str, Any]]]) -> None:
    """A panel for each family, the rule's line at 1."""
    rows = -(-len(curves) // COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=(10, 2.8 * rows), layout="constrained", squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, (family, seeds) in zip(panels.flat, curves.items(), strict=False):
        for one in seeds:
            ratios = np.array(one["ratio"], float)
            shown = np.isfinite(ratios)
            line = panel.plot(np.array(one["generation"])[shown], ratios[shown], linewidth=1)[0]
            best = int(np.nanargmin(ratios))
            panel.plot(one["generation"][best], ratios[best], "o", markersize=4, color=line.get_color())
        panel.axhline(1, color="black", linewidth=0.8, linestyle="--")
        panel.set(title=f"{family} (seeds: {len(seeds)})", xlabel="generation", ylim=(0.92, 1.04))
    for row in panels:
        row[0].set_ylabel("validation E2E / the rule's")
    figure.savefig(PICTURE, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Take in the runs, if any, and draw."""
    curves = json.loads(DATA.read_text()) if DATA.exists() else {}
    for argument in arguments:
        family, runs = argument.split("=")
        curves[family] = [curve(Path(run)) for run in runs.split(",")]
    if arguments:
        DATA.write_text(json.dumps(curves, indent=1) + "\n")
    draw(curves)


if __name__ == "__main__":
    main(sys.argv[1:])
