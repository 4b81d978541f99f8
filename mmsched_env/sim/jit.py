"""Compilation settings, and a disk cache that notices an edit in any compiled source file.

Numba's own cache looks only at the file of the cached function, not at the functions it calls (numba issue 3588).
Here the cache folder is named by a hash over every source file that can end up in compiled code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config as numba_config
from numba.core import types
from numpy.typing import NDArray

PACKAGE = Path(__file__).resolve().parent.parent
COMPILED = ("sim/**/*.py", "bounds/search.py")
"""where compiled code lies, within the package"""


def compiled_sources() -> list[Path]:
    """Source files whose code can be compiled into a cached function."""
    return sorted(path for pattern in COMPILED for path in PACKAGE.glob(pattern))


def source_hash(more: Iterable[Path] = ()) -> str:
    """First 16 hex digits of the SHA-256 over names and bytes of `compiled_sources` and `more`."""
    digest = hashlib.sha256()
    for path in [*compiled_sources(), *more]:
        digest.update(f"{path.parent.name}/{path.name}".encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder(more: Iterable[Path] = ()) -> Path:
    """``$NUMBA_CACHE_DIR`` or the user's cache folder, then a folder per state of the sources."""
    base = os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "mmsched" / "numba"
    return Path(base) / f"mmsched-{source_hash(more)}"


def compiled(function: Callable[..., Any], makes_arrays: bool = False, inlined: bool = False) -> Any:
    """Compile a function called from other compiled functions only: nothing of it is cached by itself.

    Without the wrappers that Python and C would call it by, which take a third of the time to compile. Only one that
    `makes_arrays`, or returns one, counts references to arrays: an atomic operation for every array at every call, which took
    four fifths of a rule's time. One that is `inlined` has no call left in machine code: where arguments are many arrays,
    handing them over takes longer than a short function's work (it takes longer to compile, so the kernel does without).
    """
    return numba.njit(
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=inlined,
        _nrt=makes_arrays,
    )(function)


def entry_point(function: Callable[..., Any], more: Iterable[Path] = (), makes_arrays: bool = True) -> Any:
    """Compile a function that Python calls; it and everything it calls is cached on disk.

    `more` are source files beyond `compiled_sources` that it may call; `makes_arrays` as for `compiled`.
    """
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(cache_folder(more))
    try:
        return numba.njit(error_model="numpy", cache=True, nogil=True, _nrt=makes_arrays)(function)
    finally:
        numba_config.CACHE_DIR = before


def kernel_entry_point(function: Callable[..., Any]) -> Any:
    """An entry point of the kernel, where nothing makes arrays."""
    return entry_point(function, makes_arrays=False)


def records(array: Any) -> Any:
    """A structured array in the form compiled code is called with.

    A plain array: Numba takes five times as long to recognise a `recarray`. With NUMBA_DISABLE_JIT=1 a recarray,
    whose rows have their fields as attributes as in compiled code.
    """
    return array.view(np.recarray if numba_config.DISABLE_JIT else np.ndarray)


def as_bytes(array: Any) -> NDArray[np.void]:
    """The same records without their fields: NumPy copies a record field by field, which takes ten to ninety times as long."""
    return np.asarray(array).view(f"V{array.dtype.itemsize}")


def copy_records(array: Any) -> Any:
    """A copy of a structured array."""
    return as_bytes(array).copy().view(array.dtype)


class _Address(types.WrapperAddressProtocol):
    """A compiled function with its argument types, as Numba takes it as an argument."""

    def __init__(self, function: Any, arguments: Iterable[Any]) -> None:
        self._signature = types.none(*map(numba.typeof, arguments))
        compiled_for = function.get_compile_result(self._signature)
        self._library = compiled_for.library  # the address is good as long as this lives
        self._address = self._library.get_pointer_to_function(compiled_for.fndesc.llvm_cfunc_wrapper_name)

    def __wrapper_address__(self) -> int:
        return int(self._address)

    def signature(self) -> Any:
        return self._signature


def by_address(function: Any, arguments: Iterable[Any]) -> Any:
    """An entry point as an argument of another one, for arguments like the ones given: compiled once, not into each caller.

    It returns nothing. Passing it takes about 0.1 ms, calling it nothing.
    """
    return function if numba_config.DISABLE_JIT else _Address(function, arguments)
