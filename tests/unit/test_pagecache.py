"""Files out of the page cache, and what cannot be dropped from it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration.measure import pagecache
from mmsched_env.errors import ConfigError


def test_a_file_is_dropped_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 22))
    pagecache.warm(path)
    assert pagecache.cached_share(path) == 1.0
    pagecache.evict(path)
    assert pagecache.cached_share(path) <= pagecache.MAX_LEFT
    pagecache.warm(path)
    assert pagecache.cached_share(path) == 1.0


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no file system in memory")
def test_a_file_in_memory_cannot_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "WAIT_S", 0.0)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(1 << 20))
        file.flush()
        with pytest.raises(ConfigError, match=r"cannot be dropped from the page cache; accepted: .* or cold=false"):
            pagecache.evict(Path(file.name))


def test_no_permission_to_drop_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with pytest.raises(ConfigError, match="cannot be dropped from the page cache: Operation not permitted") as caught:
        pagecache.evict(path)
    assert "\n" not in str(caught.value)
