"""``python -m mmsched_env`` is the `mmsched` command."""

from .cli import main

main()
