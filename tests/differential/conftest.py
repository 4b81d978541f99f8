"""Makes `tests.reference` importable however pytest is started (`reference` alone is a module of tests/invariants)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
