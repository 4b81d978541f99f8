"""`mmsched calibrate`: hardware profiles from measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from mmsched_env.hydra_app import fail, with_one_line_errors

from . import fit

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "fit": (fit.main, "fit GPU and host profiles from tables of measurements"),
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
