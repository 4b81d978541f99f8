"""pytest plugin: skip the rest of a file after its first failure."""

from typing import Any

import pytest

FAILED: set[str] = set()


def pytest_runtest_setup(item: Any) -> None:
    if item.nodeid.split("::")[0] in FAILED:
        pytest.skip("the file has failed already")


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        FAILED.add(report.nodeid.split("::")[0])
