"""What a command is asked to write, checked before the work."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError


def writable(file: str) -> Path:
    """A file to write; a link is followed to what it stands for.

    Raises
    ------
    ConfigError
        Its folder is not there, or it is no ordinary file.
    """
    path = Path(file).resolve()
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        raise ConfigError(f"file is '{file}'; accepted: a file in a folder that exists")
    return path


def usable_folder(folder: str | Path, key: str = "out") -> Path:
    """A folder to write into, there or to be made.

    Raises
    ------
    ConfigError
        It is no folder, or lies in what is none.
    """
    path = Path(folder)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{key} is '{folder}', but {place} is a file; accepted: a folder")
    return path
