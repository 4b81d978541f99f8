"""Generated pages are up to date, and links in the documentation lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_observation_page_is_what_the_table_says() -> None:
    module = runpy.run_path(str(ROOT / "docs/make_observation_page.py"))
    assert module["PAGE"].read_text() == module["page"]()


def test_the_h100_page_is_what_was_measured() -> None:
    module = runpy.run_path(str(ROOT / "docs/make_h100_page.py"))
    text = module["PAGE"].read_text()
    assert module["page"](text) == text, "run python docs/make_h100_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_rule_of_the_dynamics_names_tests_that_exist() -> None:
    page = (ROOT / "docs/dynamics.md").read_text()
    rules = {int(number) for number in re.findall(r"^\*\*R(\d+)\b", page, re.MULTILINE)}
    rows = dict(re.findall(r"^\| R(\d+) \| (.*) \|$", page, re.MULTILINE))
    assert rules == set(range(1, max(rules) + 1)) == {int(number) for number in rows}
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("*/*.py")}
    for number, row in rows.items():
        named = re.findall(r"`(\w+\.py)::(\w+)`", row)
        assert named, f"R{number} names no test"
        for file, test in named:
            assert f"def {test}(" in files[file], f"R{number}: {file} has no {test}"
