"""nvbandwidth, text or ``--json``: copies between host and each GPU alone by the copy engine, from page-locked memory.

GB/s are 10^9 bytes/s. Everything else it measures is left out: the cost model has one copy at a time, by cudaMemcpy.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mmsched_env.errors import ConfigError

from .base import NO_FIGURE, Fields, Importer, Reading, bad_json, has_keys
from .names import gpu_name

OPERATIONS = {"host_to_device_memcpy_ce": "copy_h2d", "device_to_host_memcpy_ce": "copy_d2h"}
DEVICE = re.compile(r"^Device (\d+): (.+?)(?:\s*\([0-9a-fA-F:.]+\))?\s*$", re.MULTILINE)
LISTED = re.compile(r"(\d+): (.+?)\s*(?:\([^)]*\).*)?$")
TEST = re.compile(r"^Running (\w+)\.\s*$")
MATRIX_ROW = re.compile(r"^\s*\d+((?:\s+(?:[-\w./+]+))+)\s*$")


def recognises(text: str) -> bool:
    """By its name and its tests."""
    return has_keys(text, "nvbandwidth") or re.search(r"^Running \w+_(?:ce|sm)\.", text, re.MULTILINE) is not None


def read(text: str) -> Reading:
    """A row for each GPU and direction. Raises ConfigError."""
    return _json(text) if has_keys(text, "nvbandwidth") else _text(text)


def _json(text: str) -> Reading:
    reading = Reading()
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise bad_json(error) from None
    if not isinstance(document, dict):
        raise ConfigError("is not an object; accepted: what nvbandwidth --json prints")
    root = Fields(document, "").inner("nvbandwidth")
    gpus = {}
    for entry in root.get("GPU Device list", []):
        match = LISTED.match(str(entry))
        gpus.update({int(match[1]): gpu_name(match[2])} if match else {})
    version = root.text("version", "")
    tests = root.get("testcases")
    if not isinstance(tests, list):
        raise root.error("testcases", "a list")
    for i, entry in enumerate(tests, start=1):
        if not isinstance(entry, dict):
            raise ConfigError(f"test {i} is {entry!r}; accepted: an object")
        test = Fields(entry, f"test {i}")
        name, status = test.text("name"), test.text("status", "")
        if status != "Passed":
            reading.ignore(name, f"{status.lower()} by nvbandwidth")
            continue
        matrix = test.get("bandwidth_matrix")
        if not isinstance(matrix, list) or not all(isinstance(row, list) for row in matrix):
            raise test.error("bandwidth_matrix", "a list of rows")
        for row in matrix:
            _row(reading, name, [str(cell) for cell in row], test.where, gpus, version)
        test.get("bandwidth_description", None)
        reading.ignore_rest(test, dict.fromkeys(("sum", "min", "max", "average"), "follows from the matrix"))
    reading.ignore_rest(
        root, dict.fromkeys(("CUDA Runtime Version", "Driver Version", "git_version", "warning", "error"), NO_FIGURE)
    )
    return _checked(reading)


def _text(text: str) -> Reading:
    reading = Reading()
    gpus = {int(match[1]): gpu_name(match[2]) for match in DEVICE.finditer(text)}
    version = match[1] if (match := re.search(r"^nvbandwidth Version:\s*(\S+)", text, re.MULTILINE)) else ""
    name, width = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if match := TEST.match(line):
            name, width = match[1], 0
        elif name and re.fullmatch(r"[\s\d]+", line) and line.strip():
            width = len(line.split())
        elif name and (match := MATRIX_ROW.match(line)):
            cells = match[1].split()
            if len(cells) != width:
                raise ConfigError(f"line {number} has {len(cells)} figures; accepted: {width}, one a column")
            _row(reading, name, cells, f"line {number}", gpus, version)
        elif line.startswith("SUM "):
            reading.ignore("SUM", "follows from the matrix")
        elif line.startswith("Waived") and name:
            reading.ignore(name, "waived by nvbandwidth")
    return _checked(reading)


def _checked(reading: Reading) -> Reading:
    if not reading.drafts and not reading.ignored:
        raise ConfigError("holds no test; accepted: at least one")
    return reading


def _row(reading: Reading, name: str, cells: list[str], where: str, gpus: dict[int, str], version: str) -> None:
    if name not in OPERATIONS:
        reading.ignore(name, _why_not(name))
        return
    fields = Fields({f"{name} of GPU {i}": cell for i, cell in enumerate(cells)}, where)
    for i, (key, cell) in enumerate(fields.data.items()):
        if cell == "N/A":
            reading.ignore(key, "N/A")
            continue
        columns: dict[str, Any] = {"gpu": gpus[i]} if i in gpus else {}
        reading.row(
            where,
            operation=OPERATIONS[name],
            pinned=True,
            value=fields.positive(key) * 1e9,
            unit="B/s",
            engine="nvbandwidth",
            engine_version=version,
            note=f"GPU {i}",
            **columns,
        )


def _why_not(name: str) -> str:
    if "latency" in name:
        return "a latency of single reads, not of a copy"
    if "bidirectional" in name:
        return "both directions at once"
    if "host" not in name:
        return "between or inside GPUs"
    if name.endswith("_sm"):
        return "copied by a kernel, not by the copy engine"
    return "several GPUs at once"


IMPORTER = Importer("nvbandwidth", recognises, read)
