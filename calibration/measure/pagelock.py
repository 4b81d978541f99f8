"""Page-locked host memory, which a GPU reads without a detour: memory that is there already is locked and unlocked.

torch's own page-locked memory is a copy, rounded up to powers of two: of a model of 30 GB another 45 GB.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmsched_env.errors import MmschedError

LEAST_BYTES = 1 << 20
"""what is smaller may share its pages with something else, and is copied fast enough as it is"""


def lock(tensors: Iterable[Tensor]) -> None:
    """Raises MmschedError where the driver refuses."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for tensor in _large(tensors):
        failed = int(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
        if failed:
            raise MmschedError(
                f"{tensor.nbytes / 1e6:.0f} MB of host memory cannot be page-locked (CUDA error {failed}); accepted: a smaller model"
            )


def unlock(tensors: Iterable[Tensor]) -> None:
    """What `lock` has locked."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for tensor in _large(tensors):
        cudart.cudaHostUnregister(tensor.data_ptr())


def _large(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each once: a head may be the input table."""
    return list({tensor.data_ptr(): tensor for tensor in tensors if tensor.nbytes >= LEAST_BYTES}.values())
