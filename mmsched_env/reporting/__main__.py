"""`mmsched report RUN`: one page about a run of `mmsched evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files import usable_folder
from ..hydra_app import with_one_line_errors
from .page import write_report
from .run import read_run


def report(arguments: Sequence[str]) -> None:
    """Write the page that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="mmsched report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder written by `mmsched evaluate out=...`")
    parser.add_argument("--out", type=Path, help="folder to write into (default: RUN/report)")
    parser.add_argument("--timelines", type=int, default=2, metavar="N", help="policies drawn over time (default 2)")
    args = parser.parse_args(arguments)
    if args.timelines < 0:
        parser.error(f"--timelines is {args.timelines}; accepted: a whole number >= 0")
    out = usable_folder(args.out or args.run / "report", "--out")
    page, *pictures = write_report(read_run(args.run), out, args.timelines)
    print(f"wrote {page} and {len(pictures)} pictures beside it")


def main(arguments: Sequence[str]) -> None:
    with_one_line_errors(lambda: report(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
