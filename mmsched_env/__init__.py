"""A Gymnasium environment for serving several LLMs on a few unequal GPUs.

``import mmsched_env`` registers ``mmsched/Serving-v0`` and needs gymnasium, numpy and numba alone.
"""

from .registration import register

__version__ = "0.1.0"
__all__ = ["__version__"]

register()
