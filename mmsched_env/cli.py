"""`mmsched`: one command line over all parts. Commands are named by strings, so that only what runs is imported."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = {
    "train": ("mmsched_env.agents.__main__", "train an agent: mmsched train experiment=smoke"),
    "evolve": (
        "mmsched_env.baselines.evolve",
        "learn corrections of the composite rule: mmsched evolve scenarios=[swap-thrash]",
    ),
    "evaluate": ("mmsched_env.evaluation.__main__", "compare policies: mmsched evaluate policies=[fcfs,mect]"),
    "tune": ("mmsched_env.evaluation.tune", "settings of a rule on training traces: mmsched tune policy=mect"),
    "workload": (
        "mmsched_env.workload.__main__",
        "show, fit or convert a workload: mmsched workload show scenario=steady",
    ),
    "report": ("mmsched_env.reporting.__main__", "one page about an evaluation: mmsched report runs/evaluate/x"),
    "leaderboard": (
        "mmsched_env.evaluation.leaderboard",
        "one table of evaluations: mmsched leaderboard runs/evaluate/x",
    ),
    "export-trace": (
        "mmsched_env.evaluation.export_trace",
        "one episode as a file for ui.perfetto.dev: mmsched export-trace policy=mect",
    ),
    "calibrate": ("mmsched_env.calibration.__main__", "hardware profiles from measurements: mmsched calibrate fit"),
    "bench": ("mmsched_env.benchmarks.__main__", "how fast it runs here: mmsched bench"),
    "catalogue": ("mmsched_env.costmodel.__main__", "list the GPU, host and model profiles with their provenance"),
}
"""command -> (module with main(arguments), one line of help)"""


def usage() -> str:
    lines = [f"  {name:<13} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: mmsched COMMAND [key=value ...]\n\n"
        + "\n".join(lines)
        + "\n\nmmsched COMMAND --help shows its settings."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if given else 2)
    command, *rest = given
    if command not in COMMANDS:
        print(f"mmsched: error: unknown command '{command}'; accepted: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        _run(command, rest)
    except KeyboardInterrupt:
        print("mmsched: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _terminated(*_: object) -> NoReturn:
    print("mmsched: stopped", file=sys.stderr)
    raise SystemExit(128 + signal.SIGTERM)


def _run(command: str, rest: Sequence[str]) -> None:
    try:
        module = importlib.import_module(COMMANDS[command][0])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mmsched_env"):
            raise
        print(f"mmsched: error: '{command}' needs {error.name}; run: pip install 'mmsched-env[all]'", file=sys.stderr)
        raise SystemExit(2) from None
    module.main(rest)


if __name__ == "__main__":
    main()
