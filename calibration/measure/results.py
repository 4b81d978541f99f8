"""The file of samples: a header, then a line a sample, appended as each ends; and the lock of its folder."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsched_env.errors import ConfigError

from .points import Point

NAME = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """One figure of one round."""

    round: int
    """0: warm-up, thrown away; below 0: probes (runner.py)"""
    point: Point
    seconds: float
    size_bytes: int
    foreign_cores: float
    steal: float
    waited: float
    tries: int
    disturbed: bool
    """still disturbed at the last try: kept, and said so"""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder.

    Raises
    ------
    ConfigError
        Another run is at it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"out={folder}: cannot be written: {error.strerror}; accepted: another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"out={folder}: another run measures into it; accepted: another folder") from None
        yield


class Results:
    """Samples of a folder, those of an earlier run included.

    Raises
    ------
    ConfigError
        The folder holds a run of other settings, or a file that is none of ours.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.samples: list[Sample] = []
        header = json.loads(json.dumps(header))
        if self.path.exists() and self.path.stat().st_size:
            self._resume(header)
        else:
            self._append(header)

    def _resume(self, header: dict[str, Any]) -> None:
        found, self.samples, whole = read(self.path)
        require_same(self.path, found, header)
        with self.path.open("r+b") as file:  # a line that a stop cut off goes
            file.truncate(whole)

    def done(self) -> set[tuple[int, Point]]:
        """What need not be measured again."""
        return {(sample.round, sample.point) for sample in self.samples}

    def add(self, sample: Sample) -> None:
        """Keep it, on disk when this returns."""
        self.samples.append(sample)
        self._append(dataclasses.asdict(sample))

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written: {error.strerror}; accepted: a folder with room"
            ) from None


def require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError where what was measured has another header than what is wanted."""
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{path}: was measured with {key}={found.get(key)}, not {value}; accepted: the same, or another out="
            )


def read(path: Path) -> tuple[dict[str, Any], list[Sample], int]:
    """Header, samples, and the bytes of the whole lines: a last line without its end was cut off.

    Raises
    ------
    ConfigError
        A line that is no sample, with its number.
    """
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    lines = text[:whole].decode("utf-8", "replace").splitlines()
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            entries.append(entry if number == 1 else entry | {"point": Point(**entry["point"])})
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{path}: line {number} is no sample; accepted: a file of calibrate measure") from None
    try:
        return (entries[0] if entries else {}), [Sample(**entry) for entry in entries[1:]], whole
    except TypeError as error:
        raise ConfigError(f"{path}: {error}; accepted: a file of calibrate measure") from None
