"""A cell is one episode of one policy in one scenario: run, kept in a file of its own, and not run again if that is there.

So an evaluation that was stopped goes on where it was, and one with more traces or policies runs only what is new. A file
counts only if everything the cell depends on is the same: configuration, recorded traces, profiles, policy, seed and the code itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..config import env_config
from ..core import Simulation
from ..costmodel.profile import profile_hash
from ..policy import Policy
from ..workers import worker_pool
from .policies import make_policy
from .rollout import run_episode

ROOT = Path(__file__).parents[1]
CODE = ("*.py", "sim", "costmodel", "workload", "evaluation/rollout.py", "baselines", "agents", "conf/policy")
META = b"mmsched"


@dataclass(frozen=True)
class Cell:
    """One episode to run."""

    folder: Path
    scenario: str
    config: str
    """the environment's configuration as JSON"""
    policy: str
    """label"""
    member: int
    """which of the policy's checkpoints, trained with different seeds; 0 for a rule"""
    entry: str
    """what `make_policy` takes, as JSON"""
    episode: int
    seed: int
    warmup: float
    """share of the trace's first requests left out of the figures"""

    @property
    def path(self) -> Path:
        return self.folder / slug(self.scenario) / slug(f"{self.policy}-{self.member}") / f"{self.episode:05d}.parquet"


@dataclass(frozen=True)
class Result:
    """What came of a cell."""

    table: pa.Table
    """a row per measured request, columns of `metrics.per_request`"""
    summary: dict[str, float]
    decision_us: dict[str, float]
    """wall-clock percentiles of the policy's decisions; no part of the results, which are the same in every run"""
    processor_s: float
    """that the episode took; likewise"""


def slug(text: str) -> str:
    """A file name for a label: readable, and told apart by a few letters of its hash."""
    readable = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in text)[:60]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# ---------------------------------------------------------------- running


def run_cells(cells: Sequence[Cell], processes: int) -> Generator[Cell, None, None]:
    """Run the cells whose files are not there; yields each as it is done, those that were there first."""
    todo = []
    for cell in cells:
        if _stored(cell):
            yield cell
        else:
            todo.append(cell)
    if processes == 1 or len(todo) < 2:
        for cell in todo:
            _run(cell)
            yield cell
        return
    yield _run(todo.pop(0))  # compiles, so that the others find it in the cache
    with worker_pool(min(processes, len(todo))) as pool:
        for future in as_completed([pool.submit(_run, cell) for cell in todo]):
            yield future.result()


def read(cell: Cell) -> Result:
    """The stored result of a cell that has been run."""
    table = pq.read_table(cell.path)
    stored = json.loads(table.schema.metadata[META])
    summary = {key: float("nan") if value is None else float(value) for key, value in stored["summary"].items()}
    return Result(table.replace_schema_metadata(None), summary, stored["decision_us"], stored["processor_s"])


def _run(cell: Cell) -> Cell:
    simulation, policy = _simulation(cell.config), _policy(cell.entry)
    trace = simulation.config.workload.sample(cell.seed, simulation.config.models.names)
    begun = time.process_time()
    episode = run_episode(simulation, policy, trace, cell.seed, int(cell.warmup * len(trace)))
    microseconds = 1e6 * episode.decision_s
    stored = {
        "fingerprint": fingerprint(cell),
        "summary": {key: None if value != value else value for key, value in episode.summary.items()},
        "decision_us": {f"p{q}": float(np.percentile(microseconds, q)) for q in (50, 99)},
        "processor_s": time.process_time() - begun,
    }
    table = pa.table({key: pa.array(values) for key, values in episode.rows.items()})
    table = table.replace_schema_metadata({META: json.dumps(stored, sort_keys=True).encode()})
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = cell.path.with_suffix(f".{os.getpid()}.part")
    try:
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(cell.path)
    finally:
        temporary.unlink(missing_ok=True)
    return cell


@lru_cache(maxsize=1)
def _simulation(config: str) -> Simulation:
    return Simulation(env_config(json.loads(config)), 1)


@lru_cache(maxsize=64)
def _policy(entry: str) -> Policy:
    return make_policy(json.loads(entry))[1]


# ---------------------------------------------------------------- what a cell depends on


def fingerprint(cell: Cell) -> str:
    """Hash over everything that the result depends on."""
    config = env_config(json.loads(cell.config))
    profiles = profile_hash(config.cluster.gpus, config.cluster.hosts, config.models.names)
    plain = replace(cell, folder=Path(), policy="", scenario="")
    record = getattr(config.workload, "path", None)
    recorded = _contents(_signature(Path(record))) if record else ""
    parts = [str(vars(plain)), profiles, recorded, _files(cell.entry), code_hash()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stored(cell: Cell) -> bool:
    try:
        metadata = pq.read_schema(cell.path).metadata
    except (OSError, pa.ArrowInvalid):
        return False
    return META in (metadata or {}) and json.loads(metadata[META])["fingerprint"] == fingerprint(cell)


def _files(entry: str) -> str:
    """Hash of the files an entry names (checkpoints): another file under the same name is another policy."""
    values = json.loads(entry)
    texts = [str(v) for v in (values.values() if isinstance(values, Mapping) else [values])]
    digests = [hashlib.sha256(Path(text).read_bytes()).hexdigest() for text in texts if Path(text).is_file()]
    return " ".join(digests)


def _signature(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Every file of a record, with its size and when it was written: what has not changed is not read again."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file())


@lru_cache(maxsize=16)
def _contents(signature: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of a record's files."""
    digest = hashlib.sha256()
    for path, *_ in signature:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Hash of the sources that an episode runs through, and of the settings that policies have without being given any."""
    digest = hashlib.sha256()
    for part in CODE:
        place = ROOT / part
        # in a checkout the folders of policies lie beside the package, installed inside it
        beside = ROOT.parent / part
        folder = place if place.is_dir() else beside
        found = folder.rglob("*") if folder.is_dir() else ROOT.glob(part)
        for path in sorted(found):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
