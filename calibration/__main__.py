"""`mmsched calibrate`: hardware profiles from measurements."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from mmsched_env.hydra_app import fail, with_one_line_errors

from . import fit, import_command, validate


def on_hardware(command: str) -> Callable[[Sequence[str]], int]:
    """Main of a command that needs more than the others: imported when it runs."""

    def main(arguments: Sequence[str]) -> int:
        try:
            module = importlib.import_module(f".{command}.command", __package__)
            return int(module.main(arguments))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(("mmsched_env", "calibration")):
                raise
            fail(f"'calibrate {command}' needs {error.name}; run: pip install 'mmsched-env[measure]'")
            raise

    return main


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "fit": (fit.main, "fit GPU and host profiles from tables of measurements"),
    "measure": (on_hardware("measure"), "measure this machine: load, prefill, decode, save, restore"),
    "replay": (on_hardware("replay"), "let a policy drive real servers, and compare the simulator with what happened"),
    "import": (import_command.main, "read what llama.cpp, Ollama, vLLM and nvbandwidth measured"),
    "validate": (validate.main, "errors on measurements left out of the fit, or on a file (against=FILE)"),
}
"""command -> (its main, one line of help)"""


def main(arguments: Sequence[str]) -> None:
    """Run ``mmsched calibrate COMMAND``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: mmsched calibrate COMMAND [options]\n")
        print("\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()))
        raise SystemExit(0 if arguments else 2)
    command, *rest = arguments
    if command not in COMMANDS:
        fail(f"unknown command 'calibrate {command}'; accepted: {', '.join(COMMANDS)}")
    raise SystemExit(with_one_line_errors(lambda: COMMANDS[command][0](rest)))


if __name__ == "__main__":
    main(sys.argv[1:])
