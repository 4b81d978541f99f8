"""An edit of any compiled source file takes effect, and the layers import only downwards."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmsched_env.sim import jit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mmsched_env"


def test_every_compiled_function_is_in_a_hashed_file() -> None:
    hashed = set(jit.compiled_sources())
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        decorators = [
            decorator.id
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for decorator in node.decorator_list
            if isinstance(decorator, ast.Name)
        ]
        if {"compiled", "entry_point", "kernel_entry_point"} & set(decorators):
            assert path in hashed, f"{path} holds compiled code and is not hashed"


def test_what_hashed_files_import_is_hashed_or_never_compiled() -> None:
    """Constants are frozen into compiled code too: kernel files import constants from hashed files only."""
    hashed = set(jit.compiled_sources())
    for path in hashed:
        if path.parent.name != "kernel":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1]
                target = base.joinpath(*(node.module or "").split(".")) if node.module else base
                files = [target.with_suffix(".py")] if target.with_suffix(".py").exists() else []
                files += [target / f"{alias.name}.py" for alias in node.names if (target / f"{alias.name}.py").exists()]
                assert files and all(file in hashed for file in files), f"{path.name}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", [p.relative_to(PACKAGE).as_posix() for p in jit.compiled_sources()])
def test_hash_sees_an_edit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "mmsched_env"
    for path in jit.compiled_sources():
        target = copy / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    original = jit.source_hash()
    monkeypatch.setattr(jit, "PACKAGE", copy)
    assert jit.source_hash() == original, "the hash must not depend on where the package lies"
    (copy / name).write_text((copy / name).read_text() + "\n# edited\n")
    assert jit.source_hash() != original


def test_hash_sees_new_and_renamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "mmsched_env"
    shutil.copytree(PACKAGE / "sim", copy / "sim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE / "observation.py", copy)
    monkeypatch.setattr(jit, "PACKAGE", copy)
    seen = {jit.source_hash()}
    (copy / "sim" / "kernel" / "new.py").write_text("")
    seen.add(jit.source_hash())
    (copy / "sim" / "kernel" / "new.py").rename(copy / "sim" / "kernel" / "newer.py")
    seen.add(jit.source_hash())
    assert len(seen) == 3


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert jit.cache_folder() == tmp_path / f"mmsched-{jit.source_hash()}"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert jit.cache_folder().parent.name == "numba"


@pytest.mark.slow
def test_an_edit_in_a_callee_takes_effect(tmp_path: Path) -> None:
    """With a warm cache, a changed constant in a file the entry points only call into changes the outcome."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "mmsched_env", ignore=ignore)
    code = (
        "import mmsched_env, numpy as np; from mmsched_env.env import ServingEnv\n"
        "env = ServingEnv(); obs, _ = env.reset(seed=0)\n"
        "print(mmsched_env.__file__, env.simulation.current.records['globals']['arrivals_per_s'][0, 0])"
    )

    def run() -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        out = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return out.stdout.split()

    path, before = run()
    assert path.startswith(str(tmp_path))
    waiting = tmp_path / "mmsched_env" / "sim" / "kernel" / "waiting.py"
    waiting.write_text(waiting.read_text().replace("RATE_WINDOW_S = 60.0", "RATE_WINDOW_S = 30.0"))
    assert float(run()[1]) == pytest.approx(2 * float(before))


# ---------------------------------------------------------------- import boundaries

FOLDERS = ("agents", "baselines", "calibration")


def imported(path: Path, package: tuple[str, ...]) -> set[str]:
    """Full names of the modules a file imports; `package` is the package it lies in, for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def files(folder: Path, package: tuple[str, ...]) -> list[tuple[Path, tuple[str, ...]]]:
    return [(path, (*package, *path.relative_to(folder).parent.parts)) for path in sorted(folder.rglob("*.py"))]


def reaches(names: set[str], folder: str) -> bool:
    return any(name.split(".")[0] == folder or name.startswith(f"mmsched_env.{folder}") for name in names)


def test_the_environment_imports_none_of_its_users() -> None:
    for path, package in files(PACKAGE, ("mmsched_env",)):
        for folder in FOLDERS:
            assert not reaches(imported(path, package), folder), f"{path} imports {folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_users_do_not_import_each_other(folder: str) -> None:
    for path, package in files(ROOT / folder, ("mmsched_env", folder)):
        for other in set(FOLDERS) - {folder}:
            assert not reaches(imported(path, package), other), f"{path} imports {other}"


def test_the_boundary_check_itself() -> None:
    assert reaches({"mmsched_env.agents.train"}, "agents") and reaches({"agents"}, "agents")
    assert not reaches({"mmsched_env.action", "gymnasium"}, "agents")
